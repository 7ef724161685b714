// The one interface between ranks. Owned and called by one thread of its rank. Messages between a pair on one channel arrive in order;
// channels are independent. Every wait ends when abort() is called on any thread or, through `guarded`, at a deadline: it then throws
// Error (Code::aborted, Code::deadline_exceeded, or Code::unavailable when a peer is gone).
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tandem {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual std::string_view transport() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Returns when `data` may be reused: it waits only while two earlier messages to that peer on that channel are still on their way.
  virtual void send(int to, int channel, const void* data, size_t bytes) = 0;
  // Exactly `bytes` bytes; a message of another length is Code::internal.
  virtual void receive(int from, int channel, void* data, size_t bytes) = 0;
  // True when a message from that peer waits on the channel: never blocks.
  virtual bool arrived(int from, int channel) = 0;

  // Collectives over `members` (ranks, ascending, including this one; the same list on each), host float data, sums in member order.
  virtual void all_reduce(std::span<const int> members, float* values, size_t count) = 0;
  virtual void all_gather(std::span<const int> members, const float* mine, std::span<const size_t> counts, float* all) = 0;
  virtual void broadcast(std::span<const int> members, int root, void* data, size_t bytes) = 0;
  virtual void barrier(std::span<const int> members) = 0;

  virtual void abort() noexcept = 0;  // from any thread: every wait of this rank (and of in-process peers) ends with Code::aborted
};

constexpr int kChannels = 4;
enum Channel : int { kHiddenChannel = 0, kMailboxChannel = 1, kGroupChannel = 2, kControlChannel = 3 };

}  // namespace tandem
