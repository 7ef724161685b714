#include "runtime/model/checkpoint/gguf_config.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace tandem {
namespace {

using nlohmann::json;

struct Row {
  std::string_view key, config;  // "<architecture>.<key>" -> config.json's
};

// Key names: gguf.md, "Standardized key-value pairs".
constexpr Row kCommon[] = {
    {"embedding_length", "hidden_size"},
    {"block_count", "num_hidden_layers"},
    {"attention.head_count", "num_attention_heads"},
    {"attention.head_count_kv", "num_key_value_heads"},
    {"feed_forward_length", "intermediate_size"},
    {"context_length", "max_position_embeddings"},
    {"attention.layer_norm_rms_epsilon", "rms_norm_eps"},
    {"attention.layer_norm_epsilon", "layer_norm_epsilon"},
    {"attention.key_length", "head_dim"},
    {"vocab_size", "vocab_size"},
    {"expert_count", "num_local_experts"},
    {"expert_used_count", "num_experts_per_tok"},
};
constexpr Row kQwen3Moe[] = {{"expert_count", "num_experts"}, {"expert_feed_forward_length", "moe_intermediate_size"}};
constexpr Row kPhi3[] = {{"attention.sliding_window", "sliding_window"}};
constexpr Row kGemma2[] = {{"attn_logit_softcapping", "attn_logit_softcapping"},
                           {"final_logit_softcapping", "final_logit_softcapping"},
                           {"attention.sliding_window", "sliding_window"}};
constexpr Row kGpt2[] = {{"embedding_length", "n_embd"},
                         {"block_count", "n_layer"},
                         {"attention.head_count", "n_head"},
                         {"context_length", "n_positions"},
                         {"feed_forward_length", "n_inner"}};

struct Family {
  std::string_view architecture, model_type, class_name;
  std::span<const Row> rows;
  const char* constants;  // what the architecture implies and the file does not say
};
constexpr Family kFamilies[] = {
    {"llama", "llama", "LlamaForCausalLM", {}, R"({"hidden_act": "silu"})"},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", {}, R"({"hidden_act": "silu"})"},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", {}, R"({"hidden_act": "silu"})"},
    {"qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM", kQwen3Moe, R"({"hidden_act": "silu", "norm_topk_prob": true})"},
    {"phi3", "phi3", "Phi3ForCausalLM", kPhi3, R"({"hidden_act": "silu"})"},
    {"gemma2", "gemma2", "Gemma2ForCausalLM", kGemma2, R"({"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"})"},
    {"gpt2", "gpt2", "GPT2LMHeadModel", kGpt2, R"({"activation_function": "gelu_new"})"},
};

json as_json(const Storage& file, std::string_view key, const GgufValue& value) {
  const auto* array = std::get_if<GgufArray>(&value);
  if (!array) {
    return std::visit(
        [](const auto& v) -> json {
          if constexpr (std::is_same_v<std::decay_t<decltype(v)>, GgufArray>)
            return nullptr;
          else
            return v;
        },
        value);
  }
  // Some writers give a number per layer. All the same is the number; else the list, which a family that wants one number refuses.
  constexpr uint64_t longest = 4096;
  if (array->text || array->count > longest) bad_input(file.name(), std::string(key) + " is too long (at most 4096 elements)");
  const auto values = read_gguf_integers(file, *array, key);
  if (!values.empty() && std::ranges::all_of(values, [&](int64_t v) { return v == values[0]; })) return values[0];
  return values;
}

class Metadata {
 public:
  Metadata(const Storage& file, const GgufHeader& header) : file_(file), header_(header) {}
  json get(const std::string& key) const {  // null when absent
    const GgufValue* value = header_.find(key);
    return value ? as_json(file_, key, *value) : json();
  }
  template <typename T>
  std::optional<T> get_as(const std::string& key, std::string_view expected) const {
    const json value = get(key);
    if (value.is_null()) return std::nullopt;
    if constexpr (std::is_same_v<T, std::string>) {
      if (value.is_string()) return value.get<T>();
    } else if constexpr (std::is_same_v<T, int64_t>) {  // values above its range are kept unsigned
      if (value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX)) return value.get<T>();
    } else {
      if (value.is_number()) return value.get<T>();
    }
    bad_input(file_.name(), key + " has another type (must be " + std::string(expected) + ")");
  }

 private:
  const Storage& file_;
  const GgufHeader& header_;
};

json rope_scaling(const Metadata& metadata, const std::string& prefix, const TensorSource& tensors, const json& config) {
  const auto factor = [&] {
    auto given = metadata.get_as<double>(prefix + "rope.scaling.factor", "a number");
    return given ? given : metadata.get_as<double>(prefix + "rope.scale_linear", "a number");  // its old name
  }();
  const auto original = metadata.get_as<int64_t>(prefix + "rope.scaling.original_context_length", "an integer");
  const auto attention = metadata.get_as<double>(prefix + "rope.scaling.attn_factor", "a number");
  std::string type = metadata.get_as<std::string>(prefix + "rope.scaling.type", "text").value_or(factor ? "linear" : "none");
  json out = json::object();
  if (tensors.find("rope_factors_long.weight") && tensors.find("rope_factors_short.weight")) {
    out = {{"rope_type", "gguf_longrope"}, {"long_tensor", "rope_factors_long.weight"}, {"short_tensor", "rope_factors_short.weight"}};
    out["original_max_position_embeddings"] = original ? json(*original) : config.value("max_position_embeddings", json());
    if (attention) out["attention_factor"] = *attention;
    return out;
  }
  if (tensors.find("rope_freqs.weight")) return {{"rope_type", "gguf_factors"}, {"tensor", "rope_freqs.weight"}};
  if (type == "none" || type == "longrope" || (type == "linear" && factor.value_or(1) == 1)) return nullptr;
  out["rope_type"] = type;
  if (factor) out["factor"] = *factor;
  if (type == "yarn") {
    out["original_max_position_embeddings"] = original ? json(*original) : config.value("max_position_embeddings", json());
    for (const auto& [key, name] : {std::pair{"yarn_beta_fast", "beta_fast"},
                                    {"yarn_beta_slow", "beta_slow"},
                                    {"yarn_attn_factor", "attention_factor"},
                                    {"yarn_ext_factor", "extrapolation_factor"}}) {
      if (const auto value = metadata.get_as<double>(prefix + "rope.scaling." + key, "a number")) out[name] = *value;
    }
    if (attention && !out.contains("attention_factor")) out["attention_factor"] = *attention;
  }
  return out;
}

}  // namespace

