// GPT-2: learned positions, LayerNorm before attention and MLP, biases everywhere, q, k and v in one tensor, matrices stored [in, out].
#include <cmath>

#include "runtime/model/models/llama.h"

namespace tandem {
namespace {

class Gpt2 final : public Model {
 public:
  explicit Gpt2(const Config& config) {
    shape.layers = static_cast<int>(config.integer("n_layer", 1, 1024));
    shape.hidden = config.integer("n_embd", 1, 1 << 20);
    shape.vocab = config.integer("vocab_size", 1, 1 << 24);
    shape.heads = shape.kv_heads = config.integer("n_head", 1, 4096);
    if (shape.hidden % shape.heads != 0) config.bad("n_head", "is " + std::to_string(shape.heads) + " (must divide n_embd, " + std::to_string(shape.hidden) + ")");
    shape.head_dim = shape.hidden / shape.heads;
    shape.context = static_cast<int32_t>(config.integer("n_positions", 1, 1 << 24));
    shape.context_is_hard = true;
    epsilon_ = static_cast<float>(config.number("layer_norm_epsilon", 0, 1, 1e-5));
    activation_ = activation_of(config, "activation_function", "gelu_new");
    scaled_ = config.boolean("scale_attn_weights", true);
    scaled_by_layer_ = config.boolean("scale_attn_by_inverse_layer_idx", false);
    if (config.boolean("add_cross_attention", false)) config.bad("add_cross_attention", "is true (only a decoder alone is known)");
    modules = {"transformer.wte", "lm_head", "transformer.h.", {"transformer.wpe"}, {"transformer.ln_f"}};

    const Dim hidden{Axis::model, shape.hidden, 1}, heads{Axis::heads, shape.heads, shape.head_dim}, kv_heads{Axis::kv_heads, shape.heads, shape.head_dim},
        ffn{Axis::ffn, config.integer("n_inner", 1, 1 << 24, 4 * shape.hidden), 1};
    declare_embedding(shape.hidden, "transformer.wte");
    declare({.name = "model.embed_positions", .rows = {Axis::none, shape.context, 1}, .cols = hidden, .huggingface = {"transformer.wpe"},
             .gguf = {"position_embd"}, .role = Role::embedding, .embeds = true});
    for (int layer = 0; layer < shape.layers; ++layer) {
      const std::string theirs = "transformer.h." + std::to_string(layer) + ".", block = "blk." + std::to_string(layer) + ".";
      const auto linear = [&](const char* name, Dim rows, Dim cols, const char* tensor, const char* gguf) {
        declare({.name = layer_name(layer, name), .rows = rows, .cols = cols, .layer = layer, .huggingface = {.tensor = theirs + tensor, .transposed = true},
                 .gguf = {block + gguf}, .bias = true});
      };
      const FusedPart parts[] = {{layer_name(layer, "self_attn.q_proj"), heads}, {layer_name(layer, "self_attn.k_proj"), kv_heads},
                                 {layer_name(layer, "self_attn.v_proj"), kv_heads}};
      declare_norm(layer_name(layer, "input_layernorm"), shape.hidden, layer, {theirs + "ln_1"}, {block + "attn_norm"}, true);
      declare_fused(parts, {.cols = hidden, .layer = layer, .huggingface = {.tensor = theirs + "attn.c_attn", .transposed = true}, .gguf = {block + "attn_qkv"}, .bias = true});
      linear("self_attn.o_proj", hidden, heads, "attn.c_proj", "attn_output");
      declare_norm(layer_name(layer, "post_attention_layernorm"), shape.hidden, layer, {theirs + "ln_2"}, {block + "ffn_norm"}, true);
      linear("mlp.up_proj", ffn, hidden, "mlp.c_fc", "ffn_up");
      linear("mlp.down_proj", hidden, ffn, "mlp.c_proj", "ffn_down");
    }
    declare_norm("model.norm", shape.hidden, -1, {"transformer.ln_f"}, {"output_norm"}, true);
    declare_head(shape.hidden, config.boolean("tie_word_embeddings", true));
    group_layers({});
  }

  std::string_view family() const override { return "gpt2"; }
  void embed(Recorder& r) const override { r.embed({.positions = "model.embed_positions"}); }
  void block(int layer, Recorder& r) const override {
    Program& p = r.program();
    const float scale = (scaled_ ? 1.0f / std::sqrt(static_cast<float>(shape.head_dim)) : 1.0f) / static_cast<float>(scaled_by_layer_ ? layer + 1 : 1);
    p.enter(r.norm(layer, "input_layernorm", epsilon_, NormKind::layer));
    p.project(r.weight(layer, "self_attn.q_proj"), r.weight(layer, "self_attn.k_proj"), r.weight(layer, "self_attn.v_proj"), r.heads(), {}, r.kv(layer));
    p.attend(r.heads(), r.kv(layer), scale);
    p.contract(r.weight(layer, "self_attn.o_proj"));
    p.enter(r.norm(layer, "post_attention_layernorm", epsilon_, NormKind::layer));
    p.project(r.weight(layer, "mlp.up_proj"), activation_);
    p.contract(r.weight(layer, "mlp.down_proj"));
  }
  void head(Recorder& r) const override { r.head(r.norm("model.norm", epsilon_, NormKind::layer)); }

 private:
  float epsilon_ = 1e-5f;
  bool scaled_ = true, scaled_by_layer_ = false;
  Activation activation_ = Activation::gelu_tanh;
};

}  // namespace

std::unique_ptr<Model> make_gpt2(const Config& config) { return std::make_unique<Gpt2>(config); }

}  // namespace tandem
