// The ranks that share one stage's tensors, as a kernel sees them: how many, which one am I, and two collectives. Filled by
// sharding/comm; a kernel knows no rank. One thread of the rank's team calls it, all members in the same order.
#pragma once
#include <cstddef>
#include <span>

namespace tandem {

class PeerGroup {
 public:
  virtual ~PeerGroup() = default;
  virtual int index() const = 0;
  virtual int size() const = 0;
  // In place: every member's float[count] becomes the sum over members, added in member order (the same bits everywhere).
  virtual void all_reduce(float* values, size_t count) = 0;
  // Member i gives float[counts[i]]; all receive them one after the other in member order.
  virtual void all_gather(const float* mine, std::span<const size_t> counts, float* all) = 0;
};

}  // namespace tandem
