#include "kernels/cpu/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "kernels/base/error.h"
#include "kernels/base/philox.h"

namespace tandem::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(int64_t vocab, double deviation, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, deviation);
  std::vector<float> logits(static_cast<size_t>(vocab));
  for (float& v : logits) v = static_cast<float>(normal(random));
  return logits;
}

Sampled draw(const std::vector<float>& logits, const Sampling& s, int32_t position = 0, std::vector<TokenCount> counts = {},
             std::vector<int32_t> forbidden = {}) {
  const auto vocab = static_cast<int64_t>(logits.size());
  std::vector<std::byte> scratch(sample_scratch_bytes(vocab) + 64, std::byte{0xff});
  SampleRow row;
  row.position = position, row.sampling = &s, row.counts = counts, row.forbidden = forbidden;
  const Sampled sampled = sample_row(logits.data(), vocab, row, scratch.data());
  for (size_t i = scratch.size() - 64; i < scratch.size(); ++i) EXPECT_EQ(scratch[i], std::byte{0xff}) << "written past the scratch";
  return sampled;
}

// What transformers' processors and warpers leave, with full sorts in double precision: probabilities by id.
std::vector<double> reference(const std::vector<float>& logits, const Sampling& s, const std::vector<TokenCount>& counts = {},
                              const std::vector<int32_t>& forbidden = {}) {
  constexpr double kGone = -std::numeric_limits<double>::infinity();
  const size_t n = logits.size();
  std::vector<double> scores(logits.begin(), logits.end());
  for (const TokenCount& c : counts) {
    double& v = scores[static_cast<size_t>(c.id)];
    v = v < 0 ? v * s.repetition_penalty : v / s.repetition_penalty;
    if (c.generated > 0) v -= s.presence_penalty + s.frequency_penalty * static_cast<double>(c.generated);
  }
  for (const int32_t id : forbidden) scores[static_cast<size_t>(id)] = kGone;
  for (double& v : scores) v /= s.temperature;
  const auto softmax = [&] {
    const double highest = *std::max_element(scores.begin(), scores.end());
    std::vector<double> p(n);
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += p[i] = std::exp(scores[i] - highest);
    for (double& v : p) v /= sum;
    return p;
  };
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (s.top_k > 0 && static_cast<size_t>(s.top_k) < n) {
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    const double kth = scores[order[static_cast<size_t>(s.top_k) - 1]];
    for (double& v : scores) v = v < kth ? kGone : v;
  }
  if (s.top_p < 1) {
    const auto p = softmax();
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    double before = 0;
    for (size_t i = 0; i < n; ++i) {
      if (i > 0 && before >= s.top_p) scores[order[i]] = kGone;
      before += p[order[i]];
    }
  }
  if (s.min_p > 0) {
    const auto p = softmax();
    const double highest = *std::max_element(p.begin(), p.end());
    for (size_t i = 0; i < n; ++i) scores[i] = p[i] < s.min_p * highest ? kGone : scores[i];
  }
  if (s.typical_p < 1) {
    const auto p = softmax();
    double entropy = 0;
    for (const double v : p) entropy -= v > 0 ? v * std::log(v) : 0.0;
    std::vector<double> shifted(n);
    for (size_t i = 0; i < n; ++i) shifted[i] = p[i] > 0 ? std::abs(-std::log(p[i]) - entropy) : std::numeric_limits<double>::infinity();
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return shifted[a] < shifted[b]; });
    double before = 0, last = 0;
    for (size_t i = 0; i < n && (i == 0 || before < s.typical_p); ++i) last = shifted[order[i]], before += p[order[i]];
    for (size_t i = 0; i < n; ++i) scores[i] = shifted[i] > last + 1e-7 ? kGone : scores[i];
  }
  return softmax();
}

Sampling sampling(float temperature) {
  Sampling s;
  s.temperature = temperature;
  return s;
}

std::vector<Sampling> settings() {
  std::vector<Sampling> all;
  for (const float t : {1.0f, 0.3f, 2.0f}) all.push_back(sampling(t));
  Sampling s = sampling(1);
  s.top_k = 5, all.push_back(s);
  s = sampling(1.5f), s.top_p = 0.7f, all.push_back(s);
  s = sampling(1), s.top_p = 0.05f, all.push_back(s);
  s = sampling(1), s.min_p = 0.2f, all.push_back(s);
  s = sampling(1), s.typical_p = 0.5f, all.push_back(s);
  s = sampling(0.8f), s.top_k = 20, s.top_p = 0.9f, s.min_p = 0.02f, all.push_back(s);
  s = sampling(1), s.top_k = 30, s.typical_p = 0.8f, s.top_p = 0.95f, all.push_back(s);
  s = sampling(1), s.repetition_penalty = 1.7f, s.presence_penalty = 0.4f, s.frequency_penalty = 0.3f, s.top_k = 40, all.push_back(s);
  return all;
}

