#include "runtime/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <vector>

#include "kernels/base/error.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

// PCRE2's \s would add U+180E, its \w would leave out marks: the sets are written out. All inside of [...].
constexpr std::string_view space_set = R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view word_set =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";
// Outside of a set Oniguruma asks another table for the codes below 256, which also knows the superscripts and fractions of Latin-1.
constexpr std::string_view latin1_words = R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";
constexpr std::string_view hex_set = "0-9a-fA-F";

bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        start_atom();
        escape(false);
      } else if (c == '[') {
        start_atom();
        set();
      } else if (c == '(') {
        start_atom();
        groups_.push_back(out_.size());
        group();
      } else if (c == ')') {
        if (!groups_.empty()) {
          atom_ = groups_.back();
          groups_.pop_back();
        }
        take();
      } else if (c == '{') {
        interval();
      } else if (c == '*' || c == '+' || c == '?' || c == '|') {
        take();
      } else {
        start_atom();
        take();
        while (at_ < in_.size() && (static_cast<unsigned char>(in_[at_]) & 0xC0) == 0x80) take();
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) { bad_input(where_, what + " in the regular expression " + std::string(in_) + " (a pattern as tokenizers takes it)"); }
  void start_atom() { atom_ = out_.size(); }
  void take() { out_ += in_[at_++]; }

  void shorthand(std::string_view set, bool negated, bool inside) {
    if (inside) {
      out_ += set;  // a negated one inside of a set has no such form and stays PCRE2's own
    } else {
      out_ += negated ? "[^" : "[";
      out_ += set;
      if (set == word_set) out_ += latin1_words;
      out_ += ']';
    }
  }

  void escape(bool inside) {
    if (at_ + 1 >= in_.size()) refuse("a lone backslash ends (escape it)");
    const char kind = in_[at_ + 1];
    const bool negated = kind == 'S' || kind == 'W' || kind == 'H';
    std::string_view set;
    if (kind == 's' || kind == 'S') set = space_set;
    if (kind == 'w' || kind == 'W') set = word_set;
    if (kind == 'h' || kind == 'H') set = hex_set;
    if (!set.empty() && !(inside && negated)) {
      shorthand(set, negated, inside);
      at_ += 2;
      return;
    }
    if ((kind == 'b' || kind == 'B') && !inside) {  // word boundaries, by the set above
      const std::string in = "[" + std::string(word_set) + std::string(latin1_words) + "]";
      out_ += kind == 'b' ? "(?:(?<=" + in + ")(?!" + in + ")|(?<!" + in + ")(?=" + in + "))"
                          : "(?:(?<=" + in + ")(?=" + in + ")|(?<!" + in + ")(?!" + in + "))";
      at_ += 2;
      return;
    }
    if (kind == 'u' && at_ + 5 < in_.size() && is_hex(in_[at_ + 2]) && is_hex(in_[at_ + 3]) && is_hex(in_[at_ + 4]) &&
        is_hex(in_[at_ + 5])) {
      out_ += "\\x{";
      out_ += in_.substr(at_ + 2, 4);
      out_ += '}';
      at_ += 6;
      return;
    }
    take();
    take();
    if ((kind == 'p' || kind == 'P' || kind == 'x') && at_ < in_.size() && in_[at_] == '{') {
      while (at_ < in_.size() && in_[at_] != '}') take();
      if (at_ < in_.size()) take();
    }
  }

  void set() {
    take();
    if (at_ < in_.size() && in_[at_] == '^') take();
    if (at_ < in_.size() && in_[at_] == ']') take();
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '\\') {
        escape(true);
      } else if (in_[at_] == '[' && at_ + 1 < in_.size() && in_[at_ + 1] == ':') {
        const size_t end = in_.find(":]", at_ + 2);
        if (end == std::string_view::npos) refuse("an unfinished [: :]");
        while (at_ < end + 2) take();
      } else if (in_[at_] == '[') {
        refuse("a set inside of a set is not supported (write one set)");
      } else if (in_.substr(at_, 2) == "&&") {
        refuse("an intersection of sets is not supported (write one set)");
      } else {
        take();
      }
    }
    if (at_ < in_.size()) take();
  }

  void group() {
    take();
    if (at_ >= in_.size() || in_[at_] != '?') return;
    take();
    // Flags only: Ruby's m lets the dot match a line feed, which PCRE2 calls s.
    size_t end = at_;
    while (end < in_.size() && (in_[end] == 'i' || in_[end] == 'm' || in_[end] == 'x' || in_[end] == '-')) ++end;
    if (end == at_ || end >= in_.size() || (in_[end] != ':' && in_[end] != ')')) return;
    for (; at_ < end; ++at_) out_ += in_[at_] == 'm' ? 's' : in_[at_];
  }

  void interval() {
    const size_t end = in_.find('}', at_);
    bool digits = end != std::string_view::npos && end > at_ + 1;
    for (size_t i = at_ + 1; digits && i < end; ++i) digits = (in_[i] >= '0' && in_[i] <= '9') || in_[i] == ',';
    if (!digits) {
      start_atom();
      out_ += "\\{";
      ++at_;
      return;
    }
    while (at_ <= end) take();
    if (at_ < in_.size() && in_[at_] == '+') {  // possessive in PCRE2, a second quantifier in Ruby
      out_.insert(atom_, "(?:");
      out_ += ')';
    }
  }

  std::string_view in_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0, atom_ = 0;
  std::vector<size_t> groups_;
};

}  // namespace

