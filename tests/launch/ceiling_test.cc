#include "launch/ceiling.h"

#include <gtest/gtest.h>

#include "launch/devices.h"

namespace tandem {
namespace {

ModelWork work_of(const std::string& model) {
  const Blueprint blueprint = make_blueprint(model, {"bf16", false}, {});
  return model_work(blueprint, {.context = 4096}, *make_sizes(false, 1));
}

TEST(Ceiling, CountsWhatATokenCosts) {
  const ModelWork dense = work_of("preset:llama-3.1-8b");
  EXPECT_EQ(dense.expert_bytes, 0);
  // A layer: q and o 4096 x 4096, k and v 1024 x 4096, three of 14336 x 4096.
  const double layer = 2.0 * 4096 * 4096 + 2.0 * 1024 * 4096 + 3.0 * 14336 * 4096;
  EXPECT_EQ(dense.token_flops, 32 * 2 * layer);
  EXPECT_EQ(dense.attention_flops, 32 * 4.0 * 4096);
  EXPECT_GE(dense.dense_bytes, 2 * (32 * layer + 128256.0 * 4096));
  const ModelWork mixture = work_of("preset:mixtral-8x7b");
  EXPECT_NEAR(mixture.expert_bytes, 32 * 8 * 3.0 * 14336 * 4096 * 2, 0.01 * mixture.expert_bytes);
  EXPECT_EQ(mixture.token_flops, 32 * 2 * (2.0 * 4096 * 4096 + 2.0 * 1024 * 4096 + 2 * 3.0 * 14336 * 4096 + 8 * 4096));
}

TEST(Ceiling, DecodingReadsWeightsOnceAStep) {
  const ModelWork work{.dense_bytes = 100, .kv_bytes = 0.01};
  EXPECT_DOUBLE_EQ(decode_ceiling(work, {1, 1, 1}, 1000, 1, 0).tokens_per_second, 10);
  EXPECT_DOUBLE_EQ(decode_ceiling(work, {1, 1, 1}, 1000, 1, 10000).tokens_per_second, 5);
  EXPECT_DOUBLE_EQ(decode_ceiling(work, {1, 1, 1}, 1000, 8, 0).tokens_per_second, 80);
  EXPECT_DOUBLE_EQ(decode_ceiling(work, {1, 1, 2}, 1000, 8, 0).tokens_per_second, 160);
  // One stream is in one stage at a time; two are in two.
  EXPECT_DOUBLE_EQ(decode_ceiling(work, {2, 1, 1}, 1000, 1, 0).tokens_per_second, 10);
  EXPECT_DOUBLE_EQ(decode_ceiling(work, {2, 1, 1}, 1000, 2, 0).tokens_per_second, 20);
  EXPECT_EQ(decode_ceiling(work, {1, 1, 1}, 1000, 1, 0).of, "memory reads");
}

TEST(Ceiling, ManyTokensReachAllExperts) {
  const ModelWork work{.expert_bytes = 80, .experts = 8, .experts_per_token = 2};
  EXPECT_DOUBLE_EQ(decode_ceiling(work, {1, 1, 1}, 1000, 1, 0).per_token, 20);
  EXPECT_NEAR(decode_ceiling(work, {1, 1, 1}, 1000, 256, 0).per_token, 80.0 / 256, 1e-9);
}

TEST(Ceiling, PromptsAreMultiplied) {
  const ModelWork work{.token_flops = 90, .attention_flops = 4};
  EXPECT_DOUBLE_EQ(prefill_ceiling(work, {1, 1, 1}, 1000, 4).tokens_per_second, 10);
  EXPECT_DOUBLE_EQ(prefill_ceiling(work, {2, 1, 2}, 1000, 4).tokens_per_second, 40);
  EXPECT_EQ(prefill_ceiling(work, {1, 1, 1}, 0, 4).tokens_per_second, 0);
}

}  // namespace
}  // namespace tandem
