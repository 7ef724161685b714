// A word of pinned host memory that device code polls while it waits for another GPU: raised once, from any thread, it ends every such
// wait, and what was being computed is worthless. Shared by a rank's communicator and the kernels that wait.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>

#include "kernels/base/cuda/check.h"

namespace tandem::cuda {

class AbortWord {
 public:
  AbortWord() {
    check(cudaHostAlloc(reinterpret_cast<void**>(&word_), sizeof *word_, cudaHostAllocMapped | cudaHostAllocPortable), "abort word");
    *word_ = 0;
  }
  ~AbortWord() { cudaFreeHost(word_); }
  AbortWord(const AbortWord&) = delete;
  AbortWord& operator=(const AbortWord&) = delete;

  void raise() noexcept { std::atomic_ref(*word_).store(1); }
  bool raised() const noexcept { return std::atomic_ref(*word_).load() != 0; }
  const uint32_t* device() const { return word_; }  // one address space: good on every device

 private:
  uint32_t* word_ = nullptr;
};

}  // namespace tandem::cuda
