#include "kernels/base/arena.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace tandem {
namespace {

bool overlap(const ArenaBuffer& a, const ArenaBuffer& b) {
  for (const Lifetime& x : a.lives) {
    for (const Lifetime& y : b.lives) {
      if (x.first <= y.last && y.first <= x.last) return true;
    }
  }
  return false;
}

}  // namespace

ArenaPlan plan_arena(std::span<const ArenaBuffer> buffers) {
  ArenaPlan plan;
  plan.slot_of.assign(buffers.size(), -1);
  std::vector<size_t> order(buffers.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return buffers[a].bytes > buffers[b].bytes; });
  std::vector<std::vector<size_t>> members;
  for (const size_t i : order) {
    if (buffers[i].bytes == 0) continue;
    size_t slot = 0;
    const auto clashes = [&](size_t other) { return overlap(buffers[i], buffers[other]); };
    while (slot < members.size() && std::any_of(members[slot].begin(), members[slot].end(), clashes)) ++slot;
    if (slot == members.size()) {  // the largest of its slot comes first and sizes it
      members.emplace_back();
      plan.slots.push_back({buffers[i].name, 0, (buffers[i].bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment});
    } else {
      plan.slots[slot].name += " | " + buffers[i].name;
    }
    members[slot].push_back(i);
    plan.slot_of[i] = static_cast<int32_t>(slot);
  }
  for (ArenaSlot& slot : plan.slots) {
    slot.offset = plan.bytes;
    plan.bytes += slot.bytes;
  }
  return plan;
}

void poison(void* memory, uint64_t bytes) {
  if (bytes > 0) std::memset(memory, 0xff, bytes);
}

}  // namespace tandem
