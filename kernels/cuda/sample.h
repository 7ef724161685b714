// Sampling on the device: the same steps in the same order as on CPUs (kernels/cpu/sample.h), the same Philox draws. Results stay on the
// device for the next step; the host reads them later. Enqueued on the launch's stream; nothing allocates or waits.
#pragma once
#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/plan/workspace.h"

namespace tandem::cuda {

struct SampleRowOnDevice {
  int32_t head = 0;       // row of the logits
  int32_t position = 0;   // Philox counter
  int32_t slot = 0;       // last_ids[slot] = the id drawn
  int32_t counts_begin = 0, counts_end = 0;        // of `counts`
  int32_t forbidden_begin = 0, forbidden_end = 0;  // of `forbidden`
  int32_t allowed_begin = 0, allowed_end = 0;      // of `allowed`; none: every id is allowed
  Sampling sampling;
};

struct SampleCall {
  const int32_t* count = nullptr;        // device: how many rows are to be drawn (at most most_rows)
  int32_t most_rows = 0;
  const SampleRowOnDevice* rows = nullptr;  // device
  const TokenCount* counts = nullptr;    // device
  const int32_t* forbidden = nullptr;    // device
  const uint32_t* allowed = nullptr;     // device: words of a bit an id
  const float* logits = nullptr;         // device float[heads, vocab]; not changed
  int64_t vocab = 0;
  bool plain = false;                    // every row is greedy, without penalties, biases, forbidden ids and more than the chosen one's logprob
  int32_t* last_ids = nullptr;           // [slots]
  Sampled* out = nullptr;                // device [most_rows]; id -1: the logits hold NaN or nothing may be drawn
  std::byte* scratch = nullptr;          // sample_scratch_bytes(); zero-filled once, counters are left zero
};

void sample(const Launch& how, const SampleCall& call);

}  // namespace tandem::cuda
