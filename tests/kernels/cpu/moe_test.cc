#include "kernels/cpu/moe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace tandem::cpu {
namespace {

TEST(Moe, RoutesToTheBestExperts) {
  const float logits[] = {1, 3, -2, 3, 0.5f};
  int32_t chosen[3];
  float weights[3];
  route(logits, 5, 3, true, chosen, weights);
  EXPECT_EQ(chosen[0], 1);  // ties: the lower index
  EXPECT_EQ(chosen[1], 3);
  EXPECT_EQ(chosen[2], 0);
  const double sum = 2 + std::exp(-2.0);
  EXPECT_NEAR(weights[0], 1 / sum, 1e-6);
  EXPECT_NEAR(weights[2], std::exp(-2.0) / sum, 1e-6);
  route(logits, 5, 2, false, chosen, weights);
  const double all = sum + std::exp(-5.0) + std::exp(-2.5);
  EXPECT_NEAR(weights[1], 1 / all, 1e-6);
}

TEST(Moe, NaNLogitsAreNotHidden) {
  for (int at = 0; at < 4; ++at) {
    float logits[] = {1, 2, 3, 4};
    logits[at] = std::numeric_limits<float>::quiet_NaN();
    int32_t chosen[2];
    float weights[2];
    route(logits, 4, 2, true, chosen, weights);
    EXPECT_TRUE(std::isnan(weights[0]) || std::isnan(weights[1])) << at;
    for (const int32_t e : chosen) EXPECT_TRUE(e >= 0 && e < 4);
    EXPECT_NE(chosen[0], chosen[1]);
  }
}

TEST(Moe, GroupsByExpertThenRow) {
  std::mt19937_64 random(3);
  for (const int32_t rows : {1, 2, 17, 64}) {
    constexpr int32_t kExperts = 7, kTopK = 3, kBegin = 2, kLocal = 4;
    std::vector<int32_t> chosen, first(kLocal + 1), row(rows * kTopK), pair_of(rows * kTopK);
    for (int32_t i = 0; i < rows; ++i) {
      std::vector<int32_t> experts(kExperts);
      for (int32_t e = 0; e < kExperts; ++e) experts[e] = e;
      std::shuffle(experts.begin(), experts.end(), random);
      chosen.insert(chosen.end(), experts.begin(), experts.begin() + kTopK);
    }
    group(chosen.data(), rows, kTopK, kBegin, kLocal, {first.data(), row.data(), pair_of.data()});
    EXPECT_EQ(first[0], 0);
    int32_t pairs = 0;
    for (int32_t i = 0; i < rows * kTopK; ++i) {
      const int32_t e = chosen[i] - kBegin;
      if (e < 0 || e >= kLocal) {
        EXPECT_EQ(pair_of[i], -1);
        continue;
      }
      ++pairs;
      EXPECT_GE(pair_of[i], first[e]);
      EXPECT_LT(pair_of[i], first[e + 1]);
      EXPECT_EQ(row[pair_of[i]], i / kTopK);
    }
    EXPECT_EQ(first[kLocal], pairs);
    for (int32_t e = 0; e < kLocal; ++e) {
      for (int32_t i = first[e] + 1; i < first[e + 1]; ++i) EXPECT_LT(row[i - 1], row[i]);
    }
  }
}

TEST(Moe, UnitsAreCutOnceAndEvenly) {
  for (const int count : {1, 2, 3, 7, 64}) {
    const std::vector<std::pair<int64_t, int64_t>> experts = {{10, 9}, {10, 33}, {10, 8}, {1, 100}};  // units, cost
    int64_t total = 0;
    for (const auto& [units, cost] : experts) total += units * cost;
    int64_t before = 0;
    std::vector<int64_t> work(static_cast<size_t>(count), 0);
    for (const auto& [units, cost] : experts) {
      int64_t at = 0;
      for (int i = 0; i < count; ++i) {
        const UnitRange range = cut_units(units, cost, before, total, i, count);
        EXPECT_EQ(range.begin, at);
        EXPECT_LE(range.begin, range.end);
        work[static_cast<size_t>(i)] += (range.end - range.begin) * cost;
        at = range.end;
      }
      EXPECT_EQ(at, units);
      before += units * cost;
    }
    for (const int64_t w : work) EXPECT_LE(w, total / count + 100);
  }
}

TEST(Moe, JoinsInTheOrderOfTheChoice) {
  for (const int64_t width : {1, 15, 16, 17, 100}) {
    std::vector<float> results(static_cast<size_t>(3 * width)), out(static_cast<size_t>(width) + 1, 7.0f);
    for (size_t i = 0; i < results.size(); ++i) results[i] = static_cast<float>(i);
    const int32_t pair_of[] = {2, -1, 0};
    const float weights[] = {0.5f, 100, 0.25f};
    join(pair_of, weights, 3, results.data(), width, width, out.data());
    for (int64_t i = 0; i < width; ++i) EXPECT_FLOAT_EQ(out[i], 0.5f * results[2 * width + i] + 0.25f * results[i]);
    EXPECT_EQ(out[width], 7.0f);
  }
}

}  // namespace
}  // namespace tandem::cpu
