#include "runtime/text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "kernels/base/error.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

bool further_right(const WordScratch::Candidate& a, const WordScratch::Candidate& b) { return a.at > b.at; }

// Candidates by order, then from left to right.
class Queue {
 public:
  explicit Queue(WordScratch& scratch) : scratch_(scratch) {
    scratch_.bucket_of.clear();
    scratch_.orders.clear();
  }
  void push(uint32_t order, const WordScratch::Candidate& candidate) {
    const auto [found, fresh] = scratch_.bucket_of.try_emplace(order, static_cast<uint32_t>(scratch_.bucket_of.size()));
    if (fresh && found->second == scratch_.buckets.size()) scratch_.buckets.emplace_back();
    WordScratch::Bucket& bucket = scratch_.buckets[found->second];
    if (fresh) {
      bucket.sorted.clear();
      bucket.late.clear();
      bucket.cursor = 0;
    }
    if (bucket.cursor == bucket.sorted.size() && bucket.late.empty()) {
      scratch_.orders.push_back(order);
      std::push_heap(scratch_.orders.begin(), scratch_.orders.end(), std::greater<>());
    }
    if (bucket.cursor == bucket.sorted.size() || bucket.sorted.back().at <= candidate.at) {
      bucket.sorted.push_back(candidate);
    } else {
      bucket.late.push_back(candidate);
      std::push_heap(bucket.late.begin(), bucket.late.end(), further_right);
    }
  }
  bool pop(WordScratch::Candidate& best) {
    if (scratch_.orders.empty()) return false;
    WordScratch::Bucket& bucket = scratch_.buckets[scratch_.bucket_of[scratch_.orders.front()]];
    const bool sorted = bucket.cursor < bucket.sorted.size();
    if (sorted && (bucket.late.empty() || bucket.sorted[bucket.cursor].at <= bucket.late.front().at)) {
      best = bucket.sorted[bucket.cursor++];
    } else {
      best = bucket.late.front();
      std::pop_heap(bucket.late.begin(), bucket.late.end(), further_right);
      bucket.late.pop_back();
    }
    if (bucket.cursor == bucket.sorted.size() && bucket.late.empty()) {
      std::pop_heap(scratch_.orders.begin(), scratch_.orders.end(), std::greater<>());
      scratch_.orders.pop_back();
    }
    return true;
  }

 private:
  WordScratch& scratch_;
};

// The loop that both models share: always the best candidate, the leftmost among equals. `pair(left, right, order, candidate)` says
// whether two symbols make a candidate, and which.
template <class Pair>
void merge_by_queue(WordScratch& scratch, const Pair& pair) {
  auto& symbols = scratch.symbols;
  Queue queue(scratch);
  auto offer = [&](int32_t left, int32_t right) {
    WordScratch::Candidate candidate{static_cast<uint32_t>(left), 0, 0};
    uint32_t order;
    if (pair(symbols[static_cast<size_t>(left)], symbols[static_cast<size_t>(right)], order, candidate)) queue.push(order, candidate);
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) offer(static_cast<int32_t>(i), static_cast<int32_t>(i + 1));
  WordScratch::Candidate best;
  while (queue.pop(best)) {
    WordScratch::Symbol& left = symbols[best.at];
    if (left.length == 0 || left.next < 0) continue;
    WordScratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (left.length + right.length != best.length) continue;  // one of the two has grown since
    left.id = best.merged;
    left.length = best.length;
    right.length = 0;
    left.next = right.next;
    const auto at = static_cast<int32_t>(best.at);
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = at;
    if (left.previous >= 0) offer(left.previous, at);
    if (left.next >= 0) offer(at, left.next);
  }
}

}  // namespace

Bpe::Bpe(const Vocabulary& vocabulary, BpeOptions options, size_t merges, const std::string& where)
    : vocabulary_(vocabulary), options_(std::move(options)), where_(where), limit_(merges) {
  const size_t capacity = std::bit_ceil(std::max<size_t>(16, merges * 2));
  merges_.assign(capacity, {});
  mask_ = capacity - 1;
  if (!options_.unknown.empty()) {
    unknown_ = vocabulary_.find(options_.unknown);
    if (!unknown_) bad_input(where, "model.unk_token is " + options_.unknown + " (a piece of the vocabulary)");
  }
  for (size_t code = 0; code < single_.size(); ++code) {
    std::string text;
    append_utf8(text, static_cast<char32_t>(code));
    single_[code] = vocabulary_.find(text).value_or(-1);
  }
  byte_ids_ = find_byte_pieces(vocabulary_);
}

