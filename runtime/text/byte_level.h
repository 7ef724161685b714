// GPT-2's map between bytes and printable characters: every byte has a character of its own, so that a vocabulary of text can hold
// any bytes. Pure functions.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace tandem {

std::string_view byte_to_char(uint8_t byte);  // 1 or 2 bytes of UTF-8
int char_to_byte(char32_t code);              // -1 when no byte has this character
void append_byte_level(std::string& out, std::string_view bytes);
bool append_from_byte_level(std::string& out, std::string_view text);  // false, and out unchanged, when a character stands for no byte

}  // namespace tandem
