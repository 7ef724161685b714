// One tensor, two names: GGUF's ("blk.0.attn_q.weight") and Hugging Face's ("model.layers.0.self_attn.q_proj.weight"). Names only: rows
// that GGUF permutes and matrices that it transposes are the family's business. Pure; any thread.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/checkpoint/source.h"

namespace tandem {

struct GgufName {
  std::string name;
  int64_t expert = -1;  // which slice of a 3-D tensor, when the name is that of all experts stacked
};

// What a Hugging Face name may be called in a GGUF file, the current form first (experts stacked, then one by one); empty when the
// table does not know it. model_type as config.json spells it ("llama", "mixtral", ...).
std::vector<GgufName> gguf_names(std::string_view model_type, std::string_view huggingface_name);

// The Hugging Face name, of expert `expert` when the tensor holds all of them; nothing when the table does not know it.
std::optional<std::string> huggingface_name(std::string_view model_type, std::string_view gguf_name, int64_t expert = 0);

// A tensor by either name.
struct Located {
  const TensorInfo* tensor = nullptr;  // null when the source holds it under neither name
  int64_t expert = -1;                 // its slice of the tensor's first dimension
};
Located locate(const TensorSource& source, std::string_view model_type, std::string_view name);

}  // namespace tandem
