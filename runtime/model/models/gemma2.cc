// Gemma 2: norms before and after attention and MLP, soft caps on scores and logits, a window on every second layer, scaled embeddings.
#include <cmath>

#include "runtime/model/models/llama.h"
#include "runtime/model/models/windows.h"

namespace tandem {
namespace {

class Gemma2 final : public Llama {
 public:
  Gemma2(const Config& config, const Traits& traits) : Llama(config, traits, "gemma2") {
    scale_ = static_cast<float>(1 / std::sqrt(config.number("query_pre_attn_scalar", 1e-6, 1e6, 256)));
    score_cap_ = cap(config, "attn_logit_softcapping", 50);
    logit_cap_ = cap(config, "final_logit_softcapping", 30);
  }
  void embed(Recorder& r) const override { r.embed({.scale = std::sqrt(static_cast<float>(shape.hidden))}); }
  void block(int layer, Recorder& r) const override {
    Program& p = r.program();
    p.enter(norm(layer, r, "input_layernorm"));
    attention(layer, r, scale_, score_cap_);
    p.normalize(norm(layer, r, "post_attention_layernorm"));
    p.enter(norm(layer, r, "pre_feedforward_layernorm"));
    mlp(layer, r);
    p.normalize(norm(layer, r, "post_feedforward_layernorm"));
  }
  void head(Recorder& r) const override { r.head(r.norm("model.norm", epsilon_), logit_cap_); }

 private:
  static float cap(const Config& config, const char* key, double fallback) {  // null: none
    if (config.raw().contains(key) && !config.has(key)) return 0;
    return static_cast<float>(config.number(key, 1e-6, 1e6, fallback));
  }
  float scale_ = 1, score_cap_ = 0, logit_cap_ = 0;
};

}  // namespace

std::unique_ptr<Model> make_gemma2(const Config& config) {
  if (config.boolean("use_bidirectional_attention", false)) config.bad("use_bidirectional_attention", "is true (only causal attention is known)");
  const bool bias = config.boolean("attention_bias", false);
  return std::make_unique<Gemma2>(
      config, Llama::Traits{.input_bias = bias, .output_bias = bias, .tied = true, .head_dim = 256, .norm_plus = 1, .activation = "hidden_activation",
                            .activation_fallback = "gelu_pytorch_tanh",
                            .norms = {{"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "post_attention_norm"},
                                      {"pre_feedforward_layernorm", "ffn_norm"}, {"post_feedforward_layernorm", "post_ffw_norm"}},
                            .windows = layer_windows(config, 4096, [](int layer) { return layer % 2 == 0; })});
}

}  // namespace tandem
