// Counters and histograms of one engine, for whoever exports them. One thread writes (the engine's), any thread may read at any time;
// values of one moment need not agree with each other.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

namespace tandem {

class Counter {
 public:
  void add(uint64_t n = 1) { set(value() + n); }  // one writer: no atomic addition needed
  void set(uint64_t n) { value_.store(n, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// Of durations: bucket i counts those below 10 us * 2^i, the last one all others.
class Histogram {
 public:
  static constexpr int kBuckets = 28;  // up to 22 minutes
  struct Snapshot {
    std::vector<double> bounds;    // upper, seconds; one fewer than counts
    std::vector<uint64_t> counts;  // of each bucket, not cumulative
    uint64_t count = 0;
    double sum = 0;                   // seconds
    double quantile(double q) const;  // upper bound of the bucket that holds it; 0 when empty
  };
  void observe(double seconds);
  Snapshot snapshot() const;

 private:
  std::array<Counter, kBuckets> counts_;
  std::atomic<double> sum_{0};
};

struct Metrics {
  Counter requests, refused;  // accepted; refused for a full queue
  Counter finished_stop, finished_length, finished_stop_string, cancelled, failed;
  Counter prompt_tokens, cached_tokens, generated_tokens, dropped_tokens;  // dropped: run past a stop
  Counter steps, step_rows, prefill_tokens, preemptions, cache_evictions;
  Counter epochs, epochs_lost;
  Histogram ttft, itl, queue, request, step;  // step: result to result while busy
};

}  // namespace tandem
