// Byte-pair encoding of one word: merges by rank (Hugging Face BPE) or by the score of the joined piece (SentencePiece BPE, GGUF model
// "llama"). Both take O(n log n) for n characters: short words scan, long ones use a linked list and a heap. Immutable after
// construction, thread-safe.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/text/vocabulary.h"
#include "runtime/text/word_model.h"

namespace tandem {

struct BpeOptions {
  bool ignore_merges = false;  // a word that is a piece is that piece
  bool byte_fallback = false;  // unknown characters become <0x00> ... <0xFF>
  bool fuse_unknown = false;   // neighbouring unknown characters become one unknown token
  std::string unknown;         // "" = unknown characters are dropped
  std::string continuing_prefix, word_suffix;
};

class Bpe final : public WordModel {
 public:
  // Borrows the vocabulary, which must outlive it. Merges are pairs of pieces, the first has the lowest rank.
  Bpe(const Vocabulary& vocabulary, BpeOptions options, size_t merges, const std::string& where);
  void add_merge(std::string_view left, std::string_view right);  // rank = calls before this one

  void encode(std::string_view word, WordScratch& scratch, std::vector<int32_t>& out) const override;

 private:
  struct Merge {
    uint64_t pair = empty;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t empty = UINT64_MAX;
  static constexpr uint32_t no_rank = UINT32_MAX;
  const Merge* find(int32_t left, int32_t right) const;
  void split(std::string_view word, WordScratch& scratch) const;
  void merge_short(WordScratch& scratch) const;
  void merge_long(WordScratch& scratch) const;

  const Vocabulary& vocabulary_;
  BpeOptions options_;
  std::string where_, joined_;
  std::vector<Merge> merges_;
  uint64_t mask_ = 0;
  uint32_t next_rank_ = 0;
  size_t limit_;
  std::optional<int32_t> unknown_;
  std::array<int32_t, 0x180> single_;  // one character's id, for the codes that byte-level text uses; -1 = not a piece
  std::array<int32_t, 256> byte_ids_;  // <0x00> ... <0xFF>; -1 = not a piece
};

class ScoredBpe final : public WordModel {
 public:
  ScoredBpe(const Vocabulary& vocabulary, std::vector<float> scores, std::optional<int32_t> unknown);  // scores by id
  void encode(std::string_view word, WordScratch& scratch, std::vector<int32_t>& out) const override;

 private:
  const Vocabulary& vocabulary_;
  std::vector<float> scores_;
  std::optional<int32_t> unknown_;
  std::array<int32_t, 256> byte_ids_;
};

}  // namespace tandem
