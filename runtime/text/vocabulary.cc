#include "runtime/text/vocabulary.h"

#include <bit>
#include <cstring>

#include "kernels/base/error.h"

namespace tandem {

uint64_t hash_bytes(std::string_view bytes) {
  constexpr uint64_t factor = 0x9E3779B97F4A7C15ull;
  uint64_t hash = bytes.size() * factor;
  const char* at = bytes.data();
  size_t left = bytes.size();
  auto mix = [&](uint64_t word) {
    hash = (hash ^ word) * factor;
    hash ^= hash >> 29;
  };
  for (; left >= 8; left -= 8, at += 8) {
    uint64_t word;
    std::memcpy(&word, at, 8);
    mix(word);
  }
  if (left) {
    uint64_t word = 0;
    std::memcpy(&word, at, left);
    mix(word);
  }
  return hash ^ (hash >> 32);
}

void Vocabulary::add(std::string_view piece, int32_t id) {
  added_.push_back({{static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(piece.size())}, id});
  text_ += piece;
}

void Vocabulary::finish(const std::string& where) {
  if (text_.size() >= UINT32_MAX) bad_input(where, "the vocabulary is larger than 4 GiB (less)");
  const int64_t bound = static_cast<int64_t>(added_.size()) * 16 + 65536;
  int64_t highest = -1;
  for (const Added& a : added_) {
    if (a.id < 0 || a.id >= bound) {
      bad_input(where, "the vocabulary of " + std::to_string(added_.size()) + " pieces has an id " + std::to_string(a.id) + " (0 to " +
                           std::to_string(bound - 1) + ")");
    }
    highest = std::max<int64_t>(highest, a.id);
    longest_ = std::max<size_t>(longest_, a.span.length);
  }
  by_id_.assign(static_cast<size_t>(highest + 1), {});
  const size_t capacity = std::bit_ceil(std::max<size_t>(16, added_.size() * 2));
  mask_ = capacity - 1;
  slots_.assign(capacity, {});
  for (const Added& a : added_) {
    const std::string_view piece = std::string_view(text_).substr(a.span.begin, a.span.length);
    const uint64_t hash = hash_bytes(piece);
    const auto tag = static_cast<uint32_t>(hash >> 32);
    for (uint64_t i = hash & mask_;; i = (i + 1) & mask_) {
      Slot& slot = slots_[i];
      if (slot.id >= 0 && (slot.tag != tag || std::string_view(text_).substr(slot.begin, slot.length) != piece)) continue;
      slot = {tag, a.span.begin, a.span.length, a.id};
      break;
    }
    by_id_[static_cast<size_t>(a.id)] = a.span;
  }
  added_ = {};
}

std::optional<int32_t> Vocabulary::find(std::string_view piece) const {
  if (slots_.empty() || piece.size() > longest_) return std::nullopt;
  const uint64_t hash = hash_bytes(piece);
  const auto tag = static_cast<uint32_t>(hash >> 32);
  for (uint64_t i = hash & mask_;; i = (i + 1) & mask_) {
    const Slot& slot = slots_[i];
    if (slot.id < 0) return std::nullopt;
    if (slot.tag == tag && slot.length == piece.size() && std::memcmp(text_.data() + slot.begin, piece.data(), piece.size()) == 0)
      return slot.id;
  }
}

std::string_view Vocabulary::piece(int32_t id) const {
  if (!has(id)) return {};
  const Span span = by_id_[static_cast<size_t>(id)];
  return std::string_view(text_).substr(span.begin, span.length);
}

std::array<int32_t, 256> find_byte_pieces(const Vocabulary& vocabulary) {
  std::array<int32_t, 256> ids;
  constexpr char digits[] = "0123456789ABCDEF";
  for (int b = 0; b < 256; ++b) {
    const std::string piece = {'<', '0', 'x', digits[b >> 4], digits[b & 15], '>'};
    ids[static_cast<size_t>(b)] = vocabulary.find(piece).value_or(-1);
  }
  return ids;
}

}  // namespace tandem
