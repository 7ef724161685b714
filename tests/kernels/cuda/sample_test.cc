#include "kernels/cuda/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "kernels/base/error.h"
#include "kernels/cpu/sample.h"
#include "kernels/cuda/plan/sample_scratch.h"
#include "tests/kernels/cuda/device_memory.h"

namespace tandem::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Row {
  Sampling sampling;
  int32_t head = 0, position = 0;
  std::vector<TokenCount> counts;
  std::vector<int32_t> forbidden;
  std::vector<uint32_t> allowed;
};

struct Batch {
  int64_t vocab = 0;
  std::vector<float> logits;  // [heads, vocab]
  std::vector<Row> rows;
};

std::vector<Sampled> on_cpu(const Batch& batch) {
  std::vector<std::byte> scratch(cpu::sample_scratch_bytes(batch.vocab));
  std::vector<Sampled> all;
  for (const Row& row : batch.rows) {
    SampleRow r;
    r.position = row.position, r.sampling = &row.sampling, r.counts = row.counts, r.forbidden = row.forbidden, r.allowed = row.allowed;
    try {
      all.push_back(cpu::sample_row(batch.logits.data() + row.head * batch.vocab, batch.vocab, r, scratch.data()));
    } catch (const Error&) {
      all.push_back({-1, 0, 0, {}, {}});
    }
  }
  return all;
}

// The first `count` rows of a call that could take as many as the batch has.
std::vector<Sampled> on_device(const Batch& batch, bool plain, int32_t count = -1, bool dependent = true) {
  const auto most = static_cast<int32_t>(batch.rows.size());
  if (count < 0) count = most;
  std::vector<SampleRowOnDevice> rows;
  std::vector<TokenCount> counts(1);
  std::vector<int32_t> forbidden(1);
  std::vector<uint32_t> allowed(1);
  for (const Row& row : batch.rows) {
    SampleRowOnDevice r;
    r.head = row.head, r.position = row.position, r.slot = most - 1 - static_cast<int32_t>(rows.size()), r.sampling = row.sampling;
    r.counts_begin = static_cast<int32_t>(counts.size()), r.forbidden_begin = static_cast<int32_t>(forbidden.size());
    counts.insert(counts.end(), row.counts.begin(), row.counts.end());
    forbidden.insert(forbidden.end(), row.forbidden.begin(), row.forbidden.end());
    r.counts_end = static_cast<int32_t>(counts.size()), r.forbidden_end = static_cast<int32_t>(forbidden.size());
    r.allowed_begin = static_cast<int32_t>(allowed.size());
    allowed.insert(allowed.end(), row.allowed.begin(), row.allowed.end());
    r.allowed_end = static_cast<int32_t>(allowed.size());
    rows.push_back(r);
  }
  const DeviceInfo info = device_info();
  DeviceArray<float> logits(batch.logits);
  DeviceArray<SampleRowOnDevice> device_rows(rows);
  DeviceArray<TokenCount> device_counts(counts);
  DeviceArray<int32_t> device_forbidden(forbidden), device_count(std::vector<int32_t>{count}), last_ids(std::vector<int32_t>(most, -7));
  DeviceArray<uint32_t> device_allowed(allowed);
  DeviceArray<Sampled> out(static_cast<size_t>(most));
  DeviceArray<std::byte> scratch(sample_scratch_bytes(most, batch.vocab));
  const SampleScratch layout = sample_scratch(most, batch.vocab);  // values stay poisoned
  check(cudaMemset(scratch.data() + layout.rows, 0, layout.bytes - layout.rows), "counters");
  SampleCall call;
  call.count = device_count.data(), call.most_rows = most, call.rows = device_rows.data(), call.counts = device_counts.data();
  call.forbidden = device_forbidden.data(), call.allowed = device_allowed.data(), call.logits = logits.data(), call.vocab = batch.vocab, call.plain = plain;
  call.last_ids = last_ids.data(), call.out = out.data(), call.scratch = scratch.data();
  sample({nullptr, &info, dependent}, call);
  const std::vector<Sampled> first = out.host();
  out.poison();
  sample({nullptr, &info, dependent}, call);  // the counters are as they were, and the draws too
  const std::vector<Sampled> drawn = out.host();
  const std::vector<int32_t> ids = last_ids.host();
  for (int32_t i = 0; i < most; ++i) {
    const auto& d = drawn[static_cast<size_t>(i)];
    const int32_t id = ids[static_cast<size_t>(most - 1 - i)];
    EXPECT_EQ(id, i < count ? std::max(d.id, 0) : -7);
    EXPECT_EQ(std::memcmp(&d, &first[static_cast<size_t>(i)], 12), 0) << "row " << i << " differs from run to run";
    for (int32_t k = 0; k < (i < count ? d.top_count : 0); ++k) EXPECT_EQ(d.top_ids[k], first[static_cast<size_t>(i)].top_ids[k]);
    if (i >= count) {
      EXPECT_EQ(d.id, -1) << "a row past the count was drawn";  // poison
      EXPECT_EQ(d.top_count, -1);
    }
  }
  const std::vector<float> after = logits.host();
  EXPECT_EQ(std::memcmp(after.data(), batch.logits.data(), after.size() * sizeof(float)), 0) << "the logits were changed";
  return drawn;
}

