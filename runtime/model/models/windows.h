// How far back each layer's attention looks, from a config. Pure.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/model/checkpoint/config.h"

namespace tandem {

// For each layer its window in tokens, the row itself counted, or 0 for all. The window is sliding_window (`fallback` when the config
// does not have that key; null means none); it holds for the layers that layer_types names "sliding_attention", or where there is no such
// list, for those of `slides`. Errors: Code::invalid_argument naming the key.
std::vector<int64_t> layer_windows(const Config& config, int64_t fallback, const std::function<bool(int layer)>& slides);

// Qwen's: nothing slides unless use_sliding_window says so, and then, where there is no layer_types, what `slides` says of
// (layer, max_window_layers).
std::vector<int64_t> qwen_windows(const Config& config, bool (*slides)(int64_t layer, int64_t max_window_layers));

}  // namespace tandem
