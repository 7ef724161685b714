#include "runtime/text/byte_level.h"

#include <array>

#include "runtime/text/utf8.h"

namespace tandem {
namespace {

struct Maps {
  std::array<std::array<char, 2>, 256> text{};
  std::array<uint8_t, 256> length{};
  std::array<int16_t, 0x180> byte{};

  constexpr Maps() {
    byte.fill(-1);
    int next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      const int code = printable ? b : next++;
      byte[static_cast<size_t>(code)] = static_cast<int16_t>(b);
      auto& out = text[static_cast<size_t>(b)];
      if (code < 0x80) {
        out[0] = static_cast<char>(code);
        length[static_cast<size_t>(b)] = 1;
      } else {
        out[0] = static_cast<char>(0xC0 | (code >> 6));
        out[1] = static_cast<char>(0x80 | (code & 0x3F));
        length[static_cast<size_t>(b)] = 2;
      }
    }
  }
};
constexpr Maps maps;

}  // namespace

std::string_view byte_to_char(uint8_t byte) { return {maps.text[byte].data(), maps.length[byte]}; }

int char_to_byte(char32_t code) { return code < maps.byte.size() ? maps.byte[code] : -1; }

void append_byte_level(std::string& out, std::string_view bytes) {
  for (char b : bytes) out += byte_to_char(static_cast<uint8_t>(b));
}

bool append_from_byte_level(std::string& out, std::string_view text) {
  const size_t before = out.size();
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    const int byte = c.valid ? char_to_byte(c.code) : -1;
    if (byte < 0) {
      out.resize(before);
      return false;
    }
    out += static_cast<char>(byte);
    at += c.length;
  }
  return true;
}

}  // namespace tandem
