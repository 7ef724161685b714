// A GGUF file's metadata said with the keys of config.json and generation_config.json, so that a model family reads one form. Pure.
#pragma once
#include <nlohmann/json.hpp>

#include "runtime/model/checkpoint/gguf.h"

namespace tandem {

// Every architecture gets the common keys; those of the table also their own. `file` is the first file, for the arrays in it.
// Rotary factors that GGUF keeps as a tensor become {"rope_type": "gguf_factors", "tensor": "rope_freqs.weight"}, and
// {"rope_type": "gguf_longrope", "long_tensor", "short_tensor", "original_max_position_embeddings", "attention_factor"}.
// Errors: Code::invalid_argument naming file and key.
nlohmann::json gguf_config(const Storage& file, const GgufHeader& header, const TensorSource& tensors);
nlohmann::json gguf_generation_config(const Storage& file, const GgufHeader& header);

}  // namespace tandem
