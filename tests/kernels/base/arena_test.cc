#include "kernels/base/arena.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tandem {
namespace {

TEST(Arena, BuffersThatNeverMeetShare) {
  const std::vector<ArenaBuffer> buffers = {
      {"x", 100, {{0, 9}}}, {"a", 1000, {{0, 1}, {4, 5}}}, {"b", 500, {{2, 3}, {6, 7}}}, {"c", 64, {{1, 2}}}, {"none", 0, {{0, 9}}}};
  const ArenaPlan plan = plan_arena(buffers);
  ASSERT_EQ(plan.slots.size(), 3u);
  EXPECT_EQ(plan.slots[0].name, "a | b");
  EXPECT_EQ(plan.slots[0].bytes, 1024u);
  EXPECT_EQ(plan.offset(1), plan.offset(2));
  EXPECT_EQ(plan.slot_of[4], -1);
  EXPECT_EQ(plan.bytes, 1024u + 128 + 64);
}

TEST(Arena, NothingAliveOverlaps) {
  const uint64_t seed = 5;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 200; ++round) {
    std::vector<ArenaBuffer> buffers(1 + random() % 20);
    for (ArenaBuffer& b : buffers) {
      b.name = "b";
      b.bytes = random() % 1000;
      for (int32_t at = 0; at < 20; at += 4) {
        if (random() % 2) b.lives.push_back({at, at + static_cast<int32_t>(random() % 6)});
      }
    }
    const ArenaPlan plan = plan_arena(buffers);
    uint64_t total = 0;
    for (const ArenaSlot& slot : plan.slots) {
      EXPECT_EQ(slot.offset, total);
      EXPECT_EQ(slot.bytes % kArenaAlignment, 0u);
      total += slot.bytes;
    }
    EXPECT_EQ(total, plan.bytes);
    for (int32_t at = 0; at < 30; ++at) {
      const auto alive = [&](const ArenaBuffer& b) {
        for (const Lifetime& life : b.lives) {
          if (life.first <= at && at <= life.last) return b.bytes > 0;
        }
        return false;
      };
      for (size_t i = 0; i < buffers.size(); ++i) {
        if (!alive(buffers[i])) continue;
        EXPECT_LE(plan.offset(i) + buffers[i].bytes, plan.bytes);
        for (size_t j = 0; j < i; ++j) {
          if (alive(buffers[j])) {
            EXPECT_TRUE(plan.offset(i) + buffers[i].bytes <= plan.offset(j) || plan.offset(j) + buffers[j].bytes <= plan.offset(i));
          }
        }
      }
    }
  }
}

TEST(Arena, PoisonIsNaN) {
  float values[5] = {};
  poison(values, sizeof values);
  for (const float v : values) EXPECT_TRUE(std::isnan(v));
}

}  // namespace
}  // namespace tandem
