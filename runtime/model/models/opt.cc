// OPT: learned positions that begin at row 2, biases, ReLU, LayerNorm before attention and MLP or (350m) after each sum; embeddings may be
// narrower than the hidden rows, with a projection on either end.
#include <cmath>

#include "runtime/model/models/llama.h"

namespace tandem {
namespace {

constexpr int64_t kPositionOffset = 2;

class Opt final : public Model {
 public:
  explicit Opt(const Config& config) {
    shape.layers = static_cast<int>(config.integer("num_hidden_layers", 1, 1024));
    shape.hidden = config.integer("hidden_size", 1, 1 << 20);
    shape.vocab = config.integer("vocab_size", 1, 1 << 24);
    shape.heads = shape.kv_heads = config.integer("num_attention_heads", 1, 4096);
    if (shape.hidden % shape.heads != 0) {
      config.bad("num_attention_heads", "is " + std::to_string(shape.heads) + " (must divide hidden_size, " + std::to_string(shape.hidden) + ")");
    }
    shape.head_dim = shape.hidden / shape.heads;
    shape.context = static_cast<int32_t>(config.integer("max_position_embeddings", 1, 1 << 24));
    shape.context_is_hard = true;
    activation_ = activation_of(config, "activation_function", "relu");
    norm_first_ = config.boolean("do_layer_norm_before", true);
    norm_last_ = norm_first_ && !config.boolean("_remove_final_layer_norm", false);
    if (!config.boolean("layer_norm_elementwise_affine", true)) config.bad("layer_norm_elementwise_affine", "is false (norms without weights are not known)");
    const bool bias = config.boolean("enable_bias", true);
    const int64_t words = config.integer("word_embed_proj_dim", 1, 1 << 20, shape.hidden);
    projects_ = words != shape.hidden;
    modules = {"model.decoder.embed_tokens", "lm_head", "model.decoder.layers.", {"model.decoder.embed_positions"}, {}};

    const Dim hidden{Axis::model, shape.hidden, 1}, narrow{Axis::model, words, 1}, heads{Axis::heads, shape.heads, shape.head_dim},
        kv_heads{Axis::kv_heads, shape.heads, shape.head_dim}, ffn{Axis::ffn, config.integer("ffn_dim", 1, 1 << 24), 1};
    declare_embedding(words, "model.decoder.embed_tokens");
    declare({.name = "model.embed_positions", .rows = {Axis::none, shape.context + kPositionOffset, 1}, .cols = hidden,
             .huggingface = {"model.decoder.embed_positions"}, .role = Role::embedding, .embeds = true});
    if (projects_) {
      declare({.name = "model.project_in", .rows = hidden, .cols = narrow, .huggingface = {"model.decoder.project_in"}, .embeds = true});
      declare({.name = "model.project_out", .rows = narrow, .cols = hidden, .huggingface = {"model.decoder.project_out"}});
      modules.first.push_back("model.decoder.project_in"), modules.last.push_back("model.decoder.project_out");
    }
    for (int layer = 0; layer < shape.layers; ++layer) {
      const std::string theirs = "model.decoder.layers." + std::to_string(layer) + ".";
      const auto linear = [&](const char* name, Dim rows, Dim cols, const char* tensor) {
        declare({.name = layer_name(layer, name), .rows = rows, .cols = cols, .layer = layer, .huggingface = {theirs + tensor}, .bias = bias});
      };
      declare_norm(layer_name(layer, "input_layernorm"), shape.hidden, layer, {theirs + "self_attn_layer_norm"}, {}, true);
      linear("self_attn.q_proj", heads, hidden, "self_attn.q_proj");
      linear("self_attn.k_proj", kv_heads, hidden, "self_attn.k_proj");
      linear("self_attn.v_proj", kv_heads, hidden, "self_attn.v_proj");
      linear("self_attn.o_proj", hidden, heads, "self_attn.out_proj");
      declare_norm(layer_name(layer, "post_attention_layernorm"), shape.hidden, layer, {theirs + "final_layer_norm"}, {}, true);
      linear("mlp.up_proj", ffn, hidden, "fc1");
      linear("mlp.down_proj", hidden, ffn, "fc2");
    }
    if (norm_last_) {
      declare_norm("model.norm", shape.hidden, -1, {"model.decoder.final_layer_norm"}, {}, true);
      modules.last.push_back("model.decoder.final_layer_norm");
    }
    declare_head(words, config.boolean("tie_word_embeddings", true));
    group_layers({});
  }

  std::string_view family() const override { return "opt"; }
  void embed(Recorder& r) const override {
    r.embed({.positions = "model.embed_positions", .position_offset = kPositionOffset, .projection = projects_ ? "model.project_in" : ""});
  }
  void block(int layer, Recorder& r) const override {
    Program& p = r.program();
    const auto norm = [&](const char* name) { return r.norm(layer, name, kEpsilon, NormKind::layer); };
    p.enter(norm_first_ ? norm("input_layernorm") : kAsItIs);
    p.project(r.weight(layer, "self_attn.q_proj"), r.weight(layer, "self_attn.k_proj"), r.weight(layer, "self_attn.v_proj"), r.heads(), {}, r.kv(layer));
    p.attend(r.heads(), r.kv(layer), 1.0f / std::sqrt(static_cast<float>(shape.head_dim)));
    p.contract(r.weight(layer, "self_attn.o_proj"));
    p.enter(norm(norm_first_ ? "post_attention_layernorm" : "input_layernorm"), !norm_first_);
    p.project(r.weight(layer, "mlp.up_proj"), activation_);
    p.contract(r.weight(layer, "mlp.down_proj"));
    if (!norm_first_) p.enter(norm("post_attention_layernorm"), true);
  }
  void head(Recorder& r) const override {
    r.head(norm_last_ ? r.norm("model.norm", kEpsilon, NormKind::layer) : kAsItIs, 0, projects_ ? "model.project_out" : "");
  }

 private:
  static constexpr float kEpsilon = 1e-5f;  // of torch.nn.LayerNorm
  static constexpr Norm kAsItIs{.kind = NormKind::none};
  bool norm_first_ = true, norm_last_ = true, projects_ = false;
  Activation activation_ = Activation::relu;
};

}  // namespace

std::unique_ptr<Model> make_opt(const Config& config) { return std::make_unique<Opt>(config); }

}  // namespace tandem
