#include "runtime/text/detokenizer.h"

namespace tandem {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special), stream_(tokenizer.decoder_stream()) {}

std::string Detokenizer::feed(int32_t id) {
  if (!tokenizer_.has(id) || (skip_special_ && tokenizer_.is_hidden(id))) return {};
  return stream_.feed(tokenizer_.piece(id));
}

std::string Detokenizer::flush() { return stream_.flush(); }

}  // namespace tandem
