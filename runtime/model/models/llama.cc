#include "runtime/model/models/llama.h"

#include <cmath>

#include "runtime/model/models/rope.h"

namespace tandem {
namespace {

constexpr int64_t kMost = int64_t{1} << 24;

Dim model_dim(const ModelShape& s) { return {Axis::model, s.hidden, 1}; }

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

Llama::Llama(const Config& config) : Llama(config, Declared{}) {}

Llama::Llama(const Config& config, Declared declared) {
  shape.layers = static_cast<int>(config.integer("num_hidden_layers", 1, 1024));
  shape.hidden = config.integer("hidden_size", 1, 1 << 20);
  shape.vocab = config.integer("vocab_size", 1, kMost);
  shape.heads = config.integer("num_attention_heads", 1, 4096);
  shape.kv_heads = config.integer("num_key_value_heads", 1, 4096, shape.heads);
  shape.head_dim = config.integer("head_dim", 2, 4096, shape.hidden / shape.heads);
  shape.context = rope_limit(config, static_cast<int32_t>(config.integer("max_position_embeddings", 1, 1 << 30, 2048)));
  shape.context_is_hard = rope_is_bounded(config);
  if (shape.heads % shape.kv_heads != 0) {
    config.bad("num_key_value_heads", "is " + std::to_string(shape.kv_heads) + " (must divide num_attention_heads, " + std::to_string(shape.heads) + ")");
  }
  if (shape.head_dim % 2 != 0) config.bad("head_dim", "is " + std::to_string(shape.head_dim) + " (must be even)");
  epsilon_ = static_cast<float>(config.number("rms_norm_eps", 0, 1, 1e-6));
  rope_ = make_rope(config, shape.head_dim);
  activation_ = activation_of(config, "hidden_act", "silu");

  const Dim hidden = model_dim(shape), vocab{Axis::vocab, shape.vocab, 1};
  const Dim heads{Axis::heads, shape.heads, shape.head_dim}, kv_heads{Axis::kv_heads, shape.kv_heads, shape.head_dim};
  embedding = weights.add({.name = "model.embed_tokens.weight", .role = Role::embedding, .rows = vocab, .cols = hidden,
                           .huggingface = {"model.embed_tokens.weight"}, .gguf = {"token_embd.weight"}});
  const bool bias = config.boolean("attention_bias", false);
  for (int layer = 0; layer < shape.layers; ++layer) {
    norm(layer, "input_layernorm", "attn_norm");
    linear(layer, "self_attn.q_proj", heads, hidden, "attn_q", bias, RowOrder::interleaved_rope);
    linear(layer, "self_attn.k_proj", kv_heads, hidden, "attn_k", bias, RowOrder::interleaved_rope);
    linear(layer, "self_attn.v_proj", kv_heads, hidden, "attn_v", bias);
    linear(layer, "self_attn.o_proj", hidden, heads, "attn_output", bias);
    norm(layer, "post_attention_layernorm", "ffn_norm");
    if (declared.mlp) {
      const Dim ffn{Axis::ffn, config.integer("intermediate_size", 1, kMost), 1};
      const bool mlp_bias = config.boolean("mlp_bias", false);
      linear(layer, "mlp.gate_proj", ffn, hidden, "ffn_gate", mlp_bias);
      linear(layer, "mlp.up_proj", ffn, hidden, "ffn_up", mlp_bias);
      linear(layer, "mlp.down_proj", hidden, ffn, "ffn_down", mlp_bias);
    }
  }
  weights.add({.name = "model.norm.weight", .role = Role::norm, .cols = hidden, .huggingface = {"model.norm.weight"}, .gguf = {"output_norm.weight"}});
  if (config.boolean("tie_word_embeddings", false)) {
    head_weight = weights.add({.name = "lm_head.weight", .role = Role::head, .rows = vocab, .cols = hidden,
                               .huggingface = {"model.embed_tokens.weight"}, .gguf = {"token_embd.weight"}, .tied_to = embedding});
  } else {
    head_weight = weights.add({.name = "lm_head.weight", .role = Role::head, .rows = vocab, .cols = hidden,
                               .huggingface = {"lm_head.weight"}, .gguf = {"output.weight"}});
  }
  KvGroup group{{}, shape.kv_heads, shape.head_dim, 0};
  for (int layer = 0; layer < shape.layers; ++layer) group.layers.push_back(layer);
  kv_groups.push_back(std::move(group));
}

void Llama::linear(int layer, const std::string& name, Dim rows, Dim cols, const std::string& gguf, bool bias, RowOrder order, Role role) {
  const std::string full = layer_name(layer, name), block = "blk." + std::to_string(layer) + "." + gguf;
  weights.add({.name = full + ".weight", .role = role, .layer = layer, .rows = rows, .cols = cols,
               .huggingface = {full + ".weight"}, .gguf = {.tensor = block + ".weight", .order = order}});
  if (!bias) return;
  weights.add({.name = full + ".bias", .role = Role::bias, .layer = layer, .rows = rows, .cols = {},
               .huggingface = {full + ".bias"}, .gguf = {.tensor = block + ".bias", .order = order}});
}

void Llama::norm(int layer, const std::string& name, const std::string& gguf) {
  const std::string full = layer_name(layer, name) + ".weight";
  weights.add({.name = full, .role = Role::norm, .layer = layer, .cols = model_dim(shape),
               .huggingface = {full}, .gguf = {"blk." + std::to_string(layer) + "." + gguf + ".weight"}});
}

void Llama::embed(Recorder& r) const { r.embed(); }

void Llama::block(int layer, Recorder& r) const {
  Program& p = r.program();
  p.enter(r.norm(layer, "input_layernorm", epsilon_));
  p.project(r.weight(layer, "self_attn.q_proj"), r.weight(layer, "self_attn.k_proj"), r.weight(layer, "self_attn.v_proj"), r.heads(), rope_, r.kv(layer));
  p.attend(r.heads(), r.kv(layer), 1.0f / std::sqrt(static_cast<float>(shape.head_dim)));
  p.contract(r.weight(layer, "self_attn.o_proj"));
  p.enter(r.norm(layer, "post_attention_layernorm", epsilon_));
  mlp(layer, r);
}

void Llama::mlp(int layer, Recorder& r) const {
  r.program().project(r.weight(layer, "mlp.gate_proj"), r.weight(layer, "mlp.up_proj"), activation_);
  r.program().contract(r.weight(layer, "mlp.down_proj"));
}

void Llama::head(Recorder& r) const { r.head(r.norm("model.norm", epsilon_)); }

}  // namespace tandem