// Both NaN, both the same infinity, or close.
bool near(float a, float b) { return (std::isnan(a) && std::isnan(b)) || a == b || std::abs(a - b) <= 2e-5f * std::max(1.0f, std::abs(b)); }

struct Tally { int rows = 0, drawn = 0, other = 0; };

// Draws may differ where a cumulative sum meets the random number to the last bits; nothing else may.
void compare(const Batch& batch, bool plain, Tally& tally, const std::string& what) {
  const std::vector<Sampled> expected = on_cpu(batch), got = on_device(batch, plain);
  for (size_t i = 0; i < expected.size(); ++i) {
    const Row& row = batch.rows[i];
    const float* logits = batch.logits.data() + row.head * batch.vocab;
    const Sampled &e = expected[i], &g = got[i];
    ++tally.rows;
    const bool random = row.sampling.temperature > 0 && e.id >= 0;
    tally.drawn += random;
    const std::string name = what + " vocab " + std::to_string(batch.vocab) + " row " + std::to_string(i);
    if (g.id != e.id) {
      ++tally.other;
      ASSERT_TRUE(random) << name << ": " << g.id << " for " << e.id;
      ASSERT_GE(g.id, 0) << name;
      ASSERT_LT(g.id, batch.vocab) << name;
      const Sampling& s = row.sampling;
      printf("  %s: id %d for %d; logits %.7g, %.7g; T %.3g k %d p %.3g min %.3g typical %.3g\n", name.c_str(), g.id, e.id,
             static_cast<double>(logits[g.id]), static_cast<double>(logits[e.id]), static_cast<double>(s.temperature), s.top_k,
             static_cast<double>(s.top_p), static_cast<double>(s.min_p), static_cast<double>(s.typical_p));
    }
    if (e.id < 0) continue;
    if (row.sampling.logprobs < 0) {
      ASSERT_EQ(g.top_count, 0) << name;
      continue;
    }
    if (g.id == e.id) {
      ASSERT_TRUE(near(g.logprob, e.logprob)) << name << ": logprob " << g.logprob << " for " << e.logprob;
    }
    ASSERT_EQ(g.top_count, std::max(e.top_count, 0)) << name;
    for (int32_t k = 0; k < e.top_count; ++k) {
      ASSERT_EQ(g.top_ids[k], e.top_ids[k]) << name << " best " << k;
      ASSERT_TRUE(near(g.top_logprobs[k], e.top_logprobs[k])) << name << " best " << k;
    }
  }
}

