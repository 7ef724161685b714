// What sampling keeps between its kernels. Counters come first, at 0.
#pragma once
#include "kernels/cuda/plan/workspace.h"

namespace tandem::cuda {

constexpr uint64_t kSampleBlocks = 32, kPartialBytes = 16;  // blocks that share a row's maximum and sum, what each leaves
constexpr int32_t kSampleTeams = 16;                        // rows in the making at once where a device cannot hold them in shared memory

struct SampleScratch {
  // offsets: uint32 counters[rows], 16-byte partials[rows][kSampleBlocks], 16-byte raws[rows], float values[teams][stride]
  uint64_t partials = 0, raws = 0, values = 0, bytes = 0;
  int64_t stride = 0;
  int32_t teams = 0;
};
SampleScratch sample_scratch(int32_t most_rows, int64_t vocab);

}  // namespace tandem::cuda
