// How a tokenizer cuts text into words before byte-pair encoding: the "pre_tokenizer" of tokenizer.json. Immutable, thread-safe; the
// words belong to one caller.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/json_field.h"

namespace tandem {

struct Word {
  std::string_view text;
  bool at_start = false;  // it begins where the whole input begins
};

// The words of one stretch of text, and the strings that they point into where a step rewrote them.
struct Words {
  std::vector<Word> words, next;  // next: scratch of a step
  std::deque<std::string> texts;
  void start(std::string_view text, bool at_start) {
    words.assign(1, {text, at_start});
    texts.clear();
  }
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Words& words) const = 0;
};

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const JsonField& field);  // refuses an unknown type by name
std::unique_ptr<PreTokenizer> make_regex_split(std::string_view regex,
                                               const std::string& where);  // matches and what lies between are words
std::unique_ptr<PreTokenizer> make_byte_level(bool add_prefix_space, bool use_regex);
enum class PrependScheme { always, first, never };  // before a word: of each, of one where the input begins, of none
std::unique_ptr<PreTokenizer> make_metaspace(PrependScheme scheme, bool split);  // U+2581 for spaces
std::unique_ptr<PreTokenizer> make_pre_tokenizer_sequence(std::vector<std::unique_ptr<PreTokenizer>> parts);

}  // namespace tandem
