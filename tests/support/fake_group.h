// A worker group without workers: one thread that carries steps out on SimulatedWorkers, after a delay, and fails on demand. Broken rules
// are kept in violation(). For tests of the engine and of everything above it.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/serving/worker_group.h"
#include "tests/support/limit.h"
#include "tests/support/simulated_workers.h"

namespace tandem {

struct FakeGroupOptions {
  std::chrono::microseconds step_time{0};
  std::chrono::microseconds load_time{0};
  bool thorough = true;
  bool restartable = true;
  // What happens to a step (epoch, number): nothing, or the group fails, falls silent, or answers nonsense.
  enum class Fate : uint8_t { fine, fails, hangs, lies };
  std::function<Fate(uint32_t, uint64_t)> fate;
  std::function<bool(uint32_t)> loads;  // false: this epoch is lost while loading
};

class FakeGroup : public WorkerGroup {
 public:
  explicit FakeGroup(EngineOptions engine, FakeGroupOptions options = {}) : engine_(std::move(engine)), options_(std::move(options)) {}
  ~FakeGroup() override { end(); }

  void start(uint32_t epoch, GroupEvents events) override {
    end();
    ++starts;
    over_ = false;
    thread_ = std::thread([this, epoch, events = std::move(events)] { run(epoch, events); });
  }
  void submit(StepBytes step) override {
    std::lock_guard lock(mutex_);
    bytes += step->size();
    queue_.push_back(std::move(step));
    arrived_.notify_one();
  }
  void stop() override {
    ++stops;
    end();
  }
  void kill() override {
    ++kills;
    end();
  }
  bool restartable() const override { return options_.restartable; }
  void set_restartable(bool yes) { options_.restartable = yes; }

  std::optional<std::string> violation() const {
    std::lock_guard lock(mutex_);
    return violation_;
  }
  int32_t held_slots() const {  // by the workers, after the last step; while no step is under way
    std::lock_guard lock(mutex_);
    return held_;
  }
  std::atomic<int> starts{0}, stops{0}, kills{0}, steps{0};
  std::atomic<uint64_t> bytes{0};

 private:
  void end() {
    {
      std::lock_guard lock(mutex_);
      over_ = true;
      arrived_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
    queue_.clear();
  }

  bool pause(std::chrono::microseconds time) {  // false when ended meanwhile
    if (time.count() == 0) return true;
    std::unique_lock lock(mutex_);
    return !arrived_.wait_for(lock, time, [&] { return over_; });
  }

  void run(uint32_t epoch, const GroupEvents& events) {
    if (!pause(options_.load_time)) return;
    if (options_.loads && !options_.loads(epoch)) {
      events.lost(epoch, Error(Code::not_found, "fake", "nothing to load"));
      return;
    }
    SimulatedWorkers workers(engine_, options_.thorough);
    events.ready(epoch, {RankInfo{.rank = 0, .pid = 1, .host = "here", .device = "fake"}});
    for (;;) {
      StepBytes bytes;
      {
        std::unique_lock lock(mutex_);
        arrived_.wait(lock, [&] { return over_ || !queue_.empty(); });
        if (over_) return;
        bytes = std::move(queue_.front());
        queue_.pop_front();
      }
      if (!pause(options_.step_time)) return;
      const Step step = decode_step(*bytes);
      const auto fate = options_.fate ? options_.fate(epoch, step.number) : FakeGroupOptions::Fate::fine;
      if (fate == FakeGroupOptions::Fate::fails) {
        events.lost(epoch, Error(Code::unavailable, "rank 1", "died"));
        return;
      }
      if (fate == FakeGroupOptions::Fate::hangs) {
        std::unique_lock lock(mutex_);
        arrived_.wait(lock, [&] { return over_; });
        return;
      }
      try {
        StepResult result = workers.apply(step);
        if (fate == FakeGroupOptions::Fate::lies) result.tokens.push_back({.slot = 99});
        {
          std::lock_guard lock(mutex_);
          held_ = workers.held_slots();
        }
        ++steps;
        events.result(std::move(result));
      } catch (const std::logic_error& error) {
        {
          std::lock_guard lock(mutex_);
          violation_ = error.what();
        }
        events.lost(epoch, Error(Code::internal, "fake", error.what()));
        return;
      }
    }
  }

  EngineOptions engine_;
  FakeGroupOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<StepBytes> queue_;
  std::optional<std::string> violation_;
  int32_t held_ = 0;
  bool over_ = false;
  std::thread thread_;
};

// Keeps what it is told; any thread may wait for the end.
class FakeSink : public RequestSink {
 public:
  std::function<void(const RequestEvent&)> on_event;  // on the engine's thread

  void push(RequestEvent event) override {
    if (on_event) on_event(event);
    std::lock_guard lock(mutex_);
    if (ended_) ++after_end_;
    for (const StepToken& t : event.tokens) ids_.push_back(t.id);
    for (const StepLogits& l : event.logits) rows_ += l.rows;
    if (event.finish != FinishReason::none || event.error) {
      ended_ = true;
      last_ = std::move(event);
      changed_.notify_all();
    }
    if (!ids_.empty()) changed_.notify_all();
  }
  bool wait(std::chrono::milliseconds timeout = limit(20000)) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return ended_; });
  }
  bool wait_for_tokens(size_t count, std::chrono::milliseconds timeout = limit(20000)) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return ids_.size() >= count || ended_; });
  }
  bool ended() const {
    std::lock_guard lock(mutex_);
    return ended_;
  }
  int after_end() const {
    std::lock_guard lock(mutex_);
    return after_end_;
  }
  RequestEvent last() const {  // after the end
    std::lock_guard lock(mutex_);
    return last_;
  }
  std::vector<int32_t> ids() const {
    std::lock_guard lock(mutex_);
    return ids_;
  }
  int32_t rows() const {
    std::lock_guard lock(mutex_);
    return rows_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> ids_;
  int32_t rows_ = 0;
  RequestEvent last_;
  bool ended_ = false;
  int after_end_ = 0;
};

}  // namespace tandem
