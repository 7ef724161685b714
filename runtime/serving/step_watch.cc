#include "runtime/serving/step_watch.h"

#include <algorithm>

namespace tandem {
namespace {

constexpr double kUnmeasuredSecondsPerRow = 0.25, kTimesTheAverage = 20, kOfTheNewest = 0.1;

double seconds(StepWatch::Time::duration time) { return std::chrono::duration<double>(time).count(); }
void average(double& mean, double newest) { mean = mean == 0 ? newest : (1 - kOfTheNewest) * mean + kOfTheNewest * newest; }

}  // namespace

void StepWatch::reset() {
  flights_.clear();
  step_ = row_ = waited_ = 0;
}

void StepWatch::issued(uint64_t number, int32_t rows, Time now) {
  if (flights_.empty()) {
    progress_ = seen_ = now;
    waited_ = 0;
  }
  flights_.push_back({number, rows});
}

double StepWatch::committed(uint64_t number, Time now) {
  const double took = seconds(now - progress_);
  progress_ = seen_ = now;
  waited_ = 0;
  const auto flight = std::find_if(flights_.begin(), flights_.end(), [&](const Flight& f) { return f.number == number; });
  if (flight == flights_.end()) return took;
  average(step_, took);
  average(row_, took / std::max(1, flight->rows));
  flights_.erase(flight);
  return took;
}

double StepWatch::allowed() const {
  if (idle()) return least_;
  const int32_t rows = flights_.front().rows;
  if (step_ == 0) return least_ + kUnmeasuredSecondsPerRow * rows;
  return std::max(least_, kTimesTheAverage * std::max(step_, row_ * rows));
}

bool StepWatch::hung(Time now) {
  if (idle()) return false;
  waited_ += std::min(seconds(now - seen_), 2 * seconds(kLookEvery));
  seen_ = now;
  return waited_ > allowed();
}

}  // namespace tandem
