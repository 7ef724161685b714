// Llama 2 and 3.x, and what shares their block: grouped-query attention with rotary positions, RMS norms, a gated MLP. Relatives say in
// Traits what they do otherwise, and override what is left.
#pragma once
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/models/model.h"
#include "runtime/model/models/rope.h"

namespace tandem {

class Llama : public Model {
 public:
  struct NormName { const char *name, *gguf; };
  struct Traits {
    bool input_bias = false, output_bias = false;  // of q, k and v; of o
    bool mlp_bias = false;
    bool tied = false;              // when the config does not say
    bool head_norms = false;        // q_norm and k_norm: each head of q and k is normalized
    bool fused = false;             // the checkpoint has q, k and v in one tensor, gate and up in another
    int64_t head_dim = 0;           // when the config does not say; 0: hidden_size / num_attention_heads
    float norm_plus = 0;            // Hugging Face stores the norms' weights less this
    const char *activation = "hidden_act", *activation_fallback = "silu";
    std::vector<NormName> norms = {{"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"}};  // of a layer
    RowOrder gguf_rows = RowOrder::as_is;  // of q and k
    std::vector<int64_t> windows;          // tokens that each layer looks back on, 0: all; empty: all layers, all
    std::vector<bool> own_mlp;             // layers whose MLP the relative declares and records; empty: none
  };
  Llama(const Config& config, const Traits& traits, std::string_view family);
  std::string_view family() const override { return family_; }
  void embed(Recorder& record) const override;
  void block(int layer, Recorder& record) const override;
  void head(Recorder& record) const override;

 protected:
  virtual void mlp(int layer, Recorder& record) const;
  void attention(int layer, Recorder& record, float scale, float soft_cap = 0) const;  // from q, k and v to what o contracts
  // Declares a gated MLP "<name>.gate_proj", "up_proj" and "down_proj".
  void declare_mlp(int layer, const std::string& name, int64_t ffn, bool bias, const std::string& gguf_suffix = "");
  Norm norm(int layer, Recorder& record, const std::string& name) const { return record.norm(layer, name, epsilon_); }

  float epsilon_ = 1e-6f;
  Ropes ropes_;
  Activation activation_ = Activation::silu;

 private:
  const std::string_view family_;
  const Traits traits_;
};

Activation activation_of(const Config& config, std::string_view key, std::string_view fallback);

}  // namespace tandem
