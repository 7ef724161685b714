#include "launch/logit_scores.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace tandem {
namespace {

TEST(LogitScores, OfDistributionsThatAreKnown) {
  const std::vector<float> even = {3, 3, 3, 3}, halves = {0, static_cast<float>(std::log(2.0)), static_cast<float>(std::log(4.0)), 0};  // 1/8, 1/4, 1/2, 1/8
  EXPECT_NEAR(negative_log_likelihood(even, 2), std::log(4.0), 1e-12);
  EXPECT_NEAR(negative_log_likelihood(halves, 2), std::log(2.0), 1e-7);
  EXPECT_NEAR(divergence(halves, halves), 0, 1e-15);
  // 1/2 log((1/2)/(1/4)) + 2/8 log((1/8)/(1/4)) = (1/2 - 1/4) log 2
  EXPECT_NEAR(divergence(halves, even), 0.25 * std::log(2.0), 1e-7);
  // 1/4 (log 2 + 0 + log 1/2 + log 2)
  EXPECT_NEAR(divergence(even, halves), 0.25 * std::log(2.0), 1e-7);
  EXPECT_TRUE(same_best(halves, std::vector<float>{-9, 0, 7, 6}));
  EXPECT_FALSE(same_best(halves, std::vector<float>{-9, 8, 7, 6}));
  const std::vector<float> far = {1e30f, -1e30f};  // nothing overflows
  EXPECT_EQ(negative_log_likelihood(far, 0), 0);
  EXPECT_EQ(divergence(far, far), 0);
}

}  // namespace
}  // namespace tandem
