#include "kernels/base/threads.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/error.h"

namespace tandem {
namespace {

using Word = std::atomic<uint32_t>;
static_assert(sizeof(Word) == 4 && Word::is_always_lock_free);

void futex_wait(Word& word, uint32_t seen) { syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0); }
void futex_wake_all(Word& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int32_t kMostSpin = 20'000, kLeastSpin = 1'000;  // ns

// A number that only grows, which members wait on. Its own cache line: spinning readers must not slow the arrivals down.
struct alignas(64) Generation {
  Word value{0};
  alignas(64) Word sleepers{0};
  std::atomic<int32_t> budget{0};  // ns to spin; learned, see wait
  std::atomic<uint32_t> waits{0};

  // Returns once the value is no longer `seen`. Spins at most `most` ns. Spinning in vain holds up whoever else wants the core, who
  // may well be the one waited for: each time halves the next spin, each success doubles it, and now and then all of it is tried.
  void wait(uint32_t seen, int32_t most) {
    if (most > 0) {
      const bool probe = waits.fetch_add(1, std::memory_order_relaxed) % 16 == 0;
      const int32_t learned = budget.load(std::memory_order_relaxed), spin = probe ? most : learned;
      const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(spin);
      do {
        for (int i = 0; i < 32; ++i) {
          if (value.load(std::memory_order_acquire) != seen) {
            const int32_t more = probe ? most : std::min(most, learned * 2);
            if (more != learned) budget.store(more, std::memory_order_relaxed);
            return;
          }
          pause();
        }
      } while (std::chrono::steady_clock::now() < end);
      budget.store(std::max(learned / 2, kLeastSpin), std::memory_order_relaxed);
    }
    // Sequentially consistent with advance(): either we see the new value, or it sees us.
    sleepers.fetch_add(1);
    while (value.load() == seen) futex_wait(value, seen);
    sleepers.fetch_sub(1);
  }
  void advance() {
    value.fetch_add(1);
    if (sleepers.load() > 0) futex_wake_all(value);
  }
};

struct Stopped {};  // thrown in members whose barrier will never be complete, because another member threw

}  // namespace

struct Team::State {
  Generation start, joined, done;
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int> running{0};
  std::atomic<bool> failed{false}, leaving{false};
  const std::function<void(int)>* work = nullptr;
  int32_t spin = 0;          // at most, ns
  std::mutex failure_mutex;  // taken only to record an exception
  std::exception_ptr failure;
  int failure_member = 0;
  std::vector<std::thread> threads;

  void perform(int member) {
    try {
      (*work)(member);
    } catch (const Stopped&) {
    } catch (...) {
      {
        std::lock_guard lock(failure_mutex);
        if (!failure || member < failure_member) failure = std::current_exception(), failure_member = member;
      }
      failed.store(true);
      joined.advance();  // whoever waits for this member must look
    }
  }
};

Team::Team(int size) : state_(std::make_unique<State>()), size_(size) {
  if (size < 1 || size > 64) bad_input("threads", std::to_string(size) + " threads (1 to 64)");
  // Members that outnumber the cores would only keep each other from running while they spin.
  state_->spin = size <= allowed_cores() ? kMostSpin : 0;
  for (Generation* g : {&state_->start, &state_->joined, &state_->done}) g->budget.store(state_->spin, std::memory_order_relaxed);
  const auto loop = [state = state_.get()](int member) {
    for (uint32_t seen = 0;; ++seen) {
      state->start.wait(seen, state->spin);
      if (state->leaving.load(std::memory_order_acquire)) return;
      state->perform(member);
      if (state->running.fetch_sub(1, std::memory_order_acq_rel) == 1) state->done.advance();
    }
  };
  for (int member = 1; member < size; ++member) state_->threads.emplace_back(loop, member);
}

Team::~Team() {
  state_->leaving.store(true, std::memory_order_release);
  state_->start.advance();
  for (auto& thread : state_->threads) thread.join();
}

void Team::run(const std::function<void(int)>& work) {
  if (size_ == 1) return work(0);
  State& s = *state_;
  const uint32_t seen = s.done.value.load(std::memory_order_relaxed);
  s.work = &work;
  s.running.store(size_ - 1, std::memory_order_relaxed);
  s.start.advance();
  s.perform(0);
  s.done.wait(seen, s.spin);
  if (s.failed.load()) {
    s.failed.store(false);
    s.arrived.store(0);
    std::rethrow_exception(std::exchange(s.failure, nullptr));
  }
}

void Team::barrier() {
  if (size_ == 1) return;
  State& s = *state_;
  const uint32_t seen = s.joined.value.load(std::memory_order_acquire);
  if (s.failed.load(std::memory_order_acquire)) throw Stopped{};
  if (s.arrived.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    s.arrived.store(0, std::memory_order_relaxed);
    s.joined.advance();
    return;
  }
  s.joined.wait(seen, s.spin);
  if (s.failed.load(std::memory_order_acquire)) throw Stopped{};
}

int allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
  const unsigned count = std::thread::hardware_concurrency();  // more cores than a cpu_set_t holds
  return count > 0 ? static_cast<int>(count) : 1;
}

}  // namespace tandem
