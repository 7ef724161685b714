// The ids of one sequence, asked which of them have followed its last n - 1 ids before. Belongs to one slot.
#pragma once
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace tandem {

class NgramHistory {
 public:
  void start(int32_t n);  // forgets everything; n = 0: nothing will be asked
  void push(int32_t id);
  void append_followers(std::vector<int32_t>& out) const;  // each once

 private:
  uint64_t key_at(size_t end) const;  // of the n - 1 ids before `end`
  bool same_before(size_t a, size_t b) const;  // the n - 1 ids before a and before b

  int32_t n_ = 0;
  std::vector<int32_t> ids_;
  std::unordered_map<uint64_t, std::vector<uint32_t>> places_;  // hash of n - 1 ids -> where what followed them stands
};

}  // namespace tandem