struct Regex::Compiled {
  pcre2_code* code = nullptr;
  pcre2_match_context* limits = nullptr;
  bool jit = false;
  std::string where, pattern;
  ~Compiled() {
    pcre2_match_context_free(limits);
    pcre2_code_free(code);
  }
};

std::string escape_regex(std::string_view literal) {
  std::string out;
  for (char c : literal) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80 && !(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && byte > ' ') out += '\\';
    out += c;
  }
  return out;
}

Regex::Regex(std::string_view pattern, const std::string& where) : compiled_(std::make_unique<Compiled>()) {
  if (pattern.size() > 65536) bad_input(where, "a regular expression of " + std::to_string(pattern.size()) + " bytes (at most 65536)");
  compiled_->where = where;
  compiled_->pattern = pattern;
  const std::string translated = Translator(pattern, where).run();
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(pcre2_compile_context_create(nullptr),
                                                                                        pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 200);
  int code = 0;
  PCRE2_SIZE offset = 0;
  compiled_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, context.get());
  if (!compiled_->code) {
    char text[256] = "";
    pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
    bad_input(where, std::string(text) + " in the regular expression " + std::string(pattern) + " (a pattern as tokenizers takes it)");
  }
  compiled_->jit = pcre2_jit_compile(compiled_->code, PCRE2_JIT_COMPLETE) == 0;
  compiled_->limits = pcre2_match_context_create(nullptr);
  // The interpreter counts every backtrack, JIT about every entry into a group: enough for a megabyte of spaces, seconds at most.
  pcre2_set_match_limit(compiled_->limits, 50'000'000);
  pcre2_set_heap_limit(compiled_->limits, 256 * 1024);
}

Regex::~Regex() = default;

RegexSearch::RegexSearch(const Regex& regex, std::string_view text)
    : regex_(regex), text_(text), match_(pcre2_match_data_create_from_pattern(regex.compiled_->code, nullptr)) {}

RegexSearch::~RegexSearch() { pcre2_match_data_free(static_cast<pcre2_match_data*>(match_)); }

void RegexSearch::restart(std::string_view text) {
  text_ = text;
  from_ = 0;
  last_end_ = std::string_view::npos;
}

bool RegexSearch::next(size_t& begin, size_t& end) {
  const Regex::Compiled& regex = *regex_.compiled_;
  auto* match = static_cast<pcre2_match_data*>(match_);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
  while (from_ <= text_.size()) {
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (regex.jit) found = pcre2_jit_match(regex.code, subject, text_.size(), from_, 0, match, regex.limits);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match(regex.code, subject, text_.size(), from_, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, regex.limits);
    }
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) bad_input(regex.where, "the text needs too much work for the regular expression " + regex.pattern + " (shorter text)");
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match);
    if (span[0] == span[1] && span[1] == last_end_) {
      if (from_ >= text_.size()) return false;
      from_ += decode_utf8(text_, from_).length;
      continue;
    }
    begin = span[0], end = span[1];
    from_ = end, last_end_ = end;
    return true;
  }
  return false;
}

}  // namespace tandem
