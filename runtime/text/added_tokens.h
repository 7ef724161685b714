// Tokens that stand outside of byte-pair encoding: special ones (<|im_end|>) and plain added ones. They are found in the text before
// anything else, the leftmost and among those the longest first. Filled once, then immutable and thread-safe.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/text/normalizer.h"

namespace tandem {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false, lstrip = false, rstrip = false, single_word = false, normalized = false;
  std::string shown{};  // what decoding shows: the content, normalized where the token is; filled by AddedTokens::finish
};

class AddedTokens {
 public:
  void add(AddedToken token);                 // a content given again replaces the flags of the first and makes special stick
  void finish(const Normalizer* normalizer);  // builds the matchers; `normalizer` may be null

  const AddedToken* find(std::string_view content) const;
  const AddedToken* at(int32_t id) const;
  bool is_special(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < special_.size() && special_[static_cast<size_t>(id)]; }
  // Decoding without special tokens leaves it out. The reference compares what it would show with the contents of special tokens, so a
  // special token that normalization changes stays.
  bool is_hidden(int32_t id) const { return is_special(id) && hidden_[static_cast<size_t>(id)]; }
  int32_t highest() const;  // the highest id, -1 when there is none
  const std::vector<AddedToken>& all() const { return tokens_; }

  struct Piece {
    size_t begin, end;
    int32_t id;  // -1: text between tokens
  };
  // `normalized`: the tokens that are looked for in normalized text; otherwise those of the text as it came.
  void split(std::string_view text, bool normalized, std::vector<Piece>& out) const;
  std::string guarded(std::string_view text, std::string_view guard) const;  // see Tokenizer
  bool any(bool normalized) const { return !matchers_[normalized].nodes.empty(); }

 private:
  struct Node {
    std::vector<std::pair<uint8_t, uint32_t>> next;
    int32_t token = -1;  // index into tokens_
  };
  struct Matcher {
    std::vector<Node> nodes;
    std::vector<uint32_t> first = std::vector<uint32_t>(256, 0);
    void add(std::string_view content, int32_t token);
    bool match(std::string_view text, size_t& from, size_t& end, int32_t& token) const;
  };
  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, size_t> by_content_;
  std::unordered_map<int32_t, size_t> by_id_;
  std::vector<bool> special_, hidden_;  // by id
  Matcher matchers_[2];
};

}  // namespace tandem
