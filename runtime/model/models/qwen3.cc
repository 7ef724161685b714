// Qwen3: Llama's block with each head of q and k normalized; the upper layers may look back on a window only.
#include "runtime/model/models/llama.h"
#include "runtime/model/models/windows.h"

namespace tandem {

std::unique_ptr<Model> make_qwen3(const Config& config) {
  const auto upper = [](int64_t layer, int64_t max_window_layers) { return layer >= max_window_layers; };
  const bool bias = config.boolean("attention_bias", false);
  return std::make_unique<Llama>(
      config, Llama::Traits{.input_bias = bias, .output_bias = bias, .head_norms = true, .head_dim = 128, .windows = qwen_windows(config, upper)}, "qwen3");
}

}  // namespace tandem
