// A GGUF file's tokenizer said as Hugging Face's files say it. Pure.
#pragma once
#include <string>

#include "runtime/text/tokenizer.h"

namespace tandem {

struct TokenizerFiles { std::string tokenizer_json, tokenizer_config_json; };

// Of byte-level byte-pair models ("gpt2"); of others both are empty. Errors: those of Tokenizer::from_gguf.
TokenizerFiles gguf_tokenizer_files(const GgufVocabulary& vocabulary, const std::string& chat_template, const std::string& where);

// What the word in tokenizer.ggml.pre stands for. Views of constants. Errors: Code::invalid_argument, an unknown word.
struct GgufPre {
  std::vector<std::string_view> splits;  // one after the other
  bool ignore_merges = false, nfc = false, add_bos = false;
};
GgufPre gguf_pre(const std::string& name, const std::string& where);

}  // namespace tandem
