#include "runtime/serving/metrics.h"

#include <gtest/gtest.h>

#include <numeric>

namespace tandem {
namespace {

TEST(Metrics, HistogramPutsDurationsBelowTheirBound) {
  Histogram h;
  for (const double seconds : {0.0, 9e-6, 1.1e-5, 0.001, 0.5, 1e9}) h.observe(seconds);
  const Histogram::Snapshot s = h.snapshot();
  EXPECT_EQ(s.count, 6u);
  EXPECT_EQ(std::accumulate(s.counts.begin(), s.counts.end(), uint64_t{0}), 6u);
  EXPECT_EQ(s.counts[0], 2u);
  EXPECT_EQ(s.counts[1], 1u);
  EXPECT_EQ(s.counts.back(), 1u);
  EXPECT_EQ(s.bounds.size() + 1, s.counts.size());
  EXPECT_DOUBLE_EQ(s.bounds[0], 1e-5);
  EXPECT_DOUBLE_EQ(s.bounds[3], 8e-5);
}

TEST(Metrics, QuantilesAreUpperBounds) {
  Histogram h;
  EXPECT_EQ(h.snapshot().quantile(0.5), 0);
  for (int i = 0; i < 99; ++i) h.observe(0.001);
  h.observe(1);
  EXPECT_NEAR(h.snapshot().quantile(0.5), 0.00128, 1e-9);
  EXPECT_GE(h.snapshot().quantile(1.0), 1.0);
}

}  // namespace
}  // namespace tandem
