// From what a user asks for to what the engine runs: every field checked, the chat rendered, the text tokenized, defaults filled in.
// Pure but for the seed, which is drawn when absent, and the id, which is made when empty. Thread-safe.
#pragma once
#include <string>
#include <vector>

#include "rpc/ask.h"
#include "rpc/text_side.h"

namespace tandem {

struct Prepared {
  Request request;  // without a deadline
  std::vector<std::string> stop_strings;
  std::vector<int32_t> resume;  // the tail of request.prompt that was generated before
  bool return_prompt_ids = false, echo = false;
};

// Errors: invalid_argument naming the field, not_found (model), failed_precondition (no tokenizer, no template).
Prepared prepare(const Ask& ask, const TextSide& text);

// The ids of an Ask's input alone. `rendered`, if given, receives the chat's text.
std::vector<int32_t> tokenize_input(const Ask& ask, const TextSide& text, bool special, bool generation_prompt,
                                    std::string* rendered = nullptr);

void check_model(const std::string& asked, const TextSide& text);  // Errors: not_found

}  // namespace tandem
