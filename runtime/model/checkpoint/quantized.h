// Checkpoints that were quantized before they were saved: config.json's quantization_config and the tensors' own keys, turned into
// tensors as formats want them. Of a quantized module M the source below has "M.weight" (type: the format's name, shape [out, in], bytes:
// its codes) and beside it one tensor for each further component ("M.weight" + Component::suffix); what is not quantized stays as it is.
// Most of these are other names for bytes of the files; what a format stores in another order is put in order when it is read.
// Immutable after opening, like any source; any thread.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/model/checkpoint/source.h"

namespace tandem {

// `files` as it is when `config` (config.json, of `file`) has no quantization_config. Reads headers and small descriptions, no weights.
// Errors: Code::invalid_argument naming file and key: an unknown method, a component that is missing or of the wrong type or size.
std::unique_ptr<TensorSource> open_quantized(std::unique_ptr<TensorSource> files, const nlohmann::json& config, const std::string& file);

// What quantization_config alone says, for a config.json without weights: linear layers are in `format`, except in `skipped` modules.
struct DeclaredQuantization {
  const Format* format = nullptr;
  std::vector<std::string> skipped;
};
std::optional<DeclaredQuantization> declared_quantization(const Checkpoint& checkpoint);

}  // namespace tandem
