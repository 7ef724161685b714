#include <algorithm>

#include "kernels/cuda/plan/attention_scratch.h"

namespace tandem::cuda {

// Counters, then of every split: each query head's maximum, sum and weighted values.
uint64_t attention_scratch_bytes(const HeadShape& shape, int32_t most_sequences, int32_t most_context) {
  const auto splits = static_cast<uint64_t>((std::max(most_context, 1) + kSplitTokens - 1) / kSplitTokens);
  return kSplitCounterBytes + static_cast<uint64_t>(most_sequences) * static_cast<uint64_t>(shape.heads) * splits *
                                  static_cast<uint64_t>(shape.head_dim + 2) * sizeof(float);
}

}  // namespace tandem::cuda