void Bpe::add_merge(std::string_view left, std::string_view right) {
  const std::string name = "model.merges[" + std::to_string(next_rank_) + "]";
  if (next_rank_ >= limit_) bad_input(where_, name + " is one more than announced");
  auto id_of = [&](std::string_view piece) {
    const auto id = vocabulary_.find(piece);
    if (!id) bad_input(where_, name + " names " + std::string(piece) + " (a piece of the vocabulary)");
    return *id;
  };
  const int32_t a = id_of(left), b = id_of(right);
  joined_.assign(left);
  if (right.size() < options_.continuing_prefix.size()) bad_input(where_, name + " is shorter than continuing_subword_prefix");
  joined_ += right.substr(options_.continuing_prefix.size());
  const Merge merge{static_cast<uint64_t>(a) << 32 | static_cast<uint32_t>(b), next_rank_++, id_of(joined_)};
  for (uint64_t i = (merge.pair * 0x9E3779B97F4A7C15ull >> 20) & mask_;; i = (i + 1) & mask_) {
    if (merges_[i].pair != empty && merges_[i].pair != merge.pair) continue;
    merges_[i] = merge;
    return;
  }
}

const Bpe::Merge* Bpe::find(int32_t left, int32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  for (uint64_t i = (pair * 0x9E3779B97F4A7C15ull >> 20) & mask_;; i = (i + 1) & mask_) {
    if (merges_[i].pair == pair) return &merges_[i];
    if (merges_[i].pair == empty) return nullptr;
  }
}

void Bpe::split(std::string_view word, WordScratch& scratch) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  auto add = [&](int32_t id, uint32_t begin, uint32_t length) {
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, begin, length, index - 1, index + 1});
  };
  uint32_t unknown_begin = 0, unknown_length = 0;
  auto end_unknown = [&] {
    if (unknown_length) add(*unknown_, unknown_begin, unknown_length);
    unknown_length = 0;
  };
  const bool affixed = !options_.continuing_prefix.empty() || !options_.word_suffix.empty();
  for (size_t at = 0; at < word.size();) {
    const DecodedChar c = decode_utf8(word, at);
    const auto begin = static_cast<uint32_t>(at);
    const auto length = static_cast<uint32_t>(c.length);
    at += c.length;
    std::string_view piece = word.substr(begin, length);
    int32_t id;
    if (affixed) {
      scratch.padded.clear();
      if (begin > 0) scratch.padded += options_.continuing_prefix;
      scratch.padded += piece;
      if (at == word.size()) scratch.padded += options_.word_suffix;
      piece = scratch.padded;
      id = vocabulary_.find(piece).value_or(-1);
    } else {
      id = c.code < single_.size() ? single_[c.code] : vocabulary_.find(piece).value_or(-1);
    }
    if (id >= 0) {
      end_unknown();
      add(id, begin, length);
      continue;
    }
    if (options_.byte_fallback &&
        std::all_of(piece.begin(), piece.end(), [&](char b) { return byte_ids_[static_cast<uint8_t>(b)] >= 0; })) {
      // A pending unknown stays pending here and comes out behind these bytes: the reference does so.
      for (size_t i = 0; i < piece.size(); ++i) add(byte_ids_[static_cast<uint8_t>(piece[i])], begin + static_cast<uint32_t>(i), 1);
      continue;
    }
    if (!unknown_) continue;
    if (unknown_length && options_.fuse_unknown) {
      unknown_length += length;
    } else {
      end_unknown();
      unknown_begin = begin, unknown_length = length;
    }
  }
  end_unknown();
  if (!symbols.empty()) symbols.back().next = -1;
}

