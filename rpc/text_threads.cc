#include "rpc/text_threads.h"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_set>

namespace tandem {
namespace {

constexpr auto kTick = std::chrono::milliseconds(200);

class Task : public TextJob {
 public:
  explicit Task(std::function<void()> task) : task_(std::move(task)) {}
  void work() override { task_(); }
  void tick(std::chrono::steady_clock::time_point) override {}

 private:
  std::function<void()> task_;
};

}  // namespace

struct TextThreads::Thread {
  struct Entry {
    std::shared_ptr<TextJob> job;
    bool starting;
  };

  void run() {
    std::vector<Entry> batch;
    auto next_tick = std::chrono::steady_clock::now() + kTick;
    for (;;) {
      {
        std::unique_lock lock(mutex);
        sleeping = true;
        if (watched.empty()) {
          arrived.wait(lock, [&] { return !queue.empty() || stopping; });
        } else {
          arrived.wait_until(lock, next_tick, [&] { return !queue.empty() || stopping; });
        }
        sleeping = false;
        if (queue.empty() && stopping) return;
        batch.swap(queue);
      }
      for (Entry& entry : batch) {
        if (entry.starting) starting.fetch_sub(1, std::memory_order_relaxed);
        entry.job->due_.store(false, std::memory_order_seq_cst);  // before work(): what comes from now on wakes again
        entry.job->work();
      }
      batch.clear();
      if (const auto now = std::chrono::steady_clock::now(); now >= next_tick) {
        next_tick = now + kTick;
        const std::vector<std::shared_ptr<TextJob>> jobs(watched.begin(), watched.end());  // a tick may forget
        for (const auto& job : jobs) job->tick(now);
      }
    }
  }

  std::mutex mutex;
  std::condition_variable arrived;
  std::vector<Entry> queue;
  std::atomic<size_t> starting{0};
  bool sleeping = false, stopping = false;
  std::unordered_set<std::shared_ptr<TextJob>> watched;  // touched by its own thread only
  std::thread thread;
};

TextThreads::TextThreads(int threads, int max_starting) : max_starting_(static_cast<size_t>(max_starting)) {
  for (int i = 0; i < std::max(1, threads); ++i) threads_.push_back(std::make_unique<Thread>());
  for (auto& thread : threads_) thread->thread = std::thread([state = thread.get()] { state->run(); });
}

TextThreads::~TextThreads() {
  stop();
  for (auto& thread : threads_) thread->thread.join();
}

void TextThreads::stop() {
  for (auto& thread : threads_) {
    const std::lock_guard lock(thread->mutex);
    thread->stopping = true;
    thread->arrived.notify_one();
  }
}

bool TextThreads::push(Thread& thread, std::shared_ptr<TextJob> job, bool starting) {
  if (starting && thread.starting.fetch_add(1, std::memory_order_relaxed) >= max_starting_) {
    thread.starting.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  bool notify = false;
  {
    const std::lock_guard lock(thread.mutex);
    if (thread.stopping) return false;
    notify = thread.sleeping && thread.queue.empty();
    thread.queue.push_back({std::move(job), starting});
  }
  if (notify) thread.arrived.notify_one();
  return true;
}

bool TextThreads::start(std::shared_ptr<TextJob> job) {
  job->thread_ = next_.fetch_add(1, std::memory_order_relaxed) % threads_.size();
  job->due_.store(true, std::memory_order_relaxed);
  Thread& thread = *threads_[job->thread_];
  return push(thread, std::move(job), true);
}

bool TextThreads::run(std::function<void()> task) { return start(std::make_shared<Task>(std::move(task))); }

void TextThreads::wake(std::shared_ptr<TextJob> job) {
  if (job->due_.exchange(true, std::memory_order_seq_cst)) return;
  Thread& thread = *threads_[job->thread_];
  push(thread, std::move(job), false);
}

void TextThreads::watch(const std::shared_ptr<TextJob>& job) { threads_[job->thread_]->watched.insert(job); }
void TextThreads::forget(const std::shared_ptr<TextJob>& job) { threads_[job->thread_]->watched.erase(job); }

}  // namespace tandem
