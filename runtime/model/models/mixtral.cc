// Mixtral: Llama's attention, and per layer a router that sends every token to the best few of many gated MLPs.
#include "runtime/model/models/experts.h"
#include "runtime/model/models/llama.h"
#include "runtime/model/models/windows.h"

namespace tandem {
namespace {

class Mixtral final : public Llama {
 public:
  Mixtral(const Config& config, const Traits& traits) : Llama(config, traits, "mixtral") {
    experts_.count = static_cast<int32_t>(config.integer("num_local_experts", 1, 4096));
    experts_.top_k = static_cast<int32_t>(config.integer("num_experts_per_tok", 1, experts_.count, 2));
    experts_.ffn = config.integer("intermediate_size", 1, 1 << 24);
    experts_.router = "block_sparse_moe.gate", experts_.experts = "block_sparse_moe.experts";
    experts_.gate = "w1", experts_.up = "w3", experts_.down = "w2";
    for (int layer = 0; layer < shape.layers; ++layer) experts_.declare(*this, layer);
  }

 protected:
  void mlp(int layer, Recorder& r) const override { experts_.record(layer, r, activation_); }

 private:
  Experts experts_;
};

}  // namespace

std::unique_ptr<Model> make_mixtral(const Config& config) {
  const bool bias = config.boolean("attention_bias", false);
  const auto layers = static_cast<size_t>(config.integer("num_hidden_layers", 1, 1024));
  return std::make_unique<Mixtral>(config, Llama::Traits{.input_bias = bias, .output_bias = bias, .gguf_rows = RowOrder::interleaved_rope,
                                                         .windows = layer_windows(config, 0, [](int) { return true; }), .own_mlp = std::vector<bool>(layers, true)});
}

}  // namespace tandem
