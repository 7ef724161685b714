// Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention; layers whose MLP is a mixture of experts beside a shared one that every token goes
// through, others with a plain one.
#include "runtime/model/models/experts.h"
#include "runtime/model/models/llama.h"
#include "runtime/model/models/windows.h"

namespace tandem {
namespace {

class Qwen2Moe final : public Llama {
 public:
  Qwen2Moe(const Config& config, const Traits& traits) : Llama(config, traits, "qwen2_moe"), sparse_(traits.own_mlp), experts_(qwen_experts(config, 4)) {
    const int64_t shared = config.integer("shared_expert_intermediate_size", 1, 1 << 24);
    for (int layer = 0; layer < shape.layers; ++layer) {
      if (!sparse_[static_cast<size_t>(layer)]) continue;
      experts_.declare(*this, layer);
      declare_mlp(layer, "mlp.shared_expert", shared, false, "_shexp");
      declare({.name = layer_name(layer, "mlp.shared_expert_gate"), .rows = {}, .cols = {Axis::model, shape.hidden, 1}, .layer = layer,
               .gguf = {"blk." + std::to_string(layer) + ".ffn_gate_inp_shexp"}, .role = Role::router});
    }
  }

 protected:
  void mlp(int layer, Recorder& r) const override {
    if (!sparse_[static_cast<size_t>(layer)]) return Llama::mlp(layer, r);
    const auto shared = [&](const char* name) { return r.weight(layer, "mlp.shared_expert" + std::string(name)); };
    experts_.record(layer, r, activation_, {shared(".gate_proj"), shared(".up_proj"), shared(".down_proj"), shared("_gate")});
  }

 private:
  const std::vector<bool> sparse_;
  const Experts experts_;
};

}  // namespace

std::unique_ptr<Model> make_qwen2_moe(const Config& config) {
  // The other way around than Qwen2: every second one of the lower layers.
  const auto every_second = [](int64_t layer, int64_t max_window_layers) { return layer % 2 == 0 && layer < max_window_layers; };
  return std::make_unique<Qwen2Moe>(
      config, Llama::Traits{.input_bias = config.boolean("qkv_bias", true), .windows = qwen_windows(config, every_second), .own_mlp = sparse_layers(config)});
}

}  // namespace tandem