// Pearson's statistic against its mean and deviation: draws at many positions follow the reference distribution.
TEST(Sample, DrawsFollowTheReferenceDistribution) {
  constexpr int kDraws = 20000;
  const auto logits = random_logits(97, 2, 11);
  const std::vector<TokenCount> counts = {{3, 1, 0}, {4, 0, 2}, {50, 2, 1}};
  const std::vector<int32_t> forbidden = {7, 8};
  for (size_t k = 0; k < settings().size(); ++k) {
    Sampling s = settings()[k];
    s.seed = 1234 + k;
    SCOPED_TRACE("setting " + std::to_string(k));
    const bool penalized = s.repetition_penalty != 1;
    const auto p = reference(logits, s, penalized ? counts : std::vector<TokenCount>{}, forbidden);
    std::vector<int> seen(logits.size(), 0);
    for (int i = 0; i < kDraws; ++i)
      ++seen[static_cast<size_t>(draw(logits, s, i, penalized ? counts : std::vector<TokenCount>{}, forbidden).id)];
    double statistic = 0, freedom = -1, rest = 0, rest_seen = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      if (p[i] == 0) {
        EXPECT_EQ(seen[i], 0) << "id " << i << " had been filtered out";
      } else if (p[i] * kDraws < 5) {
        rest += p[i], rest_seen += seen[i];
      } else {
        statistic += std::pow(seen[i] - p[i] * kDraws, 2) / (p[i] * kDraws);
        ++freedom;
      }
    }
    if (rest * kDraws >= 5) statistic += std::pow(rest_seen - rest * kDraws, 2) / (rest * kDraws), ++freedom;
    EXPECT_LE(statistic, freedom + 5 * std::sqrt(2 * std::max(freedom, 1.0)));
  }
}

// Larger vocabularies reach the selection by buckets: every id drawn is one that the reference keeps, and the kept mass agrees.
TEST(Sample, SelectionAgreesWithSorting) {
  for (const int64_t vocab : {1, 2, 17, 1000, 4099, 50257}) {
    for (const double deviation : {0.0, 0.01, 1.0, 4.0}) {
      const auto logits = random_logits(vocab, deviation, 3 + static_cast<uint64_t>(vocab));
      for (size_t k = 0; k < settings().size(); ++k) {
        Sampling s = settings()[k];
        if (s.repetition_penalty != 1) continue;
        SCOPED_TRACE("vocab " + std::to_string(vocab) + " deviation " + std::to_string(deviation) + " setting " + std::to_string(k));
        const auto p = reference(logits, s);
        for (int position = 0; position < 20; ++position) {
          const int32_t id = draw(logits, s, position).id;
          ASSERT_GT(p[static_cast<size_t>(id)], 0.0) << "id " << id;
          // The draw inverts the cumulative distribution in order of ids.
          const double u = philox_uniform(s.seed, static_cast<uint32_t>(position), 0, 0);
          double below = 0;
          for (int32_t i = 0; i < id; ++i) below += p[static_cast<size_t>(i)];
          ASSERT_NEAR(std::clamp(u, below, below + p[static_cast<size_t>(id)]), u, 2e-4);
        }
      }
    }
  }
}

TEST(Sample, GreedyTakesTheLowestOfTheBest) {
  std::vector<float> logits = random_logits(1003, 1, 5);
  logits[700] = logits[31] = logits[1002] = 9;
  EXPECT_EQ(draw(logits, sampling(0)).id, 31);
  EXPECT_EQ(draw(logits, sampling(0), 0, {}, {31}).id, 700);
  Sampling s = sampling(0);
  s.repetition_penalty = 2;
  EXPECT_EQ(draw(logits, s, 0, {{31, 1, 0}}).id, 700);
  s = sampling(0), s.frequency_penalty = 1;
  EXPECT_EQ(draw(logits, s, 0, {{31, 5, 0}, {700, 0, 1}}).id, 31);  // of generated ids only
  logits.assign(300, -kInfinity);
  logits[299] = -5;
  EXPECT_EQ(draw(logits, sampling(0)).id, 299);
  logits[3] = kInfinity;
  EXPECT_EQ(draw(logits, sampling(1)).id, 3);
  EXPECT_EQ(draw({4.0f}, sampling(0)).id, 0);
}

TEST(Sample, TiesAtTheTopKThresholdAllStay) {
  const std::vector<float> logits(200, 1.0f);
  Sampling s = sampling(1);
  s.top_k = 3;
  std::set<int32_t> ids;
  for (int i = 0; i < 3000; ++i) ids.insert(draw(logits, s, i).id);
  EXPECT_EQ(ids.size(), 200u);
  s = sampling(1), s.top_p = 0.0999f;  // lower ids first: 20 of them
  ids.clear();
  for (int i = 0; i < 3000; ++i) ids.insert(draw(logits, s, i).id);
  EXPECT_EQ(ids.size(), 20u);
  EXPECT_EQ(*ids.rbegin(), 19);
}