enum class Shape { normal, steep, ties, equal, sparse, wide };

Batch random_batch(int64_t vocab, int rows, uint64_t seed, bool plain) {
  std::mt19937_64 random(seed);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  const auto chance = [&](int percent) { return below(100) < percent; };
  const auto real = [&](float low, float high) { return low + (high - low) * static_cast<float>(below(1 << 20)) / (1 << 20); };
  Batch batch;
  batch.vocab = vocab;
  for (int i = 0; i < rows; ++i) {
    const auto shape = static_cast<Shape>(below(6));
    std::normal_distribution<float> normal(0, shape == Shape::steep ? 6.0f : 2.5f);
    for (int64_t k = 0; k < vocab; ++k) {
      float v = normal(random);
      if (shape == Shape::ties) v = std::round(v * 2) / 2;
      if (shape == Shape::equal) v = 1.25f;
      if (shape == Shape::sparse && k % 7 != 0) v = -kInfinity;
      if (shape == Shape::wide) v = k % 1000 == 0 ? v : v * 1e4f - 1e6f;  // a few, and a far tail
      batch.logits.push_back(v);
    }
    Row row;
    row.head = rows - 1 - i;
    row.position = static_cast<int32_t>(below(100000));
    Sampling& s = row.sampling;
    s.seed = random();
    s.choice = static_cast<uint32_t>(chance(70) ? 0 : below(5));
    s.logprobs = chance(40) ? -1 : static_cast<int32_t>(plain ? 0 : below(23));
    if (!plain) {
      if (!chance(15)) s.temperature = chance(30) ? 1.0f : real(0.05f, 2.5f);
      if (chance(40)) s.top_k = static_cast<int32_t>(chance(70) ? 1 + below(100) : 1 + below(vocab + 10));
      if (chance(50)) s.top_p = chance(10) ? 0.0f : real(0.01f, 0.99f);
      if (chance(25)) s.min_p = chance(10) ? 1.5f : real(0.001f, 0.5f);
      if (chance(25)) s.typical_p = real(0.05f, 0.99f);
      if (chance(30)) s.repetition_penalty = real(0.7f, 2.0f);
      if (chance(20)) s.presence_penalty = real(-1, 1);
      if (chance(20)) s.frequency_penalty = real(-0.5f, 0.5f);
      const int64_t seen = chance(50) ? below(std::min<int64_t>(vocab, 2000)) : 0, step = seen > 0 ? vocab / seen : 1, offset = below(step);
      for (int64_t k = 0; k < seen; ++k) {
        row.counts.push_back({static_cast<int32_t>(k * step + offset), static_cast<int32_t>(below(3)), static_cast<int32_t>(below(4))});
      }
      if (chance(10)) row.counts.push_back({static_cast<int32_t>(vocab + 3), 1, 1}), row.counts.push_back({-1, 1, 1});
      for (TokenCount& count : row.counts) {
        if (chance(20)) count.bias = real(-8, 8);
      }
      if (chance(20)) {
        row.allowed.resize(static_cast<size_t>(1 + below((vocab + 31) / 32)));
        const int64_t density = below(4);
        for (uint32_t& word : row.allowed) word = density == 0 ? ~uint32_t{0} : static_cast<uint32_t>(density == 1 ? random() & random() & random() : random());
      }
      if (chance(30)) {
        for (int64_t k = below(20); k > 0; --k) row.forbidden.push_back(static_cast<int32_t>(below(vocab + 2)) - 1);
      }
    }
    batch.rows.push_back(std::move(row));
  }
  return batch;
}

TEST(CudaSample, PlainRowsAreAsOnCpus) {
  TANDEM_NEEDS_GPU();
  Tally tally;
  for (const int64_t vocab : {1, 2, 3, 7, 509, 4099, 49152, 50257, 128256}) {
    for (const uint64_t seed : {1, 2}) compare(random_batch(vocab, vocab > 10000 ? 13 : 64, seed * 1000 + static_cast<uint64_t>(vocab), true), true, tally, "plain");
    ASSERT_FALSE(HasFatalFailure());
  }
  EXPECT_EQ(tally.other, 0);
}

