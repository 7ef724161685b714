#include "kernels/cuda/plan/sample_scratch.h"

namespace tandem::cuda {

SampleScratch sample_scratch(int32_t most_rows, int64_t vocab) {
  SampleScratch s;
  s.stride = (vocab + 63) / 64 * 64;
  s.rows = uint64_t{kSampleTeams} * static_cast<uint64_t>(s.stride) * sizeof(float);
  s.bytes = s.rows + static_cast<uint64_t>(most_rows) * kSampleRowBytes;
  return s;
}

uint64_t sample_scratch_bytes(int32_t most_rows, int64_t vocab) { return sample_scratch(most_rows, vocab).bytes; }

}  // namespace tandem::cuda
