// Notices a worker group that answers no more: how long steps take, and whether the one under way takes too long. Time counts only while
// this process runs and looks, so a suspended machine is no hung rank. A step is allowed max(least, 20 x what it should take by its rows);
// before anything was measured, least + a quarter of a second a row. Not thread-safe; the caller brings the time.
#pragma once
#include <chrono>
#include <cstdint>
#include <vector>

namespace tandem {

class StepWatch {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // While steps are in flight hung() is to be called at least this often; of longer silences only twice as much counts.
  static constexpr std::chrono::milliseconds kLookEvery{250};

  explicit StepWatch(double least_seconds) : least_(least_seconds) {}
  void reset();  // a new epoch
  void issued(uint64_t number, int32_t rows, Time now);
  double committed(uint64_t number, Time now);  // seconds since the result before it, or since its issue when nothing was in flight
  bool idle() const { return flights_.empty(); }
  double allowed() const;  // seconds for the oldest in flight
  bool hung(Time now);

 private:
  struct Flight {
    uint64_t number;
    int32_t rows;
  };
  double least_, step_ = 0, row_ = 0, waited_ = 0;  // seconds; moving averages a step, a row
  Time progress_, seen_;
  std::vector<Flight> flights_;
};

}  // namespace tandem
