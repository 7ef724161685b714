#include "runtime/text/pretokenizer.h"

#include <optional>

#include "runtime/text/byte_level.h"
#include "runtime/text/char_class.h"
#include "runtime/text/regex.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

constexpr const char* gpt2_pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

struct Part {
  size_t begin, end;
  bool match;
};

Behavior read_behavior(const JsonField& field) {
  const std::string name = field.text();
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  field.refuse("is " + name + " (Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous)");
}

// Turns matches and the gaps between them into words, as the reference's SplitDelimiterBehavior does.
void emit(const Word& word, std::vector<Part>& parts, Behavior behavior, std::vector<Word>& out) {
  auto add = [&](size_t begin, size_t end) {
    if (begin < end) out.push_back({word.text.substr(begin, end - begin), word.at_start && begin == 0});
  };
  bool previous = false;
  switch (behavior) {
    case Behavior::isolated:
      for (const Part& part : parts) add(part.begin, part.end);
      return;
    case Behavior::removed:
      for (const Part& part : parts) {
        if (!part.match) add(part.begin, part.end);
      }
      return;
    case Behavior::contiguous:
    case Behavior::merged_with_previous: {
      std::optional<Part> open;
      for (const Part& part : parts) {
        const bool join = behavior == Behavior::contiguous ? part.match == previous : part.match && !previous;
        if (join && open) {
          open->end = part.end;
        } else {
          if (open) add(open->begin, open->end);
          open = part;
        }
        previous = part.match;
      }
      if (open) add(open->begin, open->end);
      return;
    }
    case Behavior::merged_with_next: {
      std::vector<Part> joined;
      for (size_t i = parts.size(); i-- > 0;) {
        const Part& part = parts[i];
        if (part.match && !previous && !joined.empty()) {
          joined.back().begin = part.begin;
        } else {
          joined.push_back(part);
        }
        previous = part.match;
      }
      for (size_t i = joined.size(); i-- > 0;) add(joined[i].begin, joined[i].end);
      return;
    }
  }
}

class RegexSplit final : public PreTokenizer {
 public:
  RegexSplit(std::string_view pattern, Behavior behavior, bool invert, const std::string& where)
      : regex_(pattern, where), behavior_(behavior), invert_(invert) {}
  void apply(Words& words) const override {
    words.next.clear();
    RegexSearch search(regex_, {});
    std::vector<Part> parts;
    for (const Word& word : words.words) {
      search.restart(word.text);
      size_t from = 0, begin, end;
      if (behavior_ == Behavior::isolated) {  // the usual one, without the detour over parts
        auto add = [&](size_t b, size_t e) {
          if (b < e) words.next.push_back({word.text.substr(b, e - b), word.at_start && b == 0});
        };
        while (search.next(begin, end)) {
          add(from, begin);
          add(begin, end);
          from = end;
        }
        add(from, word.text.size());
        continue;
      }
      parts.clear();
      while (search.next(begin, end)) {
        if (from != begin) parts.push_back({from, begin, invert_});
        parts.push_back({begin, end, !invert_});
        from = end;
      }
      if (from != word.text.size()) parts.push_back({from, word.text.size(), invert_});
      emit(word, parts, behavior_, words.next);
    }
    words.words.swap(words.next);
  }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
};

// Splits by a class of characters; every character of the class is one match.
class CharSplit final : public PreTokenizer {
 public:
  using Class = bool (*)(char32_t);
  CharSplit(Class is, char32_t one, Behavior behavior) : is_(is), one_(one), behavior_(behavior) {}
  void apply(Words& words) const override {
    words.next.clear();
    std::vector<Part> parts;
    for (const Word& word : words.words) {
      parts.clear();
      size_t from = 0;
      for (size_t at = 0; at < word.text.size();) {
        const DecodedChar c = decode_utf8(word.text, at);
        if (is_ ? is_(c.code) : c.code == one_) {
          if (from != at) parts.push_back({from, at, false});
          parts.push_back({at, at + c.length, true});
          from = at + c.length;
        }
        at += c.length;
      }
      if (from != word.text.size()) parts.push_back({from, word.text.size(), false});
      emit(word, parts, behavior_, words.next);
    }
    words.words.swap(words.next);
  }

