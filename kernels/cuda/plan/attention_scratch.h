// What attention keeps between the blocks of a kernel. The counters, of (sequence, KV head), come first and have the same place in every
// call: launches of other capacities and layers of other shapes share the scratch, and the counters must still be zero then.
#pragma once
#include "kernels/cuda/plan/workspace.h"

namespace tandem::cuda {

constexpr int64_t kMostSplitRows = 16384;  // (sequence, KV head) pairs of one launch
constexpr uint64_t kSplitCounterBytes = kMostSplitRows * sizeof(uint32_t);

}  // namespace tandem::cuda
