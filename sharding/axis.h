// What a dimension of a weight means. A rule table (rules.h) says where it goes. Values only.
#pragma once
#include <cstdint>

namespace tandem {

enum class Axis : uint8_t { none, layer, model, heads, kv_heads, head_dim, ffn, experts, expert_ffn, vocab };

struct Dim {          // count things of `unit` elements each: heads x head_dim, ffn x 1, ...
  Axis axis = Axis::none;
  int64_t count = 1, unit = 1;
  int64_t size() const { return count * unit; }
};

}  // namespace tandem