 private:
  Class is_;
  char32_t one_;
  Behavior behavior_;
};

// \w+|[^\w\s]+ of the regex crate, whose \w is not Oniguruma's.
class Whitespace final : public PreTokenizer {
 public:
  void apply(Words& words) const override {
    words.next.clear();
    for (const Word& word : words.words) {
      size_t from = 0;
      int kind = 0;  // 0 space, 1 word, 2 other
      for (size_t at = 0; at <= word.text.size();) {
        const bool end = at == word.text.size();
        const DecodedChar c = end ? DecodedChar{U' ', 1, true, false} : decode_utf8(word.text, at);
        const int now = end ? 0 : is_word(c.code) ? 1 : is_space(c.code) ? 0 : 2;
        if (now != kind || end) {
          if (kind && from < at) words.next.push_back({word.text.substr(from, at - from), word.at_start && from == 0});
          from = at;
          kind = now;
        }
        at += c.length;
      }
    }
    words.words.swap(words.next);
  }
};

class ByteLevel final : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space) {
    if (use_regex) split_ = std::make_unique<RegexSplit>(gpt2_pattern, Behavior::isolated, false, "the ByteLevel pre-tokenizer");
  }
  void apply(Words& words) const override {
    if (add_prefix_space_) {
      for (Word& word : words.words) {
        if (word.text.starts_with(' ')) continue;
        words.texts.push_back(" " + std::string(word.text));
        word.text = words.texts.back();
      }
    }
    if (split_) split_->apply(words);
    std::string& mapped = words.texts.emplace_back();
    size_t total = 0;
    for (const Word& word : words.words) total += word.text.size();
    mapped.reserve(total * 2);  // views into it are taken while it grows
    for (Word& word : words.words) {
      const size_t begin = mapped.size();
      append_byte_level(mapped, word.text);
      word.text = std::string_view(mapped).substr(begin);
    }
  }

 private:
  bool add_prefix_space_;
  std::unique_ptr<RegexSplit> split_;
};

class Metaspace final : public PreTokenizer {
 public:
  Metaspace(std::string replacement, PrependScheme scheme, bool split)
      : replacement_(std::move(replacement)), scheme_(scheme), split_(split) {
    code_ = decode_utf8(replacement_, 0).code;
  }
  void apply(Words& words) const override {
    for (Word& word : words.words) {
      std::string text;
      text.reserve(word.text.size() + replacement_.size());
      for (char c : word.text) {
        if (c == ' ') {
          text += replacement_;
        } else {
          text += c;
        }
      }
      const bool prepend = scheme_ == PrependScheme::always || (scheme_ == PrependScheme::first && word.at_start);
      if (prepend && !text.starts_with(replacement_)) text.insert(0, replacement_);
      words.texts.push_back(std::move(text));
      word.text = words.texts.back();
    }
    if (split_) CharSplit(nullptr, code_, Behavior::merged_with_next).apply(words);
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  bool split_;
  char32_t code_;
};

class FixedLength final : public PreTokenizer {
 public:
  explicit FixedLength(int64_t length) : length_(length) {}
  void apply(Words& words) const override {
    words.next.clear();
    for (const Word& word : words.words) {
      size_t from = 0;
      int64_t count = 0;
      for (size_t at = 0; at < word.text.size();) {
        at += decode_utf8(word.text, at).length;
        if (++count == length_ || at == word.text.size()) {
          words.next.push_back({word.text.substr(from, at - from), word.at_start && from == 0});
          from = at;
          count = 0;
        }
      }
    }
    words.words.swap(words.next);
  }