TEST(CudaSample, EveryOptionIsAsOnCpus) {
  TANDEM_NEEDS_GPU();
  Tally tally;
  for (const auto& [vocab, batches] : {std::pair<int64_t, int>{1, 2}, {2, 4}, {7, 8}, {509, 16}, {4099, 8}, {49152, 6}, {50257, 3}, {128256, 8}, {450000, 1}}) {
    for (int b = 0; b < batches; ++b) {
      const uint64_t seed = 77 + static_cast<uint64_t>(vocab) * 100 + static_cast<uint64_t>(b);
      compare(random_batch(vocab, vocab < 1000 ? 64 : vocab > 200000 ? 20 : 48, seed, false), false, tally, "seed " + std::to_string(seed));
      ASSERT_FALSE(HasFatalFailure());
    }
  }
  printf("  %d rows, %d drawn at random, %d of them unlike the CPU's\n", tally.rows, tally.drawn, tally.other);
  EXPECT_LE(tally.other, tally.drawn / 200 + 1);
}

TEST(CudaSample, RowsDoNotDependOnTheirCompany) {
  TANDEM_NEEDS_GPU();
  for (const int64_t vocab : {509, 49152}) {
    Batch batch = random_batch(vocab, 24, 5, false);
    for (Row& row : batch.rows) row.sampling.logprobs = 3;
    batch.rows[3].sampling = {}, batch.rows[3].sampling.logprobs = 0, batch.rows[3].counts.clear(), batch.rows[3].forbidden.clear(), batch.rows[3].allowed.clear();
    const std::vector<Sampled> together = on_device(batch, false);
    for (const size_t i : {0, 3, 11, 23}) {
      Batch alone = batch;
      alone.rows = {batch.rows[i]};
      const Sampled one = on_device(alone, i == 3, -1, false)[0];
      EXPECT_EQ(one.id, together[i].id) << vocab << " row " << i;
      EXPECT_EQ(one.logprob, together[i].logprob) << vocab << " row " << i;
    }
  }
}

TEST(CudaSample, RowsPastTheCountAreLeftAlone) {
  TANDEM_NEEDS_GPU();
  const Batch batch = random_batch(509, 9, 3, false);
  for (const bool plain : {true, false}) {
    for (const int32_t count : {0, 1, 8}) on_device(batch, plain, count);
  }
}

// One scratch, calls of fewer and more rows by turns.
TEST(CudaSample, CallsShareTheScratch) {
  TANDEM_NEEDS_GPU();
  const DeviceInfo info = device_info();
  for (const int64_t vocab : {509, 450000}) {  // in shared memory, and not
    const Batch batch = random_batch(vocab, vocab < 1000 ? 300 : 40, 17, false);
    const auto most = static_cast<int32_t>(batch.rows.size());
    std::vector<SampleRowOnDevice> rows;
    for (const Row& row : batch.rows) {
      rows.push_back({row.head, row.position, static_cast<int32_t>(rows.size()), 0, 0, 0, 0, 0, 0, row.sampling});
    }
    Batch bare = batch;
    for (Row& row : bare.rows) row.counts.clear(), row.forbidden.clear(), row.allowed.clear();
    const std::vector<Sampled> expected = on_cpu(bare);
    DeviceArray<float> logits(batch.logits);
    DeviceArray<SampleRowOnDevice> device_rows(rows);
    DeviceArray<int32_t> last_ids(static_cast<size_t>(most));
    DeviceArray<Sampled> out(static_cast<size_t>(most));
    DeviceArray<std::byte> scratch(sample_scratch_bytes(most, vocab));
    scratch.zero();
    for (const int32_t count : {64, 65, most, 1, 130, most, 7, most}) {
      DeviceArray<int32_t> device_count(std::vector<int32_t>{std::min(count, most)});
      out.poison();
      SampleCall call;
      call.count = device_count.data(), call.most_rows = std::min(count, most), call.rows = device_rows.data(), call.logits = logits.data();
      call.vocab = vocab, call.last_ids = last_ids.data(), call.out = out.data(), call.scratch = scratch.data();
      sample({nullptr, &info, true}, call);
      const std::vector<Sampled> got = out.host();
      int other = 0;
      for (size_t i = 0; i < static_cast<size_t>(call.most_rows); ++i) other += got[i].id != expected[i].id;
      EXPECT_LE(other, 1) << "of " << call.most_rows << " rows of " << vocab;
    }
  }
}

