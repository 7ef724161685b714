// Qwen3-MoE: Qwen3's attention; layers whose MLP is a mixture of experts, others with a plain one.
#include "runtime/model/models/experts.h"
#include "runtime/model/models/llama.h"
#include "runtime/model/models/windows.h"

namespace tandem {
namespace {

class Qwen3Moe final : public Llama {
 public:
  Qwen3Moe(const Config& config, const Traits& traits) : Llama(config, traits, "qwen3_moe"), sparse_(traits.own_mlp), experts_(qwen_experts(config, 8)) {
    for (int layer = 0; layer < shape.layers; ++layer) {
      if (sparse_[static_cast<size_t>(layer)]) experts_.declare(*this, layer);
    }
  }

 protected:
  void mlp(int layer, Recorder& r) const override {
    sparse_[static_cast<size_t>(layer)] ? experts_.record(layer, r, activation_) : Llama::mlp(layer, r);
  }

 private:
  const std::vector<bool> sparse_;
  const Experts experts_;
};

}  // namespace

std::unique_ptr<Model> make_qwen3_moe(const Config& config) {
  const bool bias = config.boolean("attention_bias", false);
  const auto all = [](int64_t, int64_t) { return true; };
  return std::make_unique<Qwen3Moe>(config, Llama::Traits{.input_bias = bias, .output_bias = bias, .head_norms = true, .windows = qwen_windows(config, all),
                                                          .own_mlp = sparse_layers(config)});
}

}  // namespace tandem
