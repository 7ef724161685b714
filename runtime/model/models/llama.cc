#include "runtime/model/models/llama.h"

#include <cmath>

namespace tandem {
namespace {

constexpr int64_t kMost = int64_t{1} << 24;

}  // namespace

Activation activation_of(const Config& config, std::string_view key, std::string_view fallback) {
  struct Row { std::string_view name; Activation activation; };
  constexpr Row kRows[] = {{"silu", Activation::silu}, {"swish", Activation::silu}, {"gelu", Activation::gelu}, {"relu", Activation::relu},
                           {"gelu_new", Activation::gelu_tanh}, {"gelu_pytorch_tanh", Activation::gelu_tanh}};
  const std::string name = config.text(key, fallback);
  for (const Row& row : kRows) {
    if (row.name == name) return row.activation;
  }
  config.bad(key, "is " + name + " (must be silu, gelu, gelu_new, gelu_pytorch_tanh or relu)");
}

Llama::Llama(const Config& config, const Traits& traits, std::string_view family) : family_(family), traits_(traits) {
  shape.layers = static_cast<int>(config.integer("num_hidden_layers", 1, 1024));
  shape.hidden = config.integer("hidden_size", 1, 1 << 20);
  shape.vocab = config.integer("vocab_size", 1, kMost);
  shape.heads = config.integer("num_attention_heads", 1, 4096);
  shape.kv_heads = config.integer("num_key_value_heads", 1, 4096, shape.heads);
  shape.head_dim = config.integer("head_dim", 2, 4096, traits.head_dim > 0 ? traits.head_dim : shape.hidden / shape.heads);
  shape.context = rope_limit(config, static_cast<int32_t>(config.integer("max_position_embeddings", 1, 1 << 30, 2048)));
  shape.context_is_hard = rope_is_bounded(config);
  if (shape.heads % shape.kv_heads != 0) {
    config.bad("num_key_value_heads", "is " + std::to_string(shape.kv_heads) + " (must divide num_attention_heads, " + std::to_string(shape.heads) + ")");
  }
  if (shape.head_dim % 2 != 0) config.bad("head_dim", "is " + std::to_string(shape.head_dim) + " (must be even)");
  epsilon_ = static_cast<float>(config.number("rms_norm_eps", 0, 1, 1e-6));
  ropes_ = make_ropes(config, shape.head_dim);
  buffer_bytes = static_cast<uint64_t>(shape.head_dim / 2) * sizeof(float);  // the frequencies, one tensor for the model
  activation_ = activation_of(config, traits.activation, traits.activation_fallback);

  const Dim hidden{Axis::model, shape.hidden, 1}, heads{Axis::heads, shape.heads, shape.head_dim}, kv_heads{Axis::kv_heads, shape.kv_heads, shape.head_dim};
  declare_embedding(shape.hidden, "model.embed_tokens");
  for (int layer = 0; layer < shape.layers; ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    const auto add = [&](const std::string& name, const std::string& gguf, int64_t width) {
      declare_norm(layer_name(layer, name), width, layer, {.plus = traits.norm_plus}, {block + gguf});
    };
    for (const NormName& norm : traits.norms) add(norm.name, norm.gguf, shape.hidden);
    if (traits.head_norms) {
      add("self_attn.q_norm", "attn_q_norm", shape.head_dim);
      add("self_attn.k_norm", "attn_k_norm", shape.head_dim);
    }
    const std::string q = layer_name(layer, "self_attn.q_proj"), k = layer_name(layer, "self_attn.k_proj"), v = layer_name(layer, "self_attn.v_proj");
    if (traits.fused) {
      const FusedPart parts[] = {{q, heads}, {k, kv_heads}, {v, kv_heads}};
      declare_fused(parts, {.cols = hidden, .layer = layer, .huggingface = {layer_name(layer, "self_attn.qkv_proj")}, .gguf = {block + "attn_qkv"}, .bias = traits.input_bias});
    } else {
      declare({.name = q, .rows = heads, .cols = hidden, .layer = layer, .gguf = {.tensor = block + "attn_q", .order = traits.gguf_rows}, .bias = traits.input_bias});
      declare({.name = k, .rows = kv_heads, .cols = hidden, .layer = layer, .gguf = {.tensor = block + "attn_k", .order = traits.gguf_rows}, .bias = traits.input_bias});
      declare({.name = v, .rows = kv_heads, .cols = hidden, .layer = layer, .gguf = {block + "attn_v"}, .bias = traits.input_bias});
    }
    declare({.name = layer_name(layer, "self_attn.o_proj"), .rows = hidden, .cols = heads, .layer = layer, .gguf = {block + "attn_output"}, .bias = traits.output_bias});
    if (traits.own_mlp.empty() || !traits.own_mlp[static_cast<size_t>(layer)]) {
      declare_mlp(layer, "mlp", config.integer("intermediate_size", 1, kMost), traits.mlp_bias);
    }
  }
  declare_norm("model.norm", shape.hidden, -1, {.plus = traits.norm_plus}, {"output_norm"});
  declare_head(shape.hidden, config.boolean("tie_word_embeddings", traits.tied));
  group_layers(traits.windows);
}

void Llama::declare_mlp(int layer, const std::string& name, int64_t ffn, bool bias, const std::string& gguf_suffix) {
  const Dim hidden{Axis::model, shape.hidden, 1}, wide{Axis::ffn, ffn, 1};
  const std::string block = "blk." + std::to_string(layer) + ".", full = layer_name(layer, name);
  if (traits_.fused) {
    const FusedPart parts[] = {{full + ".gate_proj", wide}, {full + ".up_proj", wide}};
    declare_fused(parts, {.cols = hidden, .layer = layer, .huggingface = {full + ".gate_up_proj"}, .gguf = {block + "ffn_up"}, .bias = bias});
  } else {
    declare({.name = full + ".gate_proj", .rows = wide, .cols = hidden, .layer = layer, .gguf = {block + "ffn_gate" + gguf_suffix}, .bias = bias});
    declare({.name = full + ".up_proj", .rows = wide, .cols = hidden, .layer = layer, .gguf = {block + "ffn_up" + gguf_suffix}, .bias = bias});
  }
  declare({.name = full + ".down_proj", .rows = hidden, .cols = wide, .layer = layer, .gguf = {block + "ffn_down" + gguf_suffix}, .bias = bias});
}

void Llama::embed(Recorder& r) const { r.embed({}); }

void Llama::block(int layer, Recorder& r) const {
  r.program().enter(norm(layer, r, "input_layernorm"));
  attention(layer, r, 1.0f / std::sqrt(static_cast<float>(shape.head_dim)));
  r.program().enter(norm(layer, r, "post_attention_layernorm"));
  mlp(layer, r);
}

void Llama::attention(int layer, Recorder& r, float scale, float soft_cap) const {
  Norm q_norm, k_norm;
  if (traits_.head_norms) q_norm = norm(layer, r, "self_attn.q_norm"), k_norm = norm(layer, r, "self_attn.k_norm");
  r.program().project(r.weight(layer, "self_attn.q_proj"), r.weight(layer, "self_attn.k_proj"), r.weight(layer, "self_attn.v_proj"), r.heads(),
                      ropes_.of(r.context()), r.kv(layer), q_norm, k_norm);
  r.program().attend(r.heads(), r.kv(layer), scale, r.window(layer), soft_cap);
  r.program().contract(r.weight(layer, "self_attn.o_proj"));
}

void Llama::mlp(int layer, Recorder& r) const {
  r.program().project(r.weight(layer, "mlp.gate_proj"), r.weight(layer, "mlp.up_proj"), activation_);
  r.program().contract(r.weight(layer, "mlp.down_proj"));
}

void Llama::head(Recorder& r) const { r.head(r.norm("model.norm", epsilon_)); }

std::unique_ptr<Model> make_llama(const Config& config) {
  const bool bias = config.boolean("attention_bias", false);
  return std::make_unique<Llama>(
      config, Llama::Traits{.input_bias = bias, .output_bias = bias, .mlp_bias = config.boolean("mlp_bias", false), .gguf_rows = RowOrder::interleaved_rope},
      "llama");
}

}  // namespace tandem
