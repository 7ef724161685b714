// How one token is chosen from a row of logits. Steps and their order are transformers': biases, repetition penalty, (presence
// and frequency penalties, of generated ids only), forbidden ids and those not allowed, then without greed temperature, top-k, top-p,
// min-p, typical-p, each on what the former left, renormalized. The draw inverts the cumulative distribution over the ids left, in ascending order, at
// philox_uniform(seed, position, 0, choice). Ties: greedy takes the lowest id; top-k keeps all that equal the last one kept (as
// transformers does); top-p keeps lower ids first; typical-p keeps all.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/program/backend.h"

namespace tandem::cpu {

uint64_t sample_scratch_bytes(int64_t vocab);  // of one thread, 64-byte aligned

// logits: float[vocab]. Deterministic; allocates nothing. Errors: Code::internal when the logits hold NaN or nothing may be drawn.
Sampled sample_row(const float* logits, int64_t vocab, const SampleRow& row, std::byte* scratch);

}  // namespace tandem::cpu
