// Phi-3 and Phi-4-mini: Llama's block from fused weights, with longrope and a window on every layer where the config has them.
#include "runtime/model/models/llama.h"
#include "runtime/model/models/windows.h"

namespace tandem {

std::unique_ptr<Model> make_phi3(const Config& config) {
  return std::make_unique<Llama>(config, Llama::Traits{.fused = true, .windows = layer_windows(config, 0, [](int) { return true; })}, "phi3");
}

}  // namespace tandem
