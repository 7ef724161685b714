// What sampling keeps between its kernels. A call may have fewer rows than were planned for, and where things are does not depend on how
// many: a row's counter is at the same place in every call.
#pragma once
#include "kernels/cuda/plan/workspace.h"

namespace tandem::cuda {

constexpr uint64_t kSampleBlocks = 32, kPartialBytes = 16;  // blocks that share a row's maximum and sum, what each leaves
constexpr int32_t kSampleTeams = 16;                        // rows in the making at once where a device cannot hold them in shared memory
// Of a row: the blocks' partials, what they come to, the counter of blocks that have arrived (0 between calls).
constexpr uint64_t kSampleRaw = kSampleBlocks * kPartialBytes, kSampleCounter = kSampleRaw + kPartialBytes, kSampleRowBytes = kSampleCounter + 16;

struct SampleScratch {
  uint64_t rows = 0, bytes = 0;  // float values[kSampleTeams][stride] at 0, then the rows' [kSampleRowBytes]
  int64_t stride = 0;
};
SampleScratch sample_scratch(int32_t most_rows, int64_t vocab);

}  // namespace tandem::cuda
