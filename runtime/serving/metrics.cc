#include "runtime/serving/metrics.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace tandem {

void Histogram::observe(double seconds) {
  const double units = seconds * 1e5;  // of 10 us
  const int bucket = units < 1 ? 0 : std::bit_width(static_cast<uint64_t>(std::min(units, 1e12)));
  counts_[static_cast<size_t>(std::min(bucket, kBuckets - 1))].add();
  sum_.store(sum_.load(std::memory_order_relaxed) + seconds, std::memory_order_relaxed);
}

Histogram::Snapshot Histogram::snapshot() const {
  Snapshot s;
  for (int i = 0; i < kBuckets; ++i) {
    if (i + 1 < kBuckets) s.bounds.push_back(1e-5 * std::ldexp(1.0, i));
    s.counts.push_back(counts_[static_cast<size_t>(i)].value());
    s.count += s.counts.back();
  }
  s.sum = sum_.load(std::memory_order_relaxed);
  return s;
}

double Histogram::Snapshot::quantile(double q) const {
  uint64_t seen = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    seen += counts[i];
    if (count && static_cast<double>(seen) >= q * static_cast<double>(count)) return bounds[std::min(i, bounds.size() - 1)];
  }
  return 0;
}

}  // namespace tandem
