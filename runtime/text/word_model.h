// What turns one word into ids: byte-pair encoding (bpe.h) or a unigram language model (unigram.h). Immutable, thread-safe; the scratch
// belongs to one caller.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace tandem {

struct WordScratch {
  struct Symbol {
    int32_t id;
    uint32_t begin, length;  // bytes of the word; length 0: merged away
    int32_t previous, next;
  };
  struct Candidate {
    uint32_t at;      // index of the left symbol
    uint32_t length;  // bytes of the joined piece, to know a stale candidate
    int32_t merged;
  };
  // All candidates of one order (rank or score), leftmost first. Most arrive from left to right: they are appended, the others go
  // through a heap.
  struct Bucket {
    std::vector<Candidate> sorted, late;
    size_t cursor = 0;
  };
  std::vector<Symbol> symbols;
  std::vector<Bucket> buckets;
  std::unordered_map<uint32_t, uint32_t> bucket_of;  // order -> index
  std::vector<uint32_t> orders;                      // a heap of the orders whose buckets hold something
  std::vector<uint32_t> ranks;
  std::string padded;

  struct PathNode {  // of Unigram: the best way to an offset of the word
    double score = 0;
    int64_t begin = -1;  // where its last piece begins; -1: no way yet
    int32_t id = 0;      // of that piece
  };
  std::vector<PathNode> path;
};

class WordModel {
 public:
  virtual ~WordModel() = default;
  virtual void encode(std::string_view word, WordScratch& scratch, std::vector<int32_t>& out) const = 0;
};

}  // namespace tandem
