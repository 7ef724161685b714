// A few threads that do what costs time and belongs to one request: templates, tokenizing, detokenizing, writing. A job always runs on
// the same thread, never twice at once, so it needs no lock for what only it touches. wake() costs nothing when the job is due already.
#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

namespace tandem {

class TextJob {
 public:
  virtual ~TextJob() = default;
  virtual void work() = 0;                                           // something was woken for; must not throw
  virtual void tick(std::chrono::steady_clock::time_point now) = 0;  // now and then, while the job is watched

 private:
  friend class TextThreads;
  std::atomic<bool> due_{false};
  size_t thread_ = 0;
};

class TextThreads {
 public:
  TextThreads(int threads, int max_starting);
  ~TextThreads();  // runs what is queued, then ends

  // A new job: gives it a thread and wakes it. False when that thread has max_starting of them waiting.
  bool start(std::shared_ptr<TextJob> job);
  bool run(std::function<void()> task);  // once, on any of the threads; the same bound
  void wake(std::shared_ptr<TextJob> job);
  // From the job's own thread: tick() it until it is forgotten.
  void watch(const std::shared_ptr<TextJob>& job);
  void forget(const std::shared_ptr<TextJob>& job);
  void stop();  // what is woken later is dropped

 private:
  struct Thread;
  bool push(Thread& thread, std::shared_ptr<TextJob> job, bool starting);
  std::vector<std::unique_ptr<Thread>> threads_;
  std::atomic<size_t> next_{0};
  size_t max_starting_;
};

}  // namespace tandem
