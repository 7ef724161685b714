#include "runtime/text/precompiled.h"

#include <unicode/brkiter.h>
#include <unicode/utext.h>

#include <cstring>
#include <optional>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

constexpr size_t kShortGrapheme = 6;  // bytes

bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

class Precompiled final : public Normalizer {
 public:
  Precompiled(std::string_view charsmap, const std::string& where) {
    uint32_t bytes = 0;
    if (charsmap.size() >= 4) std::memcpy(&bytes, charsmap.data(), 4);
    if (charsmap.size() < 4 || bytes % 4 != 0 || bytes == 0 || bytes > charsmap.size() - 4) {
      bad_input(where, "precompiled_charsmap is cut short (4 bytes of length, the table, the texts)");
    }
    units_.resize(bytes / 4);
    std::memcpy(units_.data(), charsmap.data() + 4, bytes);
    texts_ = charsmap.substr(4 + bytes);
    if (!is_valid_utf8(texts_)) bad_input(where, "precompiled_charsmap holds texts that are not UTF-8");
    UErrorCode status = U_ZERO_ERROR;
    graphemes_.reset(icu::BreakIterator::createCharacterInstance(icu::Locale::getRoot(), status));
    if (U_FAILURE(status)) fail(Code::internal, "normalizer", std::string("ICU: ") + u_errorName(status));
  }

  void apply(std::string& text) const override {
    std::string out;
    out.reserve(text.size());
    std::unique_ptr<icu::BreakIterator> graphemes;  // a copy of our own, made when the text needs one
    const auto boundary = [&text](size_t at) {      // for certain, between two ASCII characters
      return is_ascii(text[at - 1]) && is_ascii(text[at]) && !(text[at - 1] == '\r' && text[at] == '\n');
    };
    for (size_t begin = 0, end; begin < text.size(); begin = end) {
      end = begin + 1;
      while (end < text.size() && !boundary(end)) ++end;
      const std::string_view stretch = std::string_view(text).substr(begin, end - begin);
      if (stretch.size() == 1) {
        append_grapheme(out, stretch);
        continue;
      }
      if (!graphemes) graphemes.reset(graphemes_->clone());
      append_graphemes(out, stretch, *graphemes);
    }
    text = std::move(out);
  }

 private:
  void append_graphemes(std::string& out, std::string_view text, icu::BreakIterator& graphemes) const {
    UErrorCode status = U_ZERO_ERROR;
    UText utext = UTEXT_INITIALIZER;
    utext_openUTF8(&utext, text.data(), static_cast<int64_t>(text.size()), &status);
    graphemes.setText(&utext, status);
    if (U_FAILURE(status)) fail(Code::internal, "normalizer", std::string("ICU: ") + u_errorName(status));
    int32_t from = graphemes.first();
    for (int32_t to; (to = graphemes.next()) != icu::BreakIterator::DONE; from = to) {
      append_grapheme(out, text.substr(static_cast<size_t>(from), static_cast<size_t>(to - from)));
    }
    utext_close(&utext);
  }

  void append_grapheme(std::string& out, std::string_view grapheme) const {
    if (grapheme.size() < kShortGrapheme) {
      if (const auto text = replacement(grapheme)) {
        out += *text;
        return;
      }
    }
    for (size_t at = 0; at < grapheme.size();) {
      const std::string_view part = grapheme.substr(at, decode_utf8(grapheme, at).length);
      out += replacement(part).value_or(part);
      at += part.size();
    }
  }

  // Of the shortest prefix that the table has.
  std::optional<std::string_view> replacement(std::string_view key) const {
    const auto offset = [](uint32_t unit) -> size_t { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
    size_t node = offset(units_[0]);
    for (const char c : key) {
      const auto byte = static_cast<uint8_t>(c);
      if (byte == 0) return std::nullopt;
      node ^= byte;
      if (node >= units_.size()) return std::nullopt;
      const uint32_t unit = units_[node];
      if ((unit & (1u << 31 | 0xFFu)) != byte) return std::nullopt;
      node ^= offset(unit);
      if (node >= units_.size()) return std::nullopt;
      if (!(unit >> 8 & 1)) continue;
      const size_t at = units_[node] & 0x7FFFFFFFu;
      if (at > texts_.size()) return std::nullopt;
      const std::string_view text = std::string_view(texts_).substr(at);
      const std::string_view found = text.substr(0, text.find('\0'));
      return is_valid_utf8(found) ? std::optional(found) : std::nullopt;  // not an offset into the middle of a character
    }
    return std::nullopt;
  }

  std::vector<uint32_t> units_;
  std::string texts_;
  std::unique_ptr<icu::BreakIterator> graphemes_;
};

}  // namespace

std::unique_ptr<Normalizer> make_precompiled_normalizer(std::string charsmap, const std::string& where) {
  return std::make_unique<Precompiled>(charsmap, where);
}

std::string decode_base64(std::string_view text, const std::string& where) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  while (text.ends_with('=')) text.remove_suffix(1);
  for (const char c : text) {
    const size_t digit = digits.find(c);
    if (digit == std::string_view::npos) bad_input(where, "is not base64");
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out += static_cast<char>(bits >> count & 0xFF);
  }
  return out;
}

}  // namespace tandem