 private:
  int64_t length_;
};

class Sequence final : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  void apply(Words& words) const override {
    for (const auto& part : parts_) part->apply(words);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

std::string one_char(const JsonField& field) {
  std::string text = field.text();
  if (text.empty() || decode_utf8(text, 0).length != text.size()) field.refuse("is not one character (one)");
  return text;
}

std::unique_ptr<PreTokenizer> read_metaspace(const JsonField& field) {
  const std::string replacement = field.has("replacement") ? one_char(field.at("replacement")) : "\xE2\x96\x81";
  PrependScheme scheme = PrependScheme::always;
  if (field.has("prepend_scheme")) {
    const std::string name = field.at("prepend_scheme").text();
    if (name == "first") {
      scheme = PrependScheme::first;
    } else if (name == "never") {
      scheme = PrependScheme::never;
    } else if (name != "always") {
      field.at("prepend_scheme").refuse("is " + name + " (always, first, never)");
    }
  } else if (!field.flag("add_prefix_space", true)) {
    scheme = PrependScheme::never;
  }
  return std::make_unique<Metaspace>(replacement, scheme, field.flag("split", true));
}

}  // namespace

std::unique_ptr<PreTokenizer> make_regex_split(std::string_view regex, const std::string& where) {
  return std::make_unique<RegexSplit>(regex, Behavior::isolated, false, where);
}

std::unique_ptr<PreTokenizer> make_byte_level(bool add_prefix_space, bool use_regex) {
  return std::make_unique<ByteLevel>(add_prefix_space, use_regex);
}

std::unique_ptr<PreTokenizer> make_metaspace(PrependScheme scheme, bool split) { return std::make_unique<Metaspace>("\xE2\x96\x81", scheme, split); }

std::unique_ptr<PreTokenizer> make_pre_tokenizer_sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) {
  return std::make_unique<Sequence>(std::move(parts));
}

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const JsonField& field) {
  const std::string type = field.at("type").text();
  if (type == "ByteLevel") return make_byte_level(field.flag("add_prefix_space", true), field.flag("use_regex", true));
  if (type == "Split") {
    const JsonField pattern = field.at("pattern");
    const std::string regex = pattern.has("Regex") ? pattern.at("Regex").text() : escape_regex(pattern.at("String").text());
    return std::make_unique<RegexSplit>(regex, read_behavior(field.at("behavior")), field.flag("invert", false), field.file());
  }
  if (type == "Digits") {
    return std::make_unique<CharSplit>(is_numeric, 0, field.flag("individual_digits", false) ? Behavior::isolated : Behavior::contiguous);
  }
  if (type == "Metaspace") return read_metaspace(field);
  if (type == "Whitespace") return std::make_unique<Whitespace>();
  if (type == "WhitespaceSplit") return std::make_unique<CharSplit>(is_space, 0, Behavior::removed);
  if (type == "Punctuation") {
    return std::make_unique<CharSplit>(is_punctuation, 0, field.has("behavior") ? read_behavior(field.at("behavior")) : Behavior::isolated);
  }
  if (type == "BertPreTokenizer") {
    std::vector<std::unique_ptr<PreTokenizer>> parts;
    parts.push_back(std::make_unique<CharSplit>(is_space, 0, Behavior::removed));
    parts.push_back(std::make_unique<CharSplit>(is_punctuation, 0, Behavior::isolated));
    return make_pre_tokenizer_sequence(std::move(parts));
  }
  if (type == "CharDelimiterSplit") {
    const std::string delimiter = one_char(field.at("delimiter"));
    return std::make_unique<CharSplit>(nullptr, decode_utf8(delimiter, 0).code, Behavior::removed);
  }
  if (type == "FixedLength") return std::make_unique<FixedLength>(field.integer("length", 5, 1, 1 << 30));
  if (type == "Sequence") {
    std::vector<std::unique_ptr<PreTokenizer>> parts;
    for (const JsonField& part : field.at("pretokenizers").elements()) parts.push_back(make_pre_tokenizer(part));
    return make_pre_tokenizer_sequence(std::move(parts));
  }
  field.refuse("is of type " + type +
               " (ByteLevel, Split, Digits, Metaspace, Whitespace, WhitespaceSplit, Punctuation, BertPreTokenizer, CharDelimiterSplit, "
               "FixedLength, Sequence)");
}

}  // namespace tandem
