// The model's own pieces (without added tokens): text <-> id, in one block of text and one hash table. Filled once, then immutable and
// thread-safe.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tandem {

class Vocabulary {
 public:
  void add(std::string_view piece, int32_t id);  // a piece given twice keeps the later id
  // Builds the table. Ids must lie below a small multiple of the number of pieces, so that no file can ask for memory that it does not
  // fill itself.
  void finish(const std::string& where);

  std::optional<int32_t> find(std::string_view piece) const;
  std::string_view piece(int32_t id) const;  // "" when no piece has this id
  bool has(int32_t id) const { return id >= 0 && id < size() && by_id_[static_cast<size_t>(id)].length != absent; }
  int32_t size() const { return static_cast<int32_t>(by_id_.size()); }  // the highest id + 1
  size_t longest() const { return longest_; }                           // bytes

 private:
  static constexpr uint32_t absent = UINT32_MAX;
  struct Span {
    uint32_t begin = 0, length = absent;
  };
  struct Added {
    Span span;
    int32_t id;
  };
  struct Slot {
    uint32_t tag = 0;
    uint32_t begin = 0, length = 0;
    int32_t id = -1;
  };
  std::string text_;
  std::vector<Added> added_;
  std::vector<Span> by_id_;
  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
  size_t longest_ = 0;
};

uint64_t hash_bytes(std::string_view bytes);
std::array<int32_t, 256> find_byte_pieces(const Vocabulary& vocabulary);  // <0x00> ... <0xFF>; -1 = not a piece

}  // namespace tandem
