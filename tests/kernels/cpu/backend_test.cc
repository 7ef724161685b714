#include "kernels/cpu/backend.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>

#include "tests/kernels/cpu/tiny_program.h"

namespace tandem::testing {
namespace {

void expect_close(const std::vector<std::vector<float>>& got, const Matrix& want, int64_t first_row, double tolerance) {
  double largest = 0, worst = 0;
  for (const double v : want.values) largest = std::max(largest, std::abs(v));
  for (size_t r = 0; r < got.size(); ++r) {
    for (size_t c = 0; c < got[r].size(); ++c) {
      ASSERT_TRUE(std::isfinite(got[r][c])) << "row " << r << " column " << c;
      worst = std::max(worst, std::abs(got[r][c] - want.at(first_row + static_cast<int64_t>(r), static_cast<int64_t>(c))));
    }
  }
  EXPECT_LE(worst, tolerance * largest);
}

std::vector<TinyShape> shapes() {
  std::vector<TinyShape> all;
  TinyShape s;
  all.push_back(s);
  s.experts = 5, s.ffn = 40, all.push_back(s);
  s.normalize = false, s.top_k = 5, all.push_back(s);
  s = {}, s.hidden = 37, s.heads = 3, s.kv_heads = 1, s.head_dim = 48, s.ffn = 33, s.vocab = 127, s.biases = true, s.norm = NormKind::layer,
  s.activation = Activation::gelu_tanh, all.push_back(s);
  s = {}, s.hidden = 96, s.heads = 6, s.kv_heads = 3, s.head_dim = 64, s.ffn = 100, s.window = 9, s.soft_cap = 5, s.tied = true,
  all.push_back(s);
  s = {}, s.heads = 5, s.kv_heads = 5, s.head_dim = 80, s.rotary = 32, s.gated = false, s.activation = Activation::gelu, all.push_back(s);
  s = {}, s.hidden = 1, s.heads = 1, s.kv_heads = 1, s.head_dim = 2, s.ffn = 1, s.vocab = 2, s.activation = Activation::relu,
  s.gated = false, all.push_back(s);
  s = {}, s.heads = 70, s.kv_heads = 1, s.head_dim = 6, s.rotary = 0, all.push_back(s);
  return all;
}

class WholeProgram : public ::testing::TestWithParam<size_t> {};

TEST_P(WholeProgram, AgreesWithItsExpansion) {
  const TinyProgram model(shapes()[GetParam()]);
  const Evaluator evaluator = model.evaluator();
  for (const int32_t page_tokens : {1, 16, 7, 64}) {
    const TinySequence sequence = random_sequence(0, 53, model.shape.vocab, 3, page_tokens, 7);
    const Matrix want = judge(model, sequence, evaluator);
    for (const int threads : {1, 2, 3}) {
      SCOPED_TRACE("page " + std::to_string(page_tokens) + " threads " + std::to_string(threads));
      TinyRun run(model, threads, {64, 64, 4, page_tokens, 128}, {Compute::fp32, KvType::fp32});
      expect_close(run.forward({{&sequence, 0, 53}}), want, 0, 2e-5);
    }
  }
}

// Prefill at once, in chunks, one by one, among strangers, by any number of threads: the same bits.
TEST_P(WholeProgram, RowsDoNotDependOnTheirCompany) {
  const TinyProgram model(shapes()[GetParam()]);
  for (const KvType kv : {KvType::fp32, KvType::fp16, KvType::bf16}) {
    for (const int32_t page_tokens : {16, 5}) {
      const int32_t length = 67;
      const TinySequence sequence = random_sequence(0, length, model.shape.vocab, 0, page_tokens, 7);
      const TinySequence stranger = random_sequence(1, length, model.shape.vocab, 20, page_tokens, 8);
      const TinySequence other = random_sequence(2, length, model.shape.vocab, 40, page_tokens, 9);
      std::vector<std::vector<float>> whole;
      for (const int threads : {1, 2, 3}) {
        SCOPED_TRACE(std::string(name(kv)) + " page " + std::to_string(page_tokens) + " threads " + std::to_string(threads));
        TinyRun run(model, threads, {128, 128, 4, page_tokens, 128}, {Compute::fp32, kv}, 64);
        const auto at_once = run.forward({{&sequence, 0, length}});
        if (whole.empty()) whole = at_once;
        ASSERT_EQ(at_once, whole);
        for (const int32_t chunk : {1, 3, 16}) {
          for (int32_t at = 0; at < length; at += chunk) {
            const int32_t rows = std::min(chunk, length - at);
            const auto got = run.forward({{&sequence, at, rows}});
            for (int32_t i = 0; i < rows; ++i) ASSERT_EQ(got[i], whole[at + i]) << "chunk " << chunk << " position " << at + i;
          }
        }
        // Strangers before and behind, at other positions.
        run.forward({{&stranger, 0, 30}, {&other, 0, 50}});
        for (int32_t at = 0; at < 12; ++at) {
          const auto got = run.forward({{&stranger, 30 + at, 1}, {&sequence, at * 3, 3}, {&other, 50 + at, 1}});
          for (int32_t i = 0; i < 3; ++i) ASSERT_EQ(got[1 + i], whole[at * 3 + i]) << "in a batch, position " << at * 3 + i;
        }
      }
    }
  }
}

// Every instruction set that this processor and the build have, down to the baseline: each agrees, and keeps its bits.
TEST(InstructionSets, AgreeWithTheExpansion) {
  for (int64_t sets = hwy::SupportedTargets(); sets != 0; sets &= sets - 1) {
    const int64_t set = sets & -sets;
    hwy::SetSupportedTargetsForTest(set);
    for (const size_t shape : {size_t{1}, size_t{3}, size_t{4}}) {
      SCOPED_TRACE(std::string(hwy::TargetName(set)) + " shape " + std::to_string(shape));
      const TinyProgram model(shapes()[shape]);
      const TinySequence sequence = random_sequence(0, 41, model.shape.vocab, 3, 16, 7);
      cpu::Features plain;
      TinyRun run(model, 2, {64, 64, 4, 16, 128}, {Compute::fp32, KvType::fp32}, 64, true, plain);
      const auto whole = run.forward({{&sequence, 0, 41}});
      expect_close(whole, judge(model, sequence, model.evaluator()), 0, 2e-5);
      for (int32_t at = 0; at < 41; ++at) ASSERT_EQ(run.forward({{&sequence, at, 1}})[0], whole[at]) << "position " << at;
      TinyRun halves(model, 1, {64, 64, 4, 16, 128}, {Compute::fp32, KvType::fp16}, 64, true, plain);
      expect_close(halves.forward({{&sequence, 0, 41}}), judge(model, sequence, model.evaluator()), 0, 1e-2);
      const Sampling greedy;
      SampleRow row;
      row.head = 40, row.sampling = &greedy;
      Sampled sampled;
      draw(halves.executable(), std::span(&row, 1), std::span(&sampled, 1));
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, WholeProgram, ::testing::Range<size_t>(0, shapes().size()));

}  // namespace
}  // namespace tandem::testing
