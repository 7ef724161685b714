#include "runtime/model/checkpoint/gguf_config.h"

#include <gtest/gtest.h>

#include "tests/runtime/model/checkpoint/files.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::bytes_of;
using testing::GgufBuilder;
using testing::small_llama;

json config_of(const GgufBuilder& builder) {
  const std::string bytes = builder.build();
  const auto file = in_memory("x.gguf", bytes_of(bytes));
  GgufHeader header = read_gguf_header(*file);
  const FileTensors tensors({}, header.tensors);
  return gguf_config(*file, header, tensors);
}

TEST(GgufConfig, Llama) {
  EXPECT_EQ(config_of(small_llama()), json::parse(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,
      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "vocab_size": 3,
      "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "rope_scaling": null, "max_position_embeddings": 128, "tie_word_embeddings": true,
      "attention_bias": false, "mlp_bias": false, "hidden_act": "silu", "bos_token_id": 2})"));
  GgufBuilder untied = small_llama();
  untied.tensor({"output.weight", {32, 3}, 0}, 384).tensor({"blk.0.attn_q.bias", {32}, 0}, 128);
  untied.u32("llama.attention.key_length", 16).u32("llama.rope.dimension_count", 8);
  const json config = config_of(untied);
  EXPECT_EQ(config["tie_word_embeddings"], false);
  EXPECT_EQ(config["attention_bias"], true);
  EXPECT_EQ(config["head_dim"], 16);
  EXPECT_EQ(config["partial_rotary_factor"], 0.5);
}

TEST(GgufConfig, Mixtral) {
  const json config = config_of(small_llama().u32("llama.expert_count", 8).u32("llama.expert_used_count", 2));
  EXPECT_EQ(config["model_type"], "mixtral");
  EXPECT_EQ(config["architectures"], json::array({"MixtralForCausalLM"}));
  EXPECT_EQ(config["num_local_experts"], 8);
  EXPECT_EQ(config["num_experts_per_tok"], 2);
  EXPECT_EQ(config_of(small_llama().u32("llama.expert_count", 0))["model_type"], "llama");
}

TEST(GgufConfig, RotaryScaling) {
  EXPECT_EQ(config_of(small_llama().f32("llama.rope.scaling.factor", 4))["rope_scaling"],
            json::parse(R"({"rope_type":"linear","factor":4.0})"));
  EXPECT_EQ(config_of(small_llama().f32("llama.rope.scale_linear", 2))["rope_scaling"],
            json::parse(R"({"rope_type":"linear","factor":2.0})"));
  EXPECT_EQ(config_of(small_llama().string("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 1))["rope_scaling"],
            nullptr);
  EXPECT_EQ(config_of(small_llama().string("llama.rope.scaling.type", "none"))["rope_scaling"], nullptr);
  EXPECT_EQ(config_of(small_llama()
                          .string("llama.rope.scaling.type", "yarn")
                          .f32("llama.rope.scaling.factor", 4)
                          .u32("llama.rope.scaling.original_context_length", 64)
                          .f32("llama.rope.scaling.yarn_beta_fast", 16))["rope_scaling"],
            json::parse(R"({"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":64,"beta_fast":16.0})"));
  GgufBuilder factors = small_llama();
  factors.tensor({"rope_freqs.weight", {4}, 0}, 16);
  EXPECT_EQ(config_of(factors)["rope_scaling"], json::parse(R"({"rope_type":"gguf_factors","tensor":"rope_freqs.weight"})"));
  GgufBuilder longrope = small_llama();
  longrope.tensor({"rope_factors_long.weight", {4}, 0}, 16).tensor({"rope_factors_short.weight", {4}, 0}, 16);
  longrope.f32("llama.rope.scaling.attn_factor", 1.5f).u32("llama.rope.scaling.original_context_length", 64);
  EXPECT_EQ(config_of(longrope)["rope_scaling"],
            json::parse(R"({"rope_type":"gguf_longrope","long_tensor":"rope_factors_long.weight","short_tensor":"rope_factors_short.weight",
                            "original_max_position_embeddings":64,"attention_factor":1.5})"));
}

TEST(GgufConfig, OtherArchitectures) {
  GgufBuilder gemma;
  gemma.string("general.architecture", "gemma2").u32("gemma2.embedding_length", 2304).u32("gemma2.attention.head_count", 8);
  gemma.u32("gemma2.attention.key_length", 256).f32("gemma2.attn_logit_softcapping", 50).u32("gemma2.attention.sliding_window", 4096);
  const json config = config_of(gemma);
  EXPECT_EQ(config["model_type"], "gemma2");
  EXPECT_EQ(config["head_dim"], 256);
  EXPECT_EQ(config["attn_logit_softcapping"], 50.0);
  EXPECT_EQ(config["sliding_window"], 4096);
  EXPECT_EQ(config["num_key_value_heads"], 8);

  GgufBuilder gpt2;
  gpt2.string("general.architecture", "gpt2")
      .u32("gpt2.embedding_length", 768)
      .u32("gpt2.attention.head_count", 12)
      .u32("gpt2.block_count", 12);
  gpt2.f32("gpt2.attention.layer_norm_epsilon", 1e-5f).u32("gpt2.context_length", 1024).u32("gpt2.feed_forward_length", 3072);
  EXPECT_EQ(config_of(gpt2)["n_embd"], 768);
  EXPECT_EQ(config_of(gpt2)["n_positions"], 1024);
  EXPECT_EQ(config_of(gpt2)["layer_norm_epsilon"], 1e-5);

  // One that the table does not know keeps its own name, for a refusal that names it.
  EXPECT_EQ(config_of(GgufBuilder().string("general.architecture", "mamba"))["model_type"], "mamba");

  // Numbers per layer: one when they agree, else the list.
  GgufBuilder same, differ;
  same.string("general.architecture", "llama").numbers<int32_t>("llama.attention.head_count_kv", GgufType::i32, {4, 4, 4});
  differ.string("general.architecture", "llama").numbers<int32_t>("llama.attention.head_count_kv", GgufType::i32, {4, 2, 4});
  EXPECT_EQ(config_of(same)["num_key_value_heads"], 4);
  EXPECT_EQ(config_of(differ)["num_key_value_heads"], json::array({4, 2, 4}));
}

TEST(GgufConfig, Generation) {
  const auto generation = [](const GgufBuilder& builder) {
    const std::string bytes = builder.build();
    const auto file = in_memory("x.gguf", bytes_of(bytes));
    return gguf_generation_config(*file, read_gguf_header(*file));
  };
  EXPECT_EQ(generation(GgufBuilder()), json::object());
  EXPECT_EQ(generation(GgufBuilder().u32("tokenizer.ggml.eos_token_id", 2)), json::parse(R"({"eos_token_id": 2})"));
  EXPECT_EQ(generation(GgufBuilder().u32("tokenizer.ggml.eos_token_id", 2).u32("tokenizer.ggml.eot_token_id", 5)),
            json::parse(R"({"eos_token_id": [2, 5]})"));
  EXPECT_EQ(generation(GgufBuilder().f32("general.sampling.temp", 0.6f).i32("general.sampling.top_k", 40)),
            json::parse(R"({"do_sample": true, "temperature": 0.6, "top_k": 40})"));
}

}  // namespace
}  // namespace tandem
