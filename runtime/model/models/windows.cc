#include "runtime/model/models/windows.h"

namespace tandem {

std::vector<int64_t> layer_windows(const Config& config, int64_t fallback, const std::function<bool(int layer)>& slides) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t layers = config.integer("num_hidden_layers", 1, 1024);
  const int64_t window = config.has("sliding_window")                  ? config.integer("sliding_window", 1, kMost)
                         : config.raw().contains("sliding_window") ? 0  // null
                                                                   : fallback;
  const std::vector<std::string> types = config.texts("layer_types", 1024);
  if (!types.empty() && types.size() != static_cast<size_t>(layers)) {
    config.bad("layer_types", "has " + std::to_string(types.size()) + " elements (must be num_hidden_layers, " + std::to_string(layers) + ")");
  }
  std::vector<int64_t> windows;
  for (int layer = 0; layer < layers; ++layer) {
    bool sliding = window > 0 && slides(layer);
    if (!types.empty()) {
      const std::string& type = types[static_cast<size_t>(layer)];
      sliding = type == "sliding_attention";
      if (!sliding && type != "full_attention") config.bad("layer_types", "holds " + type + " (must be full_attention or sliding_attention)");
      if (sliding && window == 0) config.bad("layer_types", "holds sliding_attention, but no sliding_window is in force (give one, or full_attention)");
    }
    windows.push_back(sliding ? window : 0);
  }
  return windows;
}

std::vector<int64_t> qwen_windows(const Config& config, bool (*slides)(int64_t layer, int64_t max_window_layers)) {
  const int64_t most = config.integer("max_window_layers", 0, 1 << 20, 28);
  if (!config.boolean("use_sliding_window", false)) {
    return std::vector<int64_t>(static_cast<size_t>(config.integer("num_hidden_layers", 1, 1024)), 0);
  }
  return layer_windows(config, 4096, [&](int layer) { return slides(layer, most); });
}

}  // namespace tandem
