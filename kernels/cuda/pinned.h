// Host memory that copies to and from the device read and write while both go on: a ring of equal blocks, each guarded by an event.
// Owned by the rank's thread.
#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "kernels/base/cuda/check.h"

namespace tandem::cuda {

// Ends when what was recorded has happened (true), when `interrupt` is set (false), or when `watch` throws. Waits of a few milliseconds
// spin, longer ones (a large step, an idle peer) nap.
inline bool wait_for(cudaEvent_t event, const char* what, const std::function<void()>& watch = {}, const std::atomic<bool>* interrupt = nullptr) {
  const auto began = std::chrono::steady_clock::now();
  for (int turn = 0;; ++turn) {
    const cudaError_t state = cudaEventQuery(event);
    if (state == cudaSuccess) return true;
    if (state != cudaErrorNotReady) check(state, what);
    if (interrupt != nullptr && interrupt->load(std::memory_order_relaxed)) return false;
    if (turn % 64 != 63) continue;
    if (watch) watch();
    if (std::chrono::steady_clock::now() - began > std::chrono::milliseconds(20)) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

class PinnedRing {
 public:
  PinnedRing() = default;
  ~PinnedRing() {
    for (Block& block : blocks_) {
      cudaEventDestroy(block.done);
      cudaFreeHost(block.memory);
    }
  }
  PinnedRing(const PinnedRing&) = delete;
  PinnedRing& operator=(const PinnedRing&) = delete;

  void reserve(size_t blocks, size_t bytes) {
    bytes_ = bytes;
    for (size_t i = 0; i < blocks; ++i) {
      Block& block = blocks_.emplace_back();
      check(cudaHostAlloc(reinterpret_cast<void**>(&block.memory), bytes, cudaHostAllocDefault), "pinned host memory");
      check(cudaEventCreateWithFlags(&block.done, cudaEventDisableTiming), "event");
    }
  }
  size_t size() const { return blocks_.size(); }
  size_t bytes() const { return bytes_; }
  // The next block, once its last copy has ended.
  std::byte* take() {
    at_ = (at_ + 1) % blocks_.size();
    wait_for(blocks_[at_].done, "pinned host memory");
    return blocks_[at_].memory;
  }
  void sent(cudaStream_t stream) { check(cudaEventRecord(blocks_[at_].done, stream), "event"); }  // the copy of the block last taken is enqueued
  size_t index() const { return at_; }
  std::byte* memory(size_t index) { return blocks_[index].memory; }
  bool wait(size_t index, const std::function<void()>& watch, const std::atomic<bool>* interrupt = nullptr) {
    return wait_for(blocks_[index].done, "step on the device", watch, interrupt);
  }

 private:
  struct Block { std::byte* memory = nullptr; cudaEvent_t done = nullptr; };
  std::vector<Block> blocks_;
  size_t bytes_ = 0, at_ = 0;
};

}  // namespace tandem::cuda
