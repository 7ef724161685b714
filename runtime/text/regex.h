// Regular expressions as tokenizer files write them: Oniguruma's Ruby syntax over UTF-8, carried over to PCRE2 with JIT (measured
// 165 to 205 MB/s on the GPT-2 and Llama-3 split patterns, ICU 20 to 30). Where the two dialects differ (\s, \w, \b, \h, (?m), {n,m}+) the
// pattern is rewritten; what cannot be carried over (nested and intersected sets) is refused. A Regex is immutable and may be shared;
// a RegexSearch belongs to one thread and borrows the text.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace tandem {

std::string escape_regex(std::string_view literal);

class Regex {
 public:
  Regex(std::string_view pattern, const std::string& where);  // Error names `where` and the pattern
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

 private:
  friend class RegexSearch;
  struct Compiled;
  std::unique_ptr<Compiled> compiled_;
};

// The matches of one text, left to right; an empty match right behind another match does not count. The work of one match is bounded:
// a pattern that backtracks without end is an Error, not a hang.
class RegexSearch {
 public:
  RegexSearch(const Regex& regex, std::string_view text);  // valid UTF-8
  ~RegexSearch();
  RegexSearch(const RegexSearch&) = delete;
  RegexSearch& operator=(const RegexSearch&) = delete;
  void restart(std::string_view text);
  bool next(size_t& begin, size_t& end);

 private:
  const Regex& regex_;
  std::string_view text_;
  void* match_;
  size_t from_ = 0, last_end_ = std::string_view::npos;
};

}  // namespace tandem
