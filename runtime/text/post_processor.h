// The special tokens that go around one sequence: the "post_processor" of tokenizer.json, or what tokenizer_config.json's
// add_bos_token and add_eos_token make of it. A value.
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/text/json_field.h"

namespace tandem {

struct PostProcessor {
  std::vector<int32_t> before, after;
};

PostProcessor make_post_processor(const JsonField& field);  // refuses an unknown type by name

}  // namespace tandem
