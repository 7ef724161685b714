// A model's modules with transformers 4's names and classes, and what each holds. Derived from the weight table, so a family needs
// nothing for it but an "architectures" entry in its config. Values; pure.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/model/blueprint.h"

namespace tandem {

struct ModuleRow {  // a module that owns weights, or buffers
  std::string name, class_name;        // "model.layers.0.self_attn.q_proj", "Linear4bit"
  std::vector<int64_t> shape;          // of its weight, [out, in]
  std::string dtype, format;           // as torch stores it ("uint8" for NF4 codes); the format it is held in
  uint64_t footprint_bytes = 0;        // as transformers counts it; a tied weight counts with the module that owns it
  uint64_t device_bytes = 0;           // in the backend's layout, scales included
  bool bias = false;
};

// In transformers' order; footprints add up to footprint_bytes(blueprint), device bytes to what one device would hold.
std::vector<ModuleRow> module_rows(const Blueprint& blueprint, const Backend& backend);

// As print(model) shows it: "LlamaForCausalLM(\n  (model): LlamaModel(...". Modules that differ in their class end a run of equal layers.
std::string module_tree(const Blueprint& blueprint, const std::vector<ModuleRow>& rows);

}  // namespace tandem
