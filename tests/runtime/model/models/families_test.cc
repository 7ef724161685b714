// Families as data: what a config must say, and what is refused.
#include "runtime/model/models/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "kernels/base/error.h"

namespace tandem {
namespace {

nlohmann::json config_of(const std::string& fixture) {
  std::ifstream file(std::string(TANDEM_FIXTURES) + "/" + fixture + "/config.json");
  return nlohmann::json::parse(file);
}

struct Wrong {
  const char *fixture, *key;
  nlohmann::json value;  // null: the key is missing
  const char* words;
};

// One line, naming file and key.
TEST(Families, RefuseWhatIsMissingOrWrong) {
  const Wrong cases[] = {
      {"llama-tiny", "hidden_size", nullptr, "hidden_size: is missing"},
      {"llama-tiny", "model_type", "bert", "model_type: is bert (known: llama, "},
      {"mistral-tiny", "sliding_window", 0, "sliding_window: is 0 (must be 1 to"},
      {"mistral-tiny", "num_key_value_heads", 4, "num_key_value_heads: is 4 (must divide num_attention_heads, 6)"},
      {"qwen2-tiny", "layer_types", {"full_attention", "sliding_attention"}, "layer_types: has 2 elements (must be num_hidden_layers, 3)"},
      {"qwen2-tiny", "layer_types", {"full_attention", "chunked", "full_attention"}, "layer_types: holds chunked (must be"},
      {"qwen2-tiny", "max_window_layers", -1, "max_window_layers: is -1"},
      {"qwen3-tiny", "head_dim", 13, "head_dim: is 13 (must be even)"},
      {"qwen3-moe-tiny", "moe_intermediate_size", nullptr, "moe_intermediate_size: is missing"},
      {"qwen3-moe-tiny", "mlp_only_layers", {7}, "mlp_only_layers: holds 7"},
      {"qwen2-moe-tiny", "shared_expert_intermediate_size", nullptr, "shared_expert_intermediate_size: is missing"},
      {"qwen2-moe-tiny", "num_experts_per_tok", 7, "num_experts_per_tok: is 7 (must be 1 to 6)"},
      {"phi3-tiny", "rope_parameters", {{"rope_type", "longrope"}, {"original_max_position_embeddings", 48}, {"short_factor", {1.0, 1.1}}},
       "rope_parameters.short_factor: has 2 values (must be 4)"},
      {"gemma2-tiny", "attn_logit_softcapping", -1, "attn_logit_softcapping: is -1"},
      {"gemma2-tiny", "hidden_activation", "selu", "hidden_activation: is selu (must be silu, gelu"},
      {"gpt2-tiny", "n_head", 4, "n_head: is 4 (must divide n_embd, 30)"},
      {"gpt2-tiny", "n_positions", nullptr, "n_positions: is missing"},
      {"opt-tiny", "ffn_dim", nullptr, "ffn_dim: is missing"},
      {"opt-tiny", "layer_norm_elementwise_affine", false, "layer_norm_elementwise_affine: is false"},
  };
  for (const Wrong& wrong : cases) {
    nlohmann::json config = config_of(wrong.fixture);
    if (wrong.value.is_null()) {
      config.erase(wrong.key);
    } else {
      config[wrong.key] = wrong.value;
    }
    try {
      make_model(config, "config.json");
      ADD_FAILURE() << wrong.fixture << " was accepted with " << wrong.key << " " << wrong.value;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument);
      EXPECT_THAT(std::string(error.what()), testing::HasSubstr("config.json: " + std::string(wrong.words)));
    }
  }
}

// As published: what transformers counts.
TEST(Families, ParametersOfPresets) {
  const std::pair<const char*, int64_t> cases[] = {{"mistral-7b", 7241732096}, {"qwen2-7b", 7615616512}, {"qwen3-8b", 8190735360},
                                                   {"qwen3-30b-a3b", 30532122624}, {"qwen1.5-moe-a2.7b", 14315784192}, {"phi-3-mini-4k", 3821079552},
                                                   {"gemma-2-2b", 2614341888}, {"gpt2", 124439808}, {"opt-125m", 125239296}};
  for (const auto& [name, parameters] : cases) {
    const auto model = make_model(preset_config(name), name);
    int64_t elements = 0;
    for (const WeightRow& row : model->weights.rows()) elements += row.tied_to == kNoWeight ? row.elements() : 0;
    EXPECT_EQ(elements, parameters) << name;
  }
}

std::vector<int64_t> windows(const nlohmann::json& config) {
  const auto model = make_model(config, "config.json");
  std::vector<int64_t> windows(static_cast<size_t>(model->shape.layers));
  for (const KvGroup& group : model->kv_groups) {
    for (const int layer : group.layers) windows[static_cast<size_t>(layer)] = group.window;
  }
  return windows;
}

TEST(Families, Windows) {
  nlohmann::json config = config_of("mistral-tiny");
  EXPECT_THAT(windows(config), testing::ElementsAre(9, 9));
  config["sliding_window"] = nullptr;
  EXPECT_THAT(windows(config), testing::ElementsAre(0, 0));
  config.erase("sliding_window");
  EXPECT_THAT(windows(config), testing::ElementsAre(4096, 4096));

  config = config_of("qwen2-tiny");
  config.erase("layer_types");
  EXPECT_THAT(windows(config), testing::ElementsAre(0, 11, 11));
  config["layer_types"] = {"sliding_attention", "full_attention", "full_attention"};
  EXPECT_THAT(windows(config), testing::ElementsAre(11, 0, 0));
  config["use_sliding_window"] = false;
  EXPECT_THAT(windows(config), testing::ElementsAre(0, 0, 0));

  config = config_of("gemma2-tiny");
  config.erase("layer_types");
  EXPECT_THAT(windows(config), testing::ElementsAre(9, 0, 9));
}

}  // namespace
}  // namespace tandem
