#include "runtime/text/unigram.h"

#include <algorithm>
#include <limits>

#include "kernels/base/error.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

constexpr double kUnknownPenalty = 10;

}  // namespace

Unigram::Unigram(const Vocabulary& vocabulary, std::vector<double> scores, std::optional<int32_t> unknown, bool byte_fallback,
                 const std::string& where)
    : vocabulary_(vocabulary), scores_(std::move(scores)), unknown_(unknown), byte_fallback_(byte_fallback), byte_ids_(find_byte_pieces(vocabulary)) {
  double least = std::numeric_limits<double>::infinity();
  for (const double score : scores_) least = std::min(least, score);
  unknown_score_ = least - kUnknownPenalty;

  struct Piece {
    std::string_view text;
    int32_t id;
  };
  std::vector<Piece> pieces;
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    const std::string_view text = vocabulary_.piece(id);
    if (text.empty() || vocabulary_.find(text) != id) continue;  // a piece given twice counts as the later one
    if (text.size() > kLongest) {
      bad_input(where, "piece " + std::to_string(id) + " of the vocabulary has " + std::to_string(text.size()) + " bytes (at most " + std::to_string(kLongest) + ")");
    }
    pieces.push_back({text, id});
  }
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.text < b.text; });

  struct Range {  // the pieces below a node, which share their first `depth` bytes
    size_t begin, end, depth;
  };
  std::vector<Range> ranges = {{0, pieces.size(), 0}};
  nodes_.emplace_back();
  for (size_t at = 0; at < nodes_.size(); ++at) {  // breadth first: children get neighbouring places
    auto [begin, end, depth] = ranges[at];
    nodes_[at].first_child = static_cast<uint32_t>(nodes_.size());
    if (begin < end && pieces[begin].text.size() == depth) nodes_[at].id = pieces[begin++].id;
    uint16_t children = 0;
    for (size_t from = begin; from < end; ++children) {
      const char byte = pieces[from].text[depth];
      size_t to = from;
      while (to < end && pieces[to].text[depth] == byte) ++to;
      Node node;
      node.byte = static_cast<uint8_t>(byte);
      nodes_.push_back(node);
      ranges.push_back({from, to, depth + 1});
      from = to;
    }
    nodes_[at].children = children;
  }
}

const Unigram::Node* Unigram::child(const Node& node, uint8_t byte) const {
  const Node* begin = nodes_.data() + node.first_child;
  const Node* end = begin + node.children;
  const Node* found = std::lower_bound(begin, end, byte, [](const Node& n, uint8_t b) { return n.byte < b; });
  return found != end && found->byte == byte ? found : nullptr;
}

void Unigram::emit_unknown(std::string_view text, std::vector<int32_t>& out) const {
  if (const auto id = vocabulary_.find(text)) {
    out.push_back(*id);
    return;
  }
  if (byte_fallback_ && std::all_of(text.begin(), text.end(), [&](char b) { return byte_ids_[static_cast<uint8_t>(b)] >= 0; })) {
    for (const char b : text) out.push_back(byte_ids_[static_cast<uint8_t>(b)]);
    return;
  }
  out.push_back(*unknown_);
}

void Unigram::encode(std::string_view word, WordScratch& scratch, std::vector<int32_t>& out) const {
  auto& path = scratch.path;
  path.assign(word.size() + 1, {});
  const auto offer = [&path](size_t begin, size_t end, double score, int32_t id) {
    auto& node = path[end];
    if (node.begin < 0 || score > node.score) node = {score, static_cast<int64_t>(begin), id};
  };
  for (size_t at = 0; at < word.size();) {
    const double so_far = path[at].score;
    const size_t length = decode_utf8(word, at).length;
    bool single = false;
    const Node* node = nodes_.data();
    for (size_t end = at; end < word.size();) {
      node = child(*node, static_cast<uint8_t>(word[end++]));
      if (!node) break;
      if (node->id < 0) continue;
      offer(at, end, scores_[static_cast<size_t>(node->id)] + so_far, node->id);
      single = single || end - at == length;
    }
    if (!single) {
      if (!unknown_) bad_input("text", "holds '" + std::string(word.substr(at, length)) + "', and the tokenizer has no unknown token (only characters of its vocabulary)");
      offer(at, at + length, unknown_score_ + so_far, *unknown_);
    }
    at += length;
  }
  // Back from the end; neighbouring unknown pieces are one.
  const size_t first = out.size();
  size_t unknown_end = 0;
  const auto emit_reversed = [&](std::string_view text) {
    const size_t from = out.size();
    emit_unknown(text, out);
    std::reverse(out.begin() + static_cast<ptrdiff_t>(from), out.end());
  };
  for (size_t end = word.size(); end > 0;) {
    const auto& node = path[end];
    const auto begin = static_cast<size_t>(node.begin);
    const bool unknown = unknown_ && node.id == *unknown_;
    if (unknown && !unknown_end) unknown_end = end;
    if (!unknown) {
      if (unknown_end) emit_reversed(word.substr(end, unknown_end - end));
      unknown_end = 0;
      out.push_back(node.id);
    } else if (begin == 0) {
      emit_reversed(word.substr(0, unknown_end));
    }
    end = begin;
  }
  std::reverse(out.begin() + static_cast<ptrdiff_t>(first), out.end());
}

}  // namespace tandem
