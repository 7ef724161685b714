// Whole small programs on a GPU against the evaluator: prompts at once, in chunks, token by token and in mixed batches.
#include <gtest/gtest.h>


#include "kernels/base/cuda/check.h"
#include "kernels/cuda/plan/cuda.h"
#include "tests/kernels/cpu/tiny_program.h"
#include "tests/kernels/cuda/device_memory.h"

namespace tandem::testing {
namespace {

TinyMemory device_memory() {
  TinyMemory memory;
  memory.fill = [](std::byte* at, int value, uint64_t bytes) { cuda::check(cudaMemset(at, value, bytes), "fill"); };
  memory.read = [](const std::byte* at, void* host, uint64_t bytes) { cuda::check(cudaMemcpy(host, at, bytes, cudaMemcpyDeviceToHost), "read"); };
  return memory;
}

struct Case {
  const char* name;
  TinyShape shape;
  Arithmetic arithmetic;
  double tolerance;  // of the largest logit
};

TinyShape shape(const std::string& format, const std::function<void(TinyShape&)>& change = [](TinyShape&) {}) {
  TinyShape s;
  s.format = format;
  s.hidden = 64, s.heads = 4, s.kv_heads = 2, s.head_dim = 16, s.ffn = 192, s.vocab = 131;
  change(s);
  return s;
}

// fp32 sums in another order; bf16 and fp16 round activations, keys and values to 8 or 11 bits.
constexpr double kFp32 = 3e-5, kFp16 = 0.01, kBf16 = 0.06;
constexpr Arithmetic kExact{Compute::fp32, KvType::fp32}, kBrain{Compute::bf16, KvType::bf16}, kHalf{Compute::fp16, KvType::fp16};

std::vector<Case> cases() {
  return {
      {"fp32", shape("fp32"), kExact, kFp32},
      {"fp32_biases_layer_norm_gelu", shape("fp32", [](TinyShape& s) { s.biases = true, s.norm = NormKind::layer, s.gated = false, s.activation = Activation::gelu_tanh; }), kExact, kFp32},
      {"fp32_biases", shape("fp32", [](TinyShape& s) { s.biases = true; }), kExact, kFp32},
      {"fp32_odd", shape("fp32", [](TinyShape& s) { s.hidden = 52, s.heads = 5, s.kv_heads = 1, s.head_dim = 24, s.ffn = 77, s.rotary = 16; }), kExact, kFp32},
      {"fp32_window_cap_tied", shape("fp32", [](TinyShape& s) { s.window = 20, s.soft_cap = 5, s.tied = true; }), kExact, kFp32},
      {"fp32_experts", shape("fp32", [](TinyShape& s) { s.experts = 5, s.top_k = 3, s.normalize = false; }), kExact, kFp32},
      {"fp32_norms_of_heads", shape("fp32", [](TinyShape& s) { s.head_norms = true; }), kExact, kFp32},
      {"fp32_norms_of_results", shape("fp32", [](TinyShape& s) { s.normalizes = true, s.activation = Activation::gelu_tanh, s.soft_cap = 5; }), kExact, kFp32},
      {"fp32_norms_after_sums", shape("fp32", [](TinyShape& s) { s.replaces = true, s.gated = false, s.norm = NormKind::layer; }), kExact, kFp32},
      {"fp32_learned_positions", shape("fp32", [](TinyShape& s) { s.positions = 200, s.rotary = 0, s.norm = NormKind::layer, s.biases = true, s.hidden = 51; }), kExact, kFp32},
      {"fp32_narrow_embeddings", shape("fp32", [](TinyShape& s) { s.words = 21, s.positions = 200, s.rotary = 0, s.tied = true; }), kExact, kFp32},
      {"fp32_shared_expert", shape("fp32", [](TinyShape& s) { s.experts = 5, s.shared = true, s.normalize = false; }), kExact, kFp32},
      {"bf16_norms", shape("bf16", [](TinyShape& s) { s.head_norms = true, s.normalizes = true; }), kBrain, kBf16},
      {"nf4_norms_of_results", shape("nf4", [](TinyShape& s) { s.normalizes = true, s.head_norms = true; }), kBrain, kBf16},
      {"nf4_shared_expert", shape("nf4", [](TinyShape& s) { s.experts = 5, s.shared = true; }), kBrain, kBf16},
      {"fp32_fp16_cache", shape("fp32"), {Compute::fp32, KvType::fp16}, kFp16},
      {"q4_1_widened", shape("q4_1"), kExact, kFp32},
      {"bf16", shape("bf16"), kBrain, kBf16},
      {"fp16", shape("fp16"), kHalf, kFp16},
      {"bf16_heads64", shape("bf16", [](TinyShape& s) { s.head_dim = 64, s.heads = 9, s.kv_heads = 3; }), kBrain, kBf16},
      {"bf16_heads128_window_cap", shape("bf16", [](TinyShape& s) { s.head_dim = 128, s.heads = 8, s.kv_heads = 2, s.window = 33, s.soft_cap = 8; }), kBrain, kBf16},
      {"nf4", shape("nf4"), kBrain, kBf16},
      {"nf4_dq", shape("nf4_dq", [](TinyShape& s) { s.hidden = 512, s.ffn = 1088; }), kBrain, kBf16},
      {"fp4", shape("fp4", [](TinyShape& s) { s.hidden = 576; }), kBrain, kBf16},
      {"nf4_wide", shape("nf4", [](TinyShape& s) { s.hidden = 1024, s.heads = 16, s.kv_heads = 4, s.head_dim = 64, s.ffn = 2816; }), kBrain, kBf16},
  };
}

double worst(const std::vector<std::vector<float>>& got, const Matrix& want, int64_t first) {
  double largest = 0, worst = 0;
  for (const double v : want.values) largest = std::max(largest, std::abs(v));
  for (size_t r = 0; r < got.size(); ++r) {
    for (size_t c = 0; c < got[r].size(); ++c) {
      const double error = std::abs(got[r][c] - want.at(first + static_cast<int64_t>(r), static_cast<int64_t>(c)));
      worst = std::isfinite(error) ? std::max(worst, error) : 1e9;
    }
  }
  return worst / largest;
}

class Executables : public ::testing::TestWithParam<int> {};

TEST_P(Executables, AgreeWithTheExpansion) {
  TANDEM_NEEDS_GPU();
  const Case c = cases()[static_cast<size_t>(GetParam())];
  SCOPED_TRACE(c.name);
  const TinyProgram model(c.shape);
  const int32_t length = 150;
  const TinySequence sequence = random_sequence(0, length, c.shape.vocab, 3, 16, 3), other = random_sequence(5, length, c.shape.vocab, 20, 16, 4),
                     third = random_sequence(2, length, c.shape.vocab, 40, 16, 5);
  const Evaluator evaluator = model.evaluator();
  const Matrix want = judge(model, sequence, evaluator), want_other = judge(model, other, evaluator), want_third = judge(model, third, evaluator);
  TinyRun run(model, cuda::make_cuda_backend(0), device_memory(), {192, 192, 8, 16, 192}, c.arithmetic);
  // At once: matrix products.
  const auto whole = run.forward({{&sequence, 0, length}});
  EXPECT_LE(worst(whole, want, 0), c.tolerance) << "at once";
  // In chunks: fused kernels for few rows, products for many.
  for (const int32_t chunk : {1, 2, 3, 7, 8, 9, 16, 31, 64, 65, 100}) {
    double most = 0;
    for (int32_t at = 0; at < length; at += chunk) most = std::max(most, worst(run.forward({{&sequence, at, std::min(chunk, length - at)}}), want, at));
    EXPECT_LE(most, c.tolerance) << "chunks of " << chunk;
  }
  // Several sequences, some decoding, some with prompts.
  run.forward({{&other, 0, 140}});
  run.forward({{&third, 0, 3}});
  for (const int32_t rows : {1, 5, 90}) {
    const auto mixed = run.forward({{&other, 140, 1}, {&sequence, 100, 1}, {&third, 3, rows}});
    EXPECT_LE(worst({mixed[0]}, want_other, 140), c.tolerance) << rows;
    EXPECT_LE(worst({mixed[1]}, want, 100), c.tolerance) << rows;
    EXPECT_LE(worst({mixed.begin() + 2, mixed.end()}, want_third, 3), c.tolerance) << rows;
  }
  // The same step twice gives the same bits.
  const auto once = run.forward({{&other, 141, 1}, {&sequence, 101, 1}}), twice = run.forward({{&other, 141, 1}, {&sequence, 101, 1}});
  EXPECT_EQ(once, twice);
}

// Ids that only the device knows: what was drawn for a slot is what the next step reads.
TEST_P(Executables, DrawnIdsStayOnTheDevice) {
  TANDEM_NEEDS_GPU();
  const Case c = cases()[static_cast<size_t>(GetParam())];
  SCOPED_TRACE(c.name);
  const TinyProgram model(c.shape);
  TinyRun run(model, cuda::make_cuda_backend(0), device_memory(), {192, 192, 8, 16, 192}, c.arithmetic);
  const auto greedy = [&](bool on_device) {
    std::vector<int32_t> ids;
    TinySequence sequence = random_sequence(4, 100, c.shape.vocab, 3, 16, 9);
    const int32_t prompt = 70;
    run.forward_only({{&sequence, 0, prompt}});
    Sampling sampling;
    for (int32_t at = prompt; at < 90; ++at) {
      SampleRow row;
      row.head = at == prompt ? prompt - 1 : 0;
      row.slot = 4, row.position = at, row.sampling = &sampling;
      run.executable().sample({&row, 1});
      Sampled sampled;
      if (!on_device) {
        run.executable().drawn({&sampled, 1});
        ids.push_back(sampled.id);
        sequence.ids[static_cast<size_t>(at)] = sampled.id;
      }
      run.forget_step();
      run.add({&sequence, at, 1});
      if (on_device) run.set_ids(kDrawnId);
      run.executable().forward(run.step(), nullptr, nullptr);
      if (on_device) {
        run.executable().drawn({&sampled, 1});
        ids.push_back(sampled.id);
      }
    }
    return ids;
  };
  EXPECT_EQ(greedy(true), greedy(false));
}
INSTANTIATE_TEST_SUITE_P(All, Executables, ::testing::Range(0, static_cast<int>(cases().size())), [](const auto& info) { return std::string(cases()[static_cast<size_t>(info.param)].name); });

}  // namespace
}  // namespace tandem::testing