TEST(CudaSample, RefusesNaNAndNothingLeft) {
  TANDEM_NEEDS_GPU();
  for (const int64_t vocab : {1, 7, 4099, 128256}) {
    Batch batch;
    batch.vocab = vocab;
    for (int i = 0; i < 6; ++i) {
      std::vector<float> logits(static_cast<size_t>(vocab), 0.5f);
      Row row;
      row.head = i;
      if (i < 2) logits[static_cast<size_t>(vocab - 1)] = std::numeric_limits<float>::quiet_NaN();
      if (i == 2 || i == 3) std::fill(logits.begin(), logits.end(), -kInfinity);
      if (i == 4) logits[static_cast<size_t>(vocab / 2)] = kInfinity, row.sampling.logprobs = 2;
      if (i == 5) {
        std::fill(logits.begin(), logits.end(), -kInfinity);
        logits[static_cast<size_t>(vocab / 2)] = 1;
        row.forbidden = {static_cast<int32_t>(vocab / 2)};
      }
      if (i % 2 == 1) row.sampling.temperature = 1, row.sampling.top_p = 0.5f;
      batch.rows.push_back(row);
      batch.logits.insert(batch.logits.end(), logits.begin(), logits.end());
    }
    Tally tally;
    compare(batch, false, tally, "refused");
    EXPECT_EQ(tally.other, 0);
    const std::vector<Sampled> plain = on_device(batch, true);
    EXPECT_EQ(plain[0].id, -1);
    EXPECT_EQ(plain[2].id, -1);
    EXPECT_EQ(plain[4].id, vocab / 2);
  }
}

// Keys that no cut into equal parts separates soon: a geometric row, and values a last bit apart.
TEST(CudaSample, HardRowsForSelection) {
  TANDEM_NEEDS_GPU();
  Batch batch;
  batch.vocab = 40000;
  for (int i = 0; i < 12; ++i) {
    Row row;
    row.head = i;
    for (int64_t k = 0; k < batch.vocab; ++k) {
      float v = i % 3 == 0 ? -std::ldexp(1.0f, -static_cast<int>(k % 140)) * (1 + static_cast<float>(k % 97) / 97) : 1;
      if (i % 3 == 1) v = std::nextafter(1.0f, k % 2 == 0 ? 0.0f : 2.0f) + static_cast<float>(k % 5000) * 0x1p-23f;
      if (i % 3 == 2) v = k % 11 == 0 ? 0 : std::numeric_limits<float>::denorm_min() * static_cast<float>(k % 30000);
      batch.logits.push_back(v);
    }
    row.sampling.temperature = 1, row.sampling.seed = static_cast<uint64_t>(i), row.position = i;
    if (i < 6) row.sampling.top_k = 9000 + i * 100;
    if (i >= 6 || i == 2) row.sampling.top_p = 0.3f;
    if (i >= 9) row.sampling.typical_p = 0.6f;
    batch.rows.push_back(row);
  }
  Tally tally;
  compare(batch, false, tally, "hard");
  EXPECT_LE(tally.other, 1);
}

}  // namespace
}  // namespace tandem::cuda
