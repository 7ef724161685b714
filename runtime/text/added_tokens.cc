#include "runtime/text/added_tokens.h"

#include <algorithm>

#include "runtime/text/char_class.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

char32_t last_char(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return decode_utf8(text, at).code;
}

size_t spaces_from(std::string_view text, size_t at) {
  while (at < text.size()) {
    const DecodedChar c = decode_utf8(text, at);
    if (!is_space(c.code)) break;
    at += c.length;
  }
  return at;
}

size_t spaces_before(std::string_view text, size_t end, size_t limit) {
  while (end > limit) {
    size_t at = end - 1;
    while (at > limit && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
    if (!is_space(decode_utf8(text, at).code)) break;
    end = at;
  }
  return end;
}

}  // namespace

void AddedTokens::add(AddedToken token) {
  if (token.content.empty()) return;
  const auto found = by_content_.find(token.content);
  if (found != by_content_.end()) {
    AddedToken& old = tokens_[found->second];
    const bool special = old.special || token.special;
    const int32_t id = old.id;
    old = std::move(token);
    old.special = special;
    old.id = id;
    return;
  }
  by_content_.emplace(token.content, tokens_.size());
  by_id_.emplace(token.id, tokens_.size());
  tokens_.push_back(std::move(token));
}

void AddedTokens::Matcher::add(std::string_view content, int32_t token) {
  if (content.empty()) return;
  if (nodes.empty()) nodes.emplace_back();
  uint32_t at = 0;
  for (char c : content) {
    const auto byte = static_cast<uint8_t>(c);
    auto& next = nodes[at].next;
    const auto found = std::find_if(next.begin(), next.end(), [&](const auto& edge) { return edge.first == byte; });
    if (found != next.end()) {
      at = found->second;
      continue;
    }
    const auto fresh = static_cast<uint32_t>(nodes.size());
    next.emplace_back(byte, fresh);
    if (at == 0) first[byte] = fresh;
    nodes.emplace_back();
    at = fresh;
  }
  if (nodes[at].token < 0) nodes[at].token = token;
}

bool AddedTokens::Matcher::match(std::string_view text, size_t& from, size_t& end, int32_t& token) const {
  for (; from < text.size(); ++from) {
    uint32_t at = first[static_cast<uint8_t>(text[from])];
    if (!at) continue;
    token = -1;
    for (size_t i = from + 1;; ++i) {
      const Node& node = nodes[at];
      if (node.token >= 0) token = node.token, end = i;
      if (i == text.size()) break;
      const auto byte = static_cast<uint8_t>(text[i]);
      const auto found = std::find_if(node.next.begin(), node.next.end(), [&](const auto& edge) { return edge.first == byte; });
      if (found == node.next.end()) break;
      at = found->second;
    }
    if (token >= 0) return true;
  }
  return false;
}

void AddedTokens::finish(const Normalizer* normalizer) {
  special_.assign(static_cast<size_t>(highest() + 1), false);
  hidden_ = special_;
  for (AddedToken& token : tokens_) {
    token.shown = token.content;
    if (token.normalized && normalizer) normalizer->apply(token.shown);
  }
  // Special tokens come first: among equal contents after normalization the first one counts.
  for (const bool special : {true, false}) {
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const AddedToken& token = tokens_[i];
      if (token.special != special) continue;
      matchers_[token.normalized].add(token.shown, static_cast<int32_t>(i));
      if (!special) continue;
      special_[static_cast<size_t>(token.id)] = true;
      const AddedToken* namesake = find(token.shown);
      hidden_[static_cast<size_t>(token.id)] = namesake && namesake->special;
    }
  }
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto found = by_content_.find(std::string(content));
  return found == by_content_.end() ? nullptr : &tokens_[found->second];
}

const AddedToken* AddedTokens::at(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

int32_t AddedTokens::highest() const {
  int32_t id = -1;
  for (const AddedToken& token : tokens_) id = std::max(id, token.id);
  return id;
}

std::string AddedTokens::guarded(std::string_view text, std::string_view guard) const {
  std::vector<size_t> places;
  for (const Matcher& matcher : matchers_) {
    if (matcher.nodes.empty()) continue;
    int32_t token;
    for (size_t from = 0, end; matcher.match(text, from, end, token);) {
      const size_t first = decode_utf8(text, from).length;
      if (tokens_[static_cast<size_t>(token)].special) places.push_back(from + first);
      from += first;
    }
  }
  std::sort(places.begin(), places.end());
  std::string out;
  size_t from = 0;
  for (const size_t place : places) {
    out += text.substr(from, place - from);
    out += guard;
    from = place;
  }
  return out += text.substr(from);
}

void AddedTokens::split(std::string_view text, bool normalized, std::vector<Piece>& out) const {
  out.clear();
  if (text.empty()) return;
  const Matcher& matcher = matchers_[normalized];
  size_t start = 0;
  if (!matcher.nodes.empty()) {
    int32_t index;
    for (size_t from = 0, end; matcher.match(text, from, end, index); from = end) {
      const AddedToken& token = tokens_[static_cast<size_t>(index)];
      size_t begin = from, stop = end;
      if (token.single_word) {
        if (begin > 0 && is_word(last_char(text.substr(0, begin)))) continue;
        if (stop < text.size() && is_word(decode_utf8(text, stop).code)) continue;
      }
      if (token.lstrip) begin = std::max(spaces_before(text, begin, 0), start);
      if (token.rstrip) stop = spaces_from(text, stop);
      if (start < begin) out.push_back({start, begin, -1});
      out.push_back({begin, stop, token.id});
      start = stop;
    }
  }
  if (start < text.size()) out.push_back({start, text.size(), -1});
}

}  // namespace tandem
