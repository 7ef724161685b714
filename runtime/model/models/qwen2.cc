// Qwen2 and 2.5: Llama's block with biases on q, k and v; the upper layers may look back on a window only.
#include "runtime/model/models/llama.h"
#include "runtime/model/models/windows.h"

namespace tandem {

std::unique_ptr<Model> make_qwen2(const Config& config) {
  const auto upper = [](int64_t layer, int64_t max_window_layers) { return layer >= max_window_layers; };
  return std::make_unique<Llama>(config, Llama::Traits{.input_bias = true, .windows = qwen_windows(config, upper)}, "qwen2");
}

}  // namespace tandem
