// Text <-> token ids, as the Hugging Face tokenizers library does it for byte-pair and unigram models. Built from tokenizer.json or
// tokenizer.model (with tokenizer_config.json), or from the vocabulary inside of a GGUF file. Immutable after construction; every method is const and
// thread-safe.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/decoder.h"

namespace tandem {

// The tokenizer.ggml.* fields of a GGUF file, by the names of their last parts.
struct GgufVocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;       // 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; may be empty
  std::vector<std::string> merges;  // model "gpt2"
  std::vector<float> scores;        // model "llama"
  std::string model, pre;           // "gpt2" | "llama"; "smollm", "llama-bpe", "gpt-2", "qwen2", ...
  std::string architecture;         // general.architecture: "llama", "phi3", ...
  std::optional<int32_t> bos, eos, unknown, padding;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

class Tokenizer {
 public:
  // `where` names the file in errors. tokenizer_config_json may be empty; what it holds is what transformers uses of it: bos_token,
  // eos_token and the other named tokens, added_tokens_decoder, add_bos_token, add_eos_token.
  static std::unique_ptr<Tokenizer> from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                              const std::string& where);
  // tokenizer.model, SentencePiece's file; the config as above, and its add_prefix_space and legacy.
  static std::unique_ptr<Tokenizer> from_sentencepiece(std::string_view tokenizer_model, std::string_view tokenizer_config_json,
                                                       const std::string& where);
  // vocab.json (`where`) and merges.txt beside it: GPT-2's byte-level BPE; the config as above, and its add_prefix_space.
  static std::unique_ptr<Tokenizer> from_vocabulary(std::string_view vocab_json, std::string_view merges_txt,
                                                    std::string_view tokenizer_config_json, const std::string& where);
  static std::unique_ptr<Tokenizer> from_gguf(GgufVocabulary vocabulary, const std::string& where);
  ~Tokenizer();

  // add_special: the tokens that the tokenizer puts around a text (BOS, ...). Special tokens that the text spells out are recognised
  // either way. Bytes that are no UTF-8 are read as U+FFFD. Time grows as n log n.
  // guard: a text that is dropped wherever it stands, once it has kept added tokens from being found across it.
  std::vector<int32_t> encode(std::string_view utf8, bool add_special, std::string_view guard = {}) const;
  // Puts the guard behind the first character of everything that reads like a special token: encoded with it, it stays text.
  std::string guarded(std::string_view utf8, std::string_view guard) const;
  // As transformers' decode with clean_up_tokenization_spaces=False: ids outside of the vocabulary are left out.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  std::string piece(int32_t id) const;        // as stored (an added token: as decoding shows it); "" when there is no such id
  std::string token_bytes(int32_t id) const;  // the raw bytes it stands for, perhaps part of a character; special tokens: their name
  std::optional<int32_t> find(std::string_view piece) const;
  bool has(int32_t id) const;
  bool is_special(int32_t id) const;
  bool is_hidden(int32_t id) const;  // special, and decode leaves it out with skip_special: nearly always the same
  int32_t size() const;              // the highest id + 1; a model's output may be wider

  std::optional<int32_t> bos() const;
  std::optional<int32_t> eos() const;
  std::optional<int32_t> unknown() const;
  std::optional<int32_t> padding() const;

  DecoderStream decoder_stream() const;  // borrows this tokenizer; Detokenizer is the comfortable form

  struct Parts;  // filled by the readers, private to this folder
  explicit Tokenizer(std::unique_ptr<Parts> parts);

 private:
  void encode_plain(std::string_view text, bool at_start, struct EncodeScratch& scratch, std::vector<int32_t>& out) const;
  std::unique_ptr<Parts> parts_;
};

}  // namespace tandem
