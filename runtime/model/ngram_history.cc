#include "runtime/model/ngram_history.h"

#include <algorithm>

namespace tandem {

void NgramHistory::start(int32_t n) {
  n_ = n;
  ids_.clear();
  places_.clear();
}

uint64_t NgramHistory::key_at(size_t end) const {
  uint64_t key = 0xcbf29ce484222325;
  for (size_t i = end - static_cast<size_t>(n_ - 1); i < end; ++i) key = (key ^ static_cast<uint32_t>(ids_[i])) * 0x100000001b3;
  return key;
}

void NgramHistory::push(int32_t id) {
  const size_t at = ids_.size();
  ids_.push_back(id);
  if (n_ <= 0 || at + 1 < static_cast<size_t>(n_)) return;
  std::vector<uint32_t>& places = places_[key_at(at)];
  const bool known = std::any_of(places.begin(), places.end(), [&](uint32_t place) { return ids_[place] == id && same_before(place, at); });
  if (!known) places.push_back(static_cast<uint32_t>(at));
}

bool NgramHistory::same_before(size_t a, size_t b) const {
  const auto before = static_cast<ptrdiff_t>(n_ - 1), from = static_cast<ptrdiff_t>(a), to = static_cast<ptrdiff_t>(b);
  return std::equal(ids_.begin() + from - before, ids_.begin() + from, ids_.begin() + to - before);
}

void NgramHistory::append_followers(std::vector<int32_t>& out) const {
  const size_t end = ids_.size();
  if (n_ <= 0 || end + 1 < static_cast<size_t>(n_)) return;
  const auto found = places_.find(key_at(end));
  if (found == places_.end()) return;
  for (const uint32_t at : found->second) {
    if (same_before(at, end)) out.push_back(ids_[at]);
  }
}

}  // namespace tandem
