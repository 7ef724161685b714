// UTF-8: one character in, one character out, whole strings checked or repaired, and a stream that never shows half a character.
// Invalid input follows the Unicode recommendation (one U+FFFD for each maximal invalid part), as Rust's from_utf8_lossy and
// Python's errors="replace" do. Pure functions; Utf8Stream belongs to one thread.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace tandem {

struct DecodedChar {
  char32_t code;    // U+FFFD when invalid
  size_t length;    // bytes taken: at least 1
  bool valid;       // false: these bytes are one maximal invalid part
  bool incomplete;  // invalid only because the text ends here
};

DecodedChar decode_utf8(std::string_view text, size_t at);  // at < text.size()
void append_utf8(std::string& out, char32_t code);          // code <= 0x10FFFF and no surrogate
bool is_valid_utf8(std::string_view text);
std::string replace_invalid_utf8(std::string_view text);  // the same text when valid
std::string without(std::string_view text, std::string_view part);  // every occurrence left out
size_t count_utf8(std::string_view text);                 // characters of valid text

inline constexpr std::string_view replacement_character = "\xEF\xBF\xBD";

class Utf8Stream {
 public:
  std::string feed(std::string_view bytes);  // every character that is certain by now
  std::string flush();                       // what is left, as U+FFFD; the stream starts anew

 private:
  std::string pending_;  // fewer than 4 bytes that begin a character
};

}  // namespace tandem
