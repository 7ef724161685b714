// The unigram language model of SentencePiece, as the Hugging Face library computes it: the segmentation of a word whose pieces' scores
// (log-probabilities) add up highest; among equals the one found first from the left. Characters that no piece begins with cost a fixed
// penalty; neighbouring ones become one unknown token, or, with byte_fallback, their bytes. O(bytes x longest piece).
#pragma once
#include <array>
#include <optional>
#include <string>

#include "runtime/text/vocabulary.h"
#include "runtime/text/word_model.h"

namespace tandem {

class Unigram final : public WordModel {
 public:
  // Borrows the vocabulary, which must outlive it. scores: by id, one for each id of the vocabulary. Error when a piece is longer than
  // kLongest bytes, which would make the time more than linear.
  Unigram(const Vocabulary& vocabulary, std::vector<double> scores, std::optional<int32_t> unknown, bool byte_fallback,
          const std::string& where);
  // Error, invalid_argument, when a character is unknown and the model has no unknown token.
  void encode(std::string_view word, WordScratch& scratch, std::vector<int32_t>& out) const override;

  static constexpr size_t kLongest = 1024;

 private:
  struct Node {  // of the trie over the pieces' bytes; the children of a node lie side by side, in order of their byte
    uint32_t first_child = 0;
    int32_t id = -1;  // a piece ends here
    uint16_t children = 0;
    uint8_t byte = 0;
  };
  const Node* child(const Node& node, uint8_t byte) const;
  void emit_unknown(std::string_view text, std::vector<int32_t>& out) const;

  const Vocabulary& vocabulary_;
  std::vector<double> scores_;
  std::optional<int32_t> unknown_;
  bool byte_fallback_;
  double unknown_score_ = 0;
  std::array<int32_t, 256> byte_ids_;
  std::vector<Node> nodes_;
};

}  // namespace tandem