json gguf_config(const Storage& file, const GgufHeader& header, const TensorSource& tensors) {
  const Metadata metadata(file, header);
  const auto architecture = metadata.get_as<std::string>("general.architecture", "text");
  if (!architecture) bad_input(file.name(), "has no general.architecture (is this a model?)");
  const std::string prefix = *architecture + ".";
  const auto* family = std::ranges::find(kFamilies, *architecture, &Family::architecture);
  const bool known = family != std::end(kFamilies);

  json config = known ? json::parse(family->constants) : json::object();
  const auto take = [&](std::span<const Row> rows) {
    for (const Row& row : rows) {
      if (json value = metadata.get(prefix + std::string(row.key)); !value.is_null()) config[row.config] = std::move(value);
    }
  };
  take(kCommon);
  if (known) take(family->rows);
  config["model_type"] = known ? family->model_type : std::string_view(*architecture);
  if (known) config["architectures"] = {family->class_name};

  // Mixtral is llama with experts; a dense file may still say that it has none.
  const json experts = config.value("num_local_experts", json(0));
  if (experts == 0) {
    config.erase("num_local_experts");
    config.erase("num_experts_per_tok");
  } else if (*architecture == "llama") {
    config["model_type"] = "mixtral";
    config["architectures"] = {"MixtralForCausalLM"};
  }

  const auto hidden = metadata.get_as<int64_t>(prefix + "embedding_length", "an integer");
  const json heads = config.value("num_attention_heads", json());
  if (!config.contains("num_key_value_heads") && !heads.is_null()) config["num_key_value_heads"] = heads;
  if (!config.contains("head_dim") && hidden && heads.is_number_integer() && heads.get<int64_t>() > 0 &&
      *hidden % heads.get<int64_t>() == 0) {
    config["head_dim"] = *hidden / heads.get<int64_t>();
  }
  if (const TensorInfo* embedding = tensors.find("token_embd.weight"); embedding && embedding->shape.size() == 2) {
    config["vocab_size"] = embedding->shape[0];
  }
  config["tie_word_embeddings"] = tensors.find("output.weight") == nullptr;
  config["attention_bias"] = tensors.find("blk.0.attn_q.bias") != nullptr;
  config["mlp_bias"] = tensors.find("blk.0.ffn_gate.bias") != nullptr;

  config["rope_theta"] = metadata.get_as<double>(prefix + "rope.freq_base", "a number").value_or(10000.0);
  config["rope_scaling"] = rope_scaling(metadata, prefix, tensors, config);
  const auto rotary = metadata.get_as<int64_t>(prefix + "rope.dimension_count", "an integer");
  if (const json head_dim = config.value("head_dim", json());
      rotary && head_dim.is_number_integer() && head_dim != *rotary && head_dim > 0) {
    config["partial_rotary_factor"] = static_cast<double>(*rotary) / head_dim.get<double>();
  }
  if (*architecture == "gemma2" && hidden && heads.is_number_integer() && heads.get<int64_t>() > 0) {
    // The file does not say how scores are scaled. As llama.cpp has it: by the head's size, but the 27B model (46 layers) by hidden / heads.
    constexpr int kLayers27B = 46;
    config["query_pre_attn_scalar"] = config.value("num_hidden_layers", json()) == json(kLayers27B) ? json(*hidden / heads.get<int64_t>()) : config.value("head_dim", json());
  }
  for (const auto& [key, name] : {std::pair{"bos", "bos_token_id"}, {"eos", "eos_token_id"}, {"padding", "pad_token_id"}}) {
    if (const auto id = metadata.get_as<int64_t>("tokenizer.ggml." + std::string(key) + "_token_id", "an integer")) config[name] = *id;
  }
  return config;
}

json gguf_generation_config(const Storage& file, const GgufHeader& header) {
  const Metadata metadata(file, header);
  json out = json::object(), ends = json::array();
  for (const char* key : {"eos", "eot", "eom"}) {
    const auto id = metadata.get_as<int64_t>("tokenizer.ggml." + std::string(key) + "_token_id", "an integer");
    if (id && std::ranges::find(ends, json(*id)) == ends.end()) ends.push_back(*id);
  }
  if (!ends.empty()) out["eos_token_id"] = ends.size() == 1 ? ends[0] : ends;
  if (const auto id = metadata.get_as<int64_t>("tokenizer.ggml.bos_token_id", "an integer")) out["bos_token_id"] = *id;
  for (const auto& [key, name] : {std::pair{"temp", "temperature"},
                                  {"top_k", "top_k"},
                                  {"top_p", "top_p"},
                                  {"min_p", "min_p"},
                                  {"penalty_repeat", "repetition_penalty"}}) {
    if (json value = metadata.get("general.sampling." + std::string(key)); value.is_number()) out[name] = std::move(value);
  }
  if (out.contains("temperature")) out["do_sample"] = out["temperature"] > 0;
  return out;
}

}  // namespace tandem
