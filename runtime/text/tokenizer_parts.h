// What a Tokenizer is made of, for its readers (tokenizer_json, tokenizer_gguf). Owned by the Tokenizer; the model borrows the
// vocabulary beside it, so a Parts never moves.
#pragma once
#include <memory>
#include <optional>

#include "runtime/text/added_tokens.h"
#include "runtime/text/bpe.h"
#include "runtime/text/decoder.h"
#include "runtime/text/normalizer.h"
#include "runtime/text/post_processor.h"
#include "runtime/text/pretokenizer.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/vocabulary.h"

namespace tandem {

struct Tokenizer::Parts {
  Vocabulary vocabulary;
  AddedTokens added;
  std::unique_ptr<Normalizer> normalizer;       // may be null
  std::unique_ptr<PreTokenizer> pre_tokenizer;  // may be null
  std::unique_ptr<WordModel> model;
  PostProcessor post_processor;
  Decoder decoder;
  std::optional<int32_t> bos, eos, unknown, padding;
};

}  // namespace tandem