TEST(Sample, ReportsLogProbabilitiesOfTheRawLogits) {
  const auto logits = random_logits(5003, 2, 6);
  double sum = 0;
  for (const float v : logits) sum += std::exp(static_cast<double>(v));
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  for (const int32_t wanted : {0, 1, 5, 20, 50}) {
    Sampling s = sampling(0.7f);
    s.logprobs = wanted, s.top_k = 10, s.repetition_penalty = 3;
    const Sampled got = draw(logits, s, 4, {{order[0], 1, 1}}, {order[1]});
    EXPECT_NE(got.id, order[1]);
    EXPECT_NEAR(got.logprob, logits[got.id] - std::log(sum), 1e-5);
    ASSERT_EQ(got.top_count, std::min(wanted, kMaxLogprobs));
    for (int32_t i = 0; i < got.top_count; ++i) {
      EXPECT_EQ(got.top_ids[i], order[i]);
      EXPECT_NEAR(got.top_logprobs[i], logits[order[i]] - std::log(sum), 1e-5);
    }
  }
  EXPECT_EQ(draw(logits, sampling(0)).top_count, 0);
}

TEST(Sample, RefusesNaNAndEmptyChoices) {
  for (const int64_t vocab : {1, 15, 16, 33, 1000}) {
    for (const int64_t at : {int64_t{0}, vocab / 2, vocab - 1}) {
      auto logits = random_logits(vocab, 1, 1);
      logits[static_cast<size_t>(at)] = std::numeric_limits<float>::quiet_NaN();
      for (const float t : {0.0f, 1.0f}) {
        try {
          draw(logits, sampling(t));
          ADD_FAILURE() << "NaN at " << at << " of " << vocab;
        } catch (const Error& e) {
          EXPECT_EQ(e.code, Code::internal);
          EXPECT_EQ(e.message, "logits hold NaN");
        }
      }
    }
  }
  EXPECT_THROW(draw({1, 2}, sampling(1), 0, {}, {0, 1}), Error);
  EXPECT_THROW(draw({-kInfinity, -kInfinity}, sampling(0)), Error);
}

TEST(Sample, DependsOnSeedAndPositionOnly) {
  const auto logits = random_logits(1000, 1, 9);
  Sampling s = sampling(1);
  s.seed = 77;
  const int32_t id = draw(logits, s, 12).id;
  EXPECT_EQ(draw(logits, s, 12).id, id);
  int different = 0;
  for (int i = 0; i < 50; ++i) different += draw(logits, s, i).id != id;
  EXPECT_GT(different, 40);
}

TEST(Sample, ExtremeTemperaturesAndFilters) {
  const auto logits = random_logits(3000, 3, 10);
  const int32_t best = draw(logits, sampling(0)).id;
  EXPECT_EQ(draw(logits, sampling(1e-7f), 3).id, best);
  for (const float top_p : {0.0f, 1e-9f}) {
    Sampling s = sampling(1);
    s.top_p = top_p;
    EXPECT_EQ(draw(logits, s, 3).id, best);
  }
  Sampling s = sampling(1);
  s.min_p = 5;
  EXPECT_EQ(draw(logits, s, 3).id, best);
  s = sampling(1), s.top_k = 1;
  EXPECT_EQ(draw(logits, s, 3).id, best);
  s = sampling(1e20f), s.top_p = 0.999999f;
  draw(logits, s, 3);
  auto wild = logits;
  wild[5] = 3e38f, wild[6] = -3e38f;
  s = sampling(1), s.top_p = 0.5f, s.typical_p = 0.5f;
  EXPECT_EQ(draw(wild, s, 3).id, 5);
}

// Not a benchmark, a ceiling: no full sort of a large vocabulary.
TEST(Sample, LargeVocabulariesTakeWellUnderAMillisecond) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "times under a sanitizer mean nothing";
#endif
  constexpr int64_t kVocab = 151936;
  const auto logits = random_logits(kVocab, 2.5, 21);
  std::vector<std::byte> scratch(sample_scratch_bytes(kVocab));
  Sampling top_k = sampling(1), top_p = sampling(1), both = sampling(0.8f), greedy = sampling(0), plain = sampling(1),
           logprobs = sampling(0), typical = sampling(1);
  top_k.top_k = 50;
  top_p.top_p = 0.9f;
  both.top_k = 40, both.top_p = 0.95f, both.min_p = 0.05f;
  logprobs.logprobs = 20;
  typical.typical_p = 0.9f;
  for (const auto& [name, s] : {std::pair{"greedy", &greedy},
                                {"logprobs 20", &logprobs},
                                {"plain", &plain},
                                {"top-k 50", &top_k},
                                {"top-p 0.9", &top_p},
                                {"top-k 40 top-p 0.95 min-p", &both},
                                {"typical-p 0.9", &typical}}) {
    double best = 1;
    for (int i = 0; i < 20; ++i) {
      SampleRow row;
      row.position = i, row.sampling = s;
      const auto start = std::chrono::steady_clock::now();
      sample_row(logits.data(), kVocab, row, scratch.data());
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    RecordProperty(name, std::to_string(best * 1e6) + " us");
    std::printf("  %-28s %7.1f us\n", name, best * 1e6);
    EXPECT_LT(best, 0.01);
  }
}

}  // namespace
}  // namespace tandem::cpu