// Up to about a hundred symbols a scan for the best pair is faster than a heap.
void Bpe::merge_short(WordScratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& ranks = scratch.ranks;
  size_t count = symbols.size();
  auto rank = [&](size_t i) -> uint32_t {
    const Merge* merge = find(symbols[i].id, symbols[i + 1].id);
    return merge ? merge->rank : no_rank;
  };
  ranks.resize(count);
  for (size_t i = 0; i + 1 < count; ++i) ranks[i] = rank(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == no_rank) break;
    symbols[best].id = find(symbols[best].id, symbols[best + 1].id)->merged;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    ranks.erase(ranks.begin() + static_cast<ptrdiff_t>(best));
    --count;
    if (best > 0) ranks[best - 1] = rank(best - 1);
    if (best + 1 < count) ranks[best] = rank(best);
  }
}

void Bpe::merge_long(WordScratch& scratch) const {
  merge_by_queue(scratch,
                 [&](const WordScratch::Symbol& left, const WordScratch::Symbol& right, uint32_t& order, WordScratch::Candidate& candidate) {
                   const Merge* merge = find(left.id, right.id);
                   if (!merge) return false;
                   order = merge->rank;
                   candidate.length = left.length + right.length;
                   candidate.merged = merge->merged;
                   return true;
                 });
}

void Bpe::encode(std::string_view word, WordScratch& scratch, std::vector<int32_t>& out) const {
  if (options_.ignore_merges) {
    if (const auto id = vocabulary_.find(word)) {
      out.push_back(*id);
      return;
    }
  }
  split(word, scratch);
  if (scratch.symbols.size() <= 96) {
    merge_short(scratch);
    for (const auto& symbol : scratch.symbols) out.push_back(symbol.id);
    return;
  }
  merge_long(scratch);
  for (const auto& symbol : scratch.symbols) {
    if (symbol.length) out.push_back(symbol.id);
  }
}

ScoredBpe::ScoredBpe(const Vocabulary& vocabulary, std::vector<float> scores, std::optional<int32_t> unknown)
    : vocabulary_(vocabulary), scores_(std::move(scores)), unknown_(unknown), byte_ids_(find_byte_pieces(vocabulary)) {}

void ScoredBpe::encode(std::string_view word, WordScratch& scratch, std::vector<int32_t>& out) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  for (size_t at = 0; at < word.size();) {
    const DecodedChar c = decode_utf8(word, at);
    const auto index = static_cast<int32_t>(symbols.size());
    const int32_t id = vocabulary_.find(word.substr(at, c.length)).value_or(-1);
    symbols.push_back({id, static_cast<uint32_t>(at), static_cast<uint32_t>(c.length), index - 1, index + 1});
    at += c.length;
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  merge_by_queue(scratch,
                 [&](const WordScratch::Symbol& left, const WordScratch::Symbol& right, uint32_t& order, WordScratch::Candidate& candidate) {
                   const auto id = vocabulary_.find(word.substr(left.begin, left.length + right.length));
                   if (!id || static_cast<size_t>(*id) >= scores_.size()) return false;
                   // The order of floats as unsigned numbers, turned round: the highest score comes first.
                   const auto bits = std::bit_cast<uint32_t>(scores_[static_cast<size_t>(*id)]);
                   const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
                   order = ~ascending;
                   candidate.length = left.length + right.length;
                   candidate.merged = *id;
                   return true;
                 });
  bool unknown_before = false;
  for (const auto& symbol : symbols) {
    if (!symbol.length) continue;
    const std::string_view bytes = word.substr(symbol.begin, symbol.length);
    const auto byte_id = [this](char b) { return byte_ids_[static_cast<uint8_t>(b)]; };
    if (symbol.id >= 0) {
      out.push_back(symbol.id);
    } else if (std::all_of(bytes.begin(), bytes.end(), [&](char b) { return byte_id(b) >= 0; })) {
      for (const char b : bytes) out.push_back(byte_id(b));
    } else {  // neighbouring unknown characters are one
      if (unknown_ && !unknown_before) out.push_back(*unknown_);
      unknown_before = true;
      continue;
    }
    unknown_before = false;
  }
}

}  // namespace tandem
