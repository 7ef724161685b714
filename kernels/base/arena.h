// Where the buffers of a computation lie inside one block of memory. Buffers that never live at the same time share a slot, so that
// a program of many layers needs the memory of one; the plan is a pure function, its slots are what a memory report prints, and
// their bytes add up to the block's. Values only.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tandem {

constexpr uint64_t kArenaAlignment = 64;

struct Lifetime {
  int32_t first = 0, last = 0;  // steps of the computation, inclusive
};

struct ArenaBuffer {
  std::string name;
  uint64_t bytes = 0;
  std::vector<Lifetime> lives;  // a buffer of every layer lives once a layer
};

struct ArenaSlot {
  std::string name;  // of its buffers, joined by " | ", the largest first
  uint64_t offset = 0, bytes = 0;
};

struct ArenaPlan {
  std::vector<ArenaSlot> slots;
  std::vector<int32_t> slot_of;  // [buffers]; -1: a buffer of no bytes
  uint64_t bytes = 0;            // of the block: the sum over slots, each a multiple of kArenaAlignment
  uint64_t offset(size_t buffer) const { return slot_of[buffer] < 0 ? 0 : slots[slot_of[buffer]].offset; }
};

ArenaPlan plan_arena(std::span<const ArenaBuffer> buffers);

// Fills with quiet NaNs (all bits set), which every sum that reads a dead value passes on.
void poison(void* memory, uint64_t bytes);

}  // namespace tandem
