// The block of device memory that each member of a stage gives to the others: where what is. Plain C++: the planner counts its bytes.
//   arrivals  uint32 [2 phases][kMostPeers members][kPullBlocks]  written by the others: "my tile n is there", "its sums are there"
//   farewells uint32 [kMostPeers]                                 written by the others: "I touch your block no more"
//   epochs    uint32 [kEagerBlocks]                               own: how many collectives by packets each thread block has done
//             uint32 [kPullBlocks]                                own: how many tiles each thread block has done
//   inbox     16-byte packets [2][size][kEagerPackets]            written by the others: two floats, each with its epoch beside it
//   tiles     16-byte quads [kPullBlocks][kTileSlots][tile]       read by the others
// The inbox is twofold: a member that has finished collective n has heard from all that they began n, so that they have ended n - 1.
// A tile's slot is used again four tiles later: before tile n + 1 is written, those of the others up to n - 1 have been seen, and each
// of them was written after its owner had finished with tile n - 3.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tandem::cuda {

constexpr int kMostPeers = 8;
constexpr int kEagerBlocks = 64;  // thread blocks of a collective by packets, whatever its size: their epochs stay equal
constexpr size_t kEagerBytes = 256 << 10;  // the most that goes by packets
constexpr size_t kEagerPackets = kEagerBytes / (2 * sizeof(float));
constexpr int kPullBlocks = 128, kTileSlots = 4, kLongestTile = 2048;  // a tile: at most four quads a thread

struct PeerBlock {
  int size = 1;
  int tile = kLongestTile;  // quads; the same on every member

  static constexpr size_t kArrivals = 0;
  static constexpr size_t kFarewells = kArrivals + sizeof(uint32_t) * 2 * kMostPeers * kPullBlocks;
  static constexpr size_t kEagerEpochs = kFarewells + sizeof(uint32_t) * kMostPeers;
  static constexpr size_t kPullEpochs = kEagerEpochs + sizeof(uint32_t) * kEagerBlocks;
  static constexpr size_t kInbox = (kPullEpochs + sizeof(uint32_t) * kPullBlocks + 1023) / 1024 * 1024;

  size_t tiles() const { return kInbox + size_t{2} * size * kEagerPackets * 16; }
  size_t bytes() const { return tiles() + size_t{kPullBlocks} * kTileSlots * tile * 16; }
};

// For a stage's group and the longest sum of a step (rows * hidden floats): up to 16 MiB and 1 MiB a member.
constexpr PeerBlock peer_block(int size, size_t longest_bytes) {
  const size_t each = (longest_bytes + 16 * kPullBlocks - 1) / (16 * kPullBlocks);
  return {size, each < 64 ? 64 : each > kLongestTile ? kLongestTile : static_cast<int>(each)};
}

}  // namespace tandem::cuda
