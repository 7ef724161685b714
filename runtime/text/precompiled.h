// SentencePiece's compiled table of replacements ("precompiled_charsmap"): a Darts double array from UTF-8 to offsets, then the texts,
// each ended by a zero byte. Immutable, thread-safe.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "runtime/text/normalizer.h"

namespace tandem {

// Applied as the Hugging Face library does: a grapheme of less than 6 bytes first tries to be replaced whole (by what its shortest prefix
// in the table becomes), else each of its characters. Error naming `where` when the table is cut short.
std::unique_ptr<Normalizer> make_precompiled_normalizer(std::string charsmap, const std::string& where);

std::string decode_base64(std::string_view text, const std::string& where);

}  // namespace tandem
