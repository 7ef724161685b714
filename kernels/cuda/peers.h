// Collectives of a stage's members on device memory, by kernels that read and write the other GPUs' memory (NVLink or PCIe P2P). All
// are enqueued, wait for nothing on the host and may be captured into a graph: how far the members are is counted on the devices. Sums
// are taken in member order, so they are the same bits on every member, every time.
//   up to 256 KB  each member stores its numbers into the others' inboxes, two floats a packet with the epoch beside them: one way, one wait
//   above         tile by tile, each copies its numbers into its own block, says so, and reads the others' (with three members or more:
//                 reads its share of all, then the others' sums)
// A kernel that waits for a peer polls the abort word: raised, the kernel ends, and its results are worthless. One thread a member, the
// same calls in the same order on all members. Members may share a GPU (tests do), but then without dependent launches: kernels that were
// let in early would take the room of those that they wait for.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/cuda/abort_word.h"
#include "kernels/base/cuda/launch.h"
#include "kernels/base/peer_group.h"
#include "kernels/cuda/plan/peer_block.h"

namespace tandem::cuda {

class DevicePeers : public PeerGroup {
 public:
  using PeerGroup::all_gather;
  using PeerGroup::all_reduce;
  virtual void all_reduce(const Launch& how, float* values, size_t count) = 0;
  virtual void all_gather(const Launch& how, const float* mine, std::span<const size_t> counts, float* all) = 0;
  // x += the sum over members of their partials; float[rows, hidden] each. `partial` may hold anything afterwards.
  virtual void reduce_into(const Launch& how, float* x, float* partial, int64_t rows, int64_t hidden) = 0;
  virtual bool direct() const = 0;     // false: over `otherwise`
  virtual size_t bytes() const = 0;    // of device memory, this member's
};

// Gives every member's bytes to every member, in member order: what the host's transport does (sharding/comm: exchange()).
using Exchange = std::function<std::vector<std::string>(std::string_view mine)>;

struct PeerSettings {
  int index = 0, size = 1;      // this member, of how many (at most kMostPeers)
  Launch launch;                // of the calls that PeerGroup declares
  size_t longest_bytes = 0;     // of one member's numbers in a step's longest sum; sizes the block (plan/peer_block.h), longer ones may come
  std::shared_ptr<AbortWord> abort;  // null: one of its own, which nobody raises
  PeerGroup* otherwise = nullptr;    // on device memory and the launch's stream (NCCL); used where a member cannot reach another's memory
  enum class Route { by_size, eager, one_shot, two_shot, otherwise } route = Route::by_size;  // all but the first for tests; eager: up to kEagerBytes
};
// Called by all members at once, with the device of launch.device current. Errors: Code::failed_precondition when a member's memory
// cannot be reached and nothing else is given; Code::resource_exhausted.
std::unique_ptr<DevicePeers> make_device_peers(const PeerSettings& settings, const Exchange& exchange);

}  // namespace tandem::cuda
