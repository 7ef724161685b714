// A chat template cut into tokens, with Jinja2's rules for white space under trim_blocks and lstrip_blocks. Pure.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tandem::jinja {

enum class TokenKind { data, block_begin, block_end, print_begin, print_end, name, string, integer, real, symbol, end };

struct Token {
  TokenKind kind;
  std::string text;  // data, name, the string's value, the symbol
  int line = 0;
  int64_t integer = 0;
  double real = 0;
};

struct SyntaxError {
  std::string message;
  int line;
};

std::vector<Token> tokenize_template(std::string_view source);  // throws SyntaxError

}  // namespace tandem::jinja
