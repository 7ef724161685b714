// From pieces back to text: the "decoder" of tokenizer.json, as a chain of steps that can be fed piece by piece. A Decoder is
// immutable and thread-safe; a DecoderStream belongs to one thread and borrows its Decoder. What a stream has given out is final: all
// of it joined is what decoding the pieces at once gives.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/json_field.h"

namespace tandem {

// One step at work. A piece may arrive in parts; `end` closes it.
class DecoderStage {
 public:
  virtual ~DecoderStage() = default;
  virtual void push(std::string_view text, bool end) = 0;
  virtual void finish() = 0;  // no more pieces
  DecoderStage* next = nullptr;
};

class DecoderStep {
 public:
  virtual ~DecoderStep() = default;
  virtual std::unique_ptr<DecoderStage> start() const = 0;
  virtual std::string bytes(std::string piece) const { return piece; }  // the raw bytes that a piece stands for, as far as this step knows
};

class DecoderStream {
 public:
  std::string feed(std::string_view piece);  // text that is now certain
  std::string flush();                       // the rest; the stream is then at its end

 private:
  friend class Decoder;
  std::vector<std::unique_ptr<DecoderStage>> stages_;
  std::string* out_ = nullptr;  // the last stage's
};

class Decoder {
 public:
  DecoderStream stream() const;
  std::string bytes(std::string_view piece) const;

  std::vector<std::unique_ptr<DecoderStep>> steps;  // none: pieces are joined by spaces, as the reference does without a decoder
};

void add_decoder(const JsonField& field, Decoder& decoder);  // refuses an unknown type by name
void add_byte_level_decoder(Decoder& decoder);
void add_metaspace_decoder(Decoder& decoder, bool drop_first_space);     // U+2581 is a space
void add_sentence_piece_decoder(Decoder& decoder, bool strip_first_space);  // U+2581 is a space, <0x0A> a byte

}  // namespace tandem
