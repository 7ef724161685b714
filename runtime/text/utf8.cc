#include "runtime/text/utf8.h"

#include <cstdint>

namespace tandem {

DecodedChar decode_utf8(std::string_view text, size_t at) {
  auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(at);
  if (lead < 0x80) return {lead, 1, true, false};
  size_t need;
  uint8_t low = 0x80, high = 0xBF;  // bounds of the second byte: they exclude overlong forms, surrogates and codes past U+10FFFF
  char32_t code;
  if (lead >= 0xC2 && lead <= 0xDF) {
    need = 2, code = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    need = 3, code = lead & 0x0F;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    need = 4, code = lead & 0x07;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {0xFFFD, 1, false, false};
  }
  for (size_t i = 1; i < need; ++i) {
    if (at + i == text.size()) return {0xFFFD, i, false, true};
    const uint8_t next = byte(at + i);
    if (next < low || next > high) return {0xFFFD, i, false, false};
    code = (code << 6) | (next & 0x3F);
    low = 0x80, high = 0xBF;
  }
  return {code, need, true, false};
}

void append_utf8(std::string& out, char32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

bool is_valid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    if (!c.valid) return false;
    at += c.length;
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    if (c.valid) {
      out.append(text, at, c.length);
    } else {
      out += replacement_character;
    }
    at += c.length;
  }
  return out;
}

std::string without(std::string_view text, std::string_view part) {
  std::string out;
  size_t from = 0;
  for (size_t at; (at = text.find(part, from)) != std::string_view::npos; from = at + part.size()) out += text.substr(from, at - from);
  return out += text.substr(from);
}

size_t count_utf8(std::string_view text) {
  size_t count = 0;
  for (char c : text) count += (static_cast<uint8_t>(c) & 0xC0) != 0x80;
  return count;
}

std::string Utf8Stream::feed(std::string_view bytes) {
  std::string joined;
  if (!pending_.empty()) {
    joined = pending_;
    joined += bytes;
    bytes = joined;
    pending_.clear();
  }
  std::string out;
  for (size_t at = 0; at < bytes.size();) {
    const DecodedChar c = decode_utf8(bytes, at);
    if (c.incomplete) {
      pending_ = bytes.substr(at);
      break;
    }
    if (c.valid) {
      out.append(bytes, at, c.length);
    } else {
      out += replacement_character;
    }
    at += c.length;
  }
  return out;
}

std::string Utf8Stream::flush() {
  if (pending_.empty()) return {};
  pending_.clear();
  return std::string(replacement_character);
}

}  // namespace tandem
