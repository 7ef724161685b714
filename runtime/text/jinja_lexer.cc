#include "runtime/text/jinja_lexer.h"

#include <algorithm>
#include <charconv>

#include "runtime/text/char_class.h"
#include "runtime/text/utf8.h"

namespace tandem::jinja {
namespace {

// Python's \s and str.strip also take the four separators U+001C to U+001F.
bool is_white(char32_t c) { return is_space(c) || (c >= 0x1C && c <= 0x1F); }

std::string with_plain_newlines(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r') {
      out += '\n';
      if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(with_plain_newlines(source)) {
    if (!source_.empty() && source_.back() == '\n') source_.pop_back();  // keep_trailing_newline is off
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) root();
    add(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void refuse(const std::string& message) { throw SyntaxError{message, line_}; }
  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  bool looking_at(std::string_view text) const { return rest().starts_with(text); }
  void advance(size_t count) {
    line_ += static_cast<int>(
        std::count(source_.begin() + static_cast<ptrdiff_t>(at_), source_.begin() + static_cast<ptrdiff_t>(at_ + count), '\n'));
    at_ += count;
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
  }
  void skip_white() {
    while (at_ < source_.size()) {
      const DecodedChar c = decode_utf8(source_, at_);
      if (!is_white(c.code)) break;
      advance(c.length);
    }
  }
  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  // Text up to the next tag, then the tag.
  void root() {
    size_t tag = at_;
    while ((tag = source_.find('{', tag)) != std::string::npos) {
      if (tag + 1 < source_.size() && (source_[tag + 1] == '%' || source_[tag + 1] == '{' || source_[tag + 1] == '#')) break;
      ++tag;
    }
    if (tag == std::string::npos) {
      add(TokenKind::data, std::string(rest()));
      advance(source_.size() - at_);
      return;
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() && (source_[tag + 2] == '-' || source_[tag + 2] == '+') ? source_[tag + 2] : '\0';
    add_data(std::string_view(source_).substr(at_, tag - at_), sign, kind != '{');
    advance(tag - at_ + 2 + (sign ? 1 : 0));
    if (kind == '#') {
      comment();
    } else if (kind == '{') {
      add(TokenKind::print_begin, "");
      inside(TokenKind::print_end);
    } else if (!raw()) {
      add(TokenKind::block_begin, "");
      inside(TokenKind::block_end);
    }
  }

  void add_data(std::string_view text, char sign, bool block) {
    if (sign == '-') {
      while (!text.empty()) {
        size_t start = text.size() - 1;
        while (start > 0 && (static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) --start;
        if (!is_white(decode_utf8(text, start).code)) break;
        text = text.substr(0, start);
      }
    } else if (sign != '+' && block) {
      const size_t newline = text.rfind('\n');
      const size_t start = newline == std::string_view::npos ? 0 : newline + 1;
      if (start > 0 || line_starting_) {
        bool white = true;
        for (size_t at = start; at < text.size() && white;) {
          const DecodedChar c = decode_utf8(text, at);
          white = is_white(c.code);
          at += c.length;
        }
        if (white) text = text.substr(0, start);
      }
    }
    if (!text.empty()) add(TokenKind::data, std::string(text));
  }

  // Behind the closing mark of a block or comment: one line feed goes (trim_blocks), with a minus all white space.
  bool close(std::string_view mark, bool trim) {
    if (looking_at(std::string("-") + std::string(mark))) {
      advance(mark.size() + 1);
      skip_white();
      line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
      return true;
    }
    if (trim && looking_at(std::string("+") + std::string(mark))) {
      advance(mark.size() + 1);
      return true;
    }
    if (!looking_at(mark)) return false;
    advance(mark.size());
    if (trim && looking_at("\n")) advance(1);
    return true;
  }

  void comment() {
    while (at_ < source_.size()) {
      if ((source_[at_] == '-' || source_[at_] == '+' || source_[at_] == '#') && close("#}", true)) return;
      advance(1);
    }
    refuse("a comment has no end (#})");
  }

  bool raw() {
    size_t at = at_;
    auto white = [&] {
      while (at < source_.size() && is_white(static_cast<uint8_t>(source_[at]))) ++at;
    };
    white();
    if (std::string_view(source_).substr(at, 3) != "raw") return false;
    at += 3;
    white();
    const std::string_view end = std::string_view(source_).substr(at);
    if (!end.starts_with("%}") && !end.starts_with("-%}")) return false;
    advance(at - at_);
    close("%}", false);
    for (size_t tag = at_; (tag = source_.find("{%", tag)) != std::string::npos; ++tag) {
      size_t inner = tag + 2;
      char sign = '\0';
      if (inner < source_.size() && (source_[inner] == '-' || source_[inner] == '+')) sign = source_[inner++];
      while (inner < source_.size() && is_white(static_cast<uint8_t>(source_[inner]))) ++inner;
      if (std::string_view(source_).substr(inner, 6) != "endraw") continue;
      inner += 6;
      while (inner < source_.size() && is_white(static_cast<uint8_t>(source_[inner]))) ++inner;
      const std::string_view tail = std::string_view(source_).substr(inner);
      if (!tail.starts_with("%}") && !tail.starts_with("-%}") && !tail.starts_with("+%}")) continue;
      add_data(std::string_view(source_).substr(at_, tag - at_), sign, true);
      advance(inner - at_);
      close("%}", true);
      return true;
    }
    refuse("a raw block has no end ({% endraw %})");
  }

  void inside(TokenKind closing) {
    const std::string_view mark = closing == TokenKind::print_end ? "}}" : "%}";
    std::string open;
    while (true) {
      if (open.empty()) {
        const int line = line_;
        if (close(mark, closing == TokenKind::block_end)) {
          tokens_.push_back({closing, "", line});
          return;
        }
      }
      if (at_ >= source_.size()) refuse("a tag has no end (" + std::string(mark) + ")");
      const char c = source_[at_];
      if (is_white(decode_utf8(source_, at_).code)) {
        skip_white();
      } else if (c >= '0' && c <= '9') {
        number();
      } else if (c == '\'' || c == '"') {
        string();
      } else if (is_word(decode_utf8(source_, at_).code)) {
        name();
      } else {
        symbol(open);
      }
    }
  }

  void name() {
    size_t end = at_;
    while (end < source_.size()) {
      const DecodedChar c = decode_utf8(source_, end);
      if (!is_word(c.code)) break;
      end += c.length;
    }
    add(TokenKind::name, source_.substr(at_, end - at_));
    advance(end - at_);
  }

  void number() {
    auto digit = [&](size_t i) { return i < source_.size() && source_[i] >= '0' && source_[i] <= '9'; };
    auto digits = [&](size_t i) {
      while (digit(i) || (i < source_.size() && source_[i] == '_' && digit(i + 1))) ++i;
      return i;
    };
    int base = 10;
    size_t end;
    if (source_[at_] == '0' && at_ + 1 < source_.size() && std::string_view("xXoObB").find(source_[at_ + 1]) != std::string_view::npos) {
      const char kind = static_cast<char>(source_[at_ + 1] | 0x20);
      base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
      end = at_ + 2;
      while (end < source_.size() && (std::isxdigit(static_cast<unsigned char>(source_[end])) || source_[end] == '_')) ++end;
    } else {
      end = digits(at_);
    }
    bool real = false;
    if (base == 10) {
      if (end + 1 < source_.size() && source_[end] == '.' && digit(end + 1)) {
        real = true;
        end = digits(end + 1);
      }
      size_t exponent = end;
      if (exponent < source_.size() && (source_[exponent] == 'e' || source_[exponent] == 'E')) {
        ++exponent;
        if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) ++exponent;
        if (digit(exponent)) {
          real = true;
          end = digits(exponent);
        }
      }
    }
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    Token token{real ? TokenKind::real : TokenKind::integer, text, line_};
    const char* first = text.data() + (base == 10 ? 0 : 2);
    const char* last = text.data() + text.size();
    const auto result = real ? std::from_chars(first, last, token.real) : std::from_chars(first, last, token.integer, base);
    if (result.ec != std::errc() || result.ptr != last) refuse("the number " + text + " cannot be read (at most 64 bits)");
    tokens_.push_back(std::move(token));
    advance(end - at_);
  }

  void string() {
    const char quote = source_[at_];
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) refuse("a string has no end (" + std::string(1, quote) + ")");
    std::string value;
    const std::string_view body = std::string_view(source_).substr(at_ + 1, end - at_ - 1);
    for (size_t i = 0; i < body.size();) {
      if (body[i] != '\\') {
        value += body[i++];
        continue;
      }
      const char kind = body[i + 1];
      i += 2;
      switch (kind) {
        case 'n':
          value += '\n';
          break;
        case 't':
          value += '\t';
          break;
        case 'r':
          value += '\r';
          break;
        case 'a':
          value += '\a';
          break;
        case 'b':
          value += '\b';
          break;
        case 'f':
          value += '\f';
          break;
        case 'v':
          value += '\v';
          break;
        case '\\':
          value += '\\';
          break;
        case '\'':
          value += '\'';
          break;
        case '"':
          value += '"';
          break;
        case '\n':
          break;
        case 'x':
          code_point(body, i, 2, value);
          break;
        case 'u':
          code_point(body, i, 4, value);
          break;
        case 'U':
          code_point(body, i, 8, value);
          break;
        default:
          if (kind >= '0' && kind <= '7') {
            char32_t code = static_cast<char32_t>(kind - '0');
            for (int k = 0; k < 2 && i < body.size() && body[i] >= '0' && body[i] <= '7'; ++k)
              code = code * 8 + static_cast<char32_t>(body[i++] - '0');
            append_utf8(value, code);
          } else {
            value += '\\';
            value += kind;
          }
      }
    }
    add(TokenKind::string, std::move(value));
    advance(end + 1 - at_);
  }

  void code_point(std::string_view body, size_t& i, size_t width, std::string& value) {
    char32_t code = 0;
    if (i + width > body.size()) refuse("a string holds an unfinished escape");
    for (size_t k = 0; k < width; ++k) {
      const char c = body[i + k];
      if (!std::isxdigit(static_cast<unsigned char>(c))) refuse("a string holds an unfinished escape");
      code = code * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    i += width;
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) refuse("a string holds an escape that is no character");
    append_utf8(value, code);
  }

  void symbol(std::string& open) {
    static constexpr std::string_view two[] = {"//", "**", "==", "!=", ">=", "<="};
    for (std::string_view s : two) {
      if (looking_at(s)) {
        add(TokenKind::symbol, std::string(s));
        advance(2);
        return;
      }
    }
    const char c = source_[at_];
    if (std::string_view("+-/*%~[](){}><=.:|,;").find(c) == std::string_view::npos) {
      refuse("unexpected character '" + source_.substr(at_, decode_utf8(source_, at_).length) + "'");
    }
    if (c == '(' || c == '[' || c == '{') {
      open += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) refuse(std::string("unexpected '") + c + "'");
      open.pop_back();
    }
    add(TokenKind::symbol, std::string(1, c));
    advance(1);
  }

  std::string source_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source) { return Lexer(source).run(); }

}  // namespace tandem::jinja
