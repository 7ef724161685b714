#include <algorithm>

#include "kernels/cuda/plan/sample_scratch.h"

namespace tandem::cuda {

SampleScratch sample_scratch(int32_t most_rows, int64_t vocab) {
  const auto aligned = [](uint64_t bytes) { return (bytes + 255) / 256 * 256; };
  const auto rows = static_cast<uint64_t>(most_rows);
  SampleScratch s;
  s.partials = aligned(rows * sizeof(uint32_t));
  s.raws = s.partials + aligned(rows * kSampleBlocks * kPartialBytes);
  s.values = s.raws + aligned(rows * kPartialBytes);
  s.stride = (vocab + 63) / 64 * 64;
  s.teams = std::min(most_rows, kSampleTeams);
  s.bytes = s.values + static_cast<uint64_t>(s.teams) * static_cast<uint64_t>(s.stride) * sizeof(float);
  return s;
}

uint64_t sample_scratch_bytes(int32_t most_rows, int64_t vocab) { return sample_scratch(most_rows, vocab).bytes; }

}  // namespace tandem::cuda
