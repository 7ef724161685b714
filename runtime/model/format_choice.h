// Which format every weight is held in: --format against what the checkpoint stores. Pure.
#pragma once
#include <string>
#include <vector>

#include "kernels/formats/format.h"
#include "runtime/model/checkpoint/source.h"
#include "runtime/model/models/model.h"

namespace tandem {

struct FormatOptions {
  std::string format = "keep";  // "nf4,lm_head=bf16,mlp.experts=fp16": a default and exceptions by module name
  bool double_quant = false;    // nf4 and fp4: quantize the scales too
};

// The float type that a config.json names; bf16 when it names none.
const Format& config_format(const nlohmann::json& config);

// `name` as --format takes it for one module; double_quant: nf4 and fp4 with quantized scales. Errors: those of format().
const Format& named_format(const std::string& name, bool double_quant);

// One entry a weight row. `stored`: as the checkpoint has it (a preset or lone config: its torch_dtype); `held`: on the device.
struct WeightFormats {
  std::vector<const Format*> stored, held;
  std::vector<const TensorInfo*> tensors;  // null without a checkpoint
  std::string label;                       // for people and JSON: "nf4", "q4_1 + q8_0"
};

// Errors: Code::invalid_argument: a tensor that is missing or whose shape disagrees with the config (both values are named), an unknown
// format, a module name that matches nothing.
WeightFormats choose_formats(const Model& model, const Checkpoint& checkpoint, const FormatOptions& options);

}  // namespace tandem
