// Token ids one by one -> text as soon as it is certain, for streaming. Never half a character; what all calls gave, joined, is
// Tokenizer::decode of all ids. Borrows the tokenizer; belongs to one stream of one thread.
#pragma once
#include <cstdint>
#include <string>

#include "runtime/text/tokenizer.h"

namespace tandem {

class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true);
  std::string feed(int32_t id);  // may be empty: a token can be part of a character
  std::string flush();           // what is left at the end of the answer; call once, last

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  DecoderStream stream_;
};

}  // namespace tandem
