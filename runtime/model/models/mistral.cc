// Mistral: Llama's block, every layer of which looks back on a window only.
#include "runtime/model/models/llama.h"
#include "runtime/model/models/windows.h"

namespace tandem {

std::unique_ptr<Model> make_mistral(const Config& config) {
  return std::make_unique<Llama>(config, Llama::Traits{.windows = layer_windows(config, 4096, [](int) { return true; })}, "mistral");
}

}  // namespace tandem
