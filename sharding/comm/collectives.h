// Collectives out of point to point messages, for every transport that has nothing better. All results are the same bits on every
// member: sums are taken in member order, wherever they are taken. Threads as in communicator.h.
#pragma once
#include <cstddef>
#include <vector>

#include "sharding/comm/communicator.h"

namespace tandem {

class MessageCommunicator : public Communicator {
 public:
  void all_reduce(std::span<const int> members, float* values, size_t count) override;
  void all_gather(std::span<const int> members, const float* mine, std::span<const size_t> counts, float* all) override;
  void broadcast(std::span<const int> members, int root, void* data, size_t bytes) override;
  void barrier(std::span<const int> members) override;

 protected:
  // The next message from a rank on kGroupChannel, exactly `bytes` long; valid until release(from). One a rank at a time.
  virtual const std::byte* hold(int from, size_t bytes) = 0;
  virtual void release(int from) = 0;

 private:
  size_t position(std::span<const int> members) const;
  // values[i] = sum over members, where this member's numbers are `values` and another's are what it sent.
  void sum(std::span<const int> members, size_t me, float* values, size_t count);

  std::vector<const float*> terms_;
};

// How far a sender may run ahead of a receiver on a channel. Hidden rows and collectives have two buffers; ids and small messages
// more, so that a last stage which is several groups of sequences ahead is not held up.
constexpr int depth(int channel) { return channel == kHiddenChannel || channel == kGroupChannel ? 2 : 16; }

void check_channel(int peer, int size, int channel);  // Errors: Code::internal

}  // namespace tandem
