// Ranks that are threads of one process. Every pair has one bounded queue a channel: the sender copies in, the receiver copies out (or
// sums in place); a wait spins for at most 20 us and then sleeps on a futex.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/threads.h"
#include "sharding/comm/collectives.h"
#include "sharding/comm/comms.h"

namespace tandem {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How many messages were put in (or taken out) so far, times two; bit 0 says that something ended and the waiter must look what. Its
// own cache line: one side writes it, the other spins on it.
class alignas(64) Tally {
 public:
  uint32_t read() const { return value_.load(std::memory_order_acquire); }
  void advance() {
    value_.fetch_add(2);
    wake();
  }
  void disturb() {
    value_.fetch_or(1);
    wake();
  }
  // Returns when the value is no longer `seen`.
  void wait(uint32_t seen, std::chrono::nanoseconds spin) {
    if (spin.count() > 0) {
      const auto end = std::chrono::steady_clock::now() + spin;
      do {
        for (int i = 0; i < 32; ++i) {
          if (read() != seen) return;
          pause();
        }
      } while (std::chrono::steady_clock::now() < end);
    }
    // Sequentially consistent with advance() and disturb(): either the new value is seen here, or the sleeper is seen there.
    sleepers_.fetch_add(1);
    while (value_.load() == seen) syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    sleepers_.fetch_sub(1);
  }

 private:
  void wake() {
    if (sleepers_.load() > 0) syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
  }
  std::atomic<uint32_t> value_{0}, sleepers_{0};
};

uint32_t between(uint32_t sent, uint32_t taken) { return ((sent >> 1) - (taken >> 1)) & 0x7fffffff; }

struct Slot {
  std::vector<std::byte> data;  // never shrinks
  size_t bytes = 0;
};

struct Queue {
  Tally sent, taken;
  std::vector<Slot> slots;  // message n is in slot n % size
};

struct World {
  explicit World(int n) : size(n), queues(static_cast<size_t>(n) * n * kChannels), gone(n) {
    for (size_t i = 0; i < queues.size(); ++i) queues[i].slots.resize(depth(static_cast<int>(i % kChannels)));
    // With more ranks than cores a spinning rank keeps the one it waits for from running.
    spin = n <= allowed_cores() ? std::chrono::microseconds(20) : std::chrono::microseconds(0);
  }
  Queue& queue(int from, int to, int channel) { return queues[(static_cast<size_t>(from) * size + to) * kChannels + channel]; }

  int size;
  std::vector<Queue> queues;
  std::vector<std::atomic<bool>> gone;
  std::atomic<bool> aborted{false};
  std::chrono::nanoseconds spin{0};
};

class Inproc final : public MessageCommunicator {
 public:
  Inproc(std::shared_ptr<World> world, int rank) : world_(std::move(world)), rank_(rank) {}
  ~Inproc() override {
    world_->gone[rank_] = true;
    for (int peer = 0; peer < world_->size; ++peer) {
      for (int channel = 0; channel < kChannels; ++channel) {
        world_->queue(rank_, peer, channel).sent.disturb();
        world_->queue(peer, rank_, channel).taken.disturb();
      }
    }
  }

  std::string_view transport() const override { return "inproc"; }
  int rank() const override { return rank_; }
  int size() const override { return world_->size; }

  void send(int to, int channel, const void* data, size_t bytes) override {
    check_channel(to, size(), channel);
    Queue& queue = world_->queue(rank_, to, channel);
    const uint32_t sent = queue.sent.read();
    for (;;) {
      check_abort();
      const uint32_t taken = queue.taken.read();
      if (between(sent, taken) < queue.slots.size()) break;
      if (taken & 1) lost(to);
      queue.taken.wait(taken, world_->spin);
    }
    Slot& slot = queue.slots[(sent >> 1) % queue.slots.size()];
    if (slot.data.size() < bytes) slot.data.resize(bytes);
    slot.bytes = bytes;
    if (bytes > 0) std::memcpy(slot.data.data(), data, bytes);
    queue.sent.advance();
  }

  void receive(int from, int channel, void* data, size_t bytes) override {
    const std::byte* message = front(from, channel, bytes);
    if (bytes > 0) std::memcpy(data, message, bytes);
    world_->queue(from, rank_, channel).taken.advance();
  }

  bool arrived(int from, int channel) override {
    check_channel(from, size(), channel);
    check_abort();
    Queue& queue = world_->queue(from, rank_, channel);
    const uint32_t sent = queue.sent.read();
    if (between(sent, queue.taken.read()) > 0) return true;
    if (sent & 1) lost(from);
    return false;
  }

  void abort() noexcept override {
    world_->aborted = true;
    for (Queue& queue : world_->queues) {
      queue.sent.disturb();
      queue.taken.disturb();
    }
  }

 protected:
  const std::byte* hold(int from, size_t bytes) override { return front(from, kGroupChannel, bytes); }
  void release(int from) override { world_->queue(from, rank_, kGroupChannel).taken.advance(); }

 private:
  void check_abort() const {
    if (world_->aborted.load(std::memory_order_acquire)) fail(Code::aborted, "rank " + std::to_string(rank_), "communication was aborted");
  }
  // The other end of a disturbed queue, which has nothing more for us.
  void lost(int peer) const {
    check_abort();
    if (world_->gone[peer]) fail(Code::unavailable, "rank " + std::to_string(rank_), "rank " + std::to_string(peer) + " is gone");
  }

  const std::byte* front(int from, int channel, size_t bytes) {
    check_channel(from, size(), channel);
    Queue& queue = world_->queue(from, rank_, channel);
    const uint32_t taken = queue.taken.read();
    for (;;) {
      check_abort();
      const uint32_t sent = queue.sent.read();
      if (between(sent, taken) > 0) break;
      if (sent & 1) lost(from);
      queue.sent.wait(sent, world_->spin);
    }
    const Slot& slot = queue.slots[(taken >> 1) % queue.slots.size()];
    if (slot.bytes != bytes) {
      const size_t length = slot.bytes;
      queue.taken.advance();
      fail(Code::internal, "rank " + std::to_string(rank_),
           "a message of " + std::to_string(length) + " bytes came from rank " + std::to_string(from) + " on channel " +
               std::to_string(channel) + " (" + std::to_string(bytes) + " were expected)");
    }
    return slot.data.data();
  }

  std::shared_ptr<World> world_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_inproc(int size) {
  if (size < 1) fail(Code::internal, "make_inproc", "at least one rank is needed");
  const auto world = std::make_shared<World>(size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < size; ++rank) ranks.push_back(std::make_unique<Inproc>(world, rank));
  return ranks;
}

}  // namespace tandem
