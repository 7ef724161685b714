// Rotary position embedding parameters from a config, for every rope_type that Llama checkpoints use. Pure.
#pragma once
#include "kernels/program/record.h"
#include "runtime/model/checkpoint/config.h"

namespace tandem {

// Frequencies for heads of head_dim elements. rope_type: default, linear, llama3, yarn, dynamic (equals default up to the original
// context, beyond which it is refused by limit_context), longrope (a second set of factors beyond the original context; a cached key cannot
// change its rotation, so the set goes by the longest sequence that will be run), gguf_factors and gguf_longrope (llama.cpp's tensors of factors).
// Source: transformers modeling_rope_utils.py. Errors: Code::invalid_argument naming the key.
struct Ropes {
  Rope usual, extended;  // extended: of sequences that may grow past `original` tokens
  int64_t original = 0;  // 0: there is but one
  const Rope& of(int64_t context) const { return original > 0 && context > original ? extended : usual; }
};
Ropes make_ropes(const Config& config, int64_t head_dim);

bool rope_is_bounded(const Config& config);  // dynamic: see rope_limit

// Positions past this cannot be computed with the given scaling; `context` when there is no such limit.
int32_t rope_limit(const Config& config, int32_t context);

}  // namespace tandem
