// The largest value and where it is, and the kernels that sampling launches.
#pragma once
#include <cstdint>

#include "kernels/cuda/plan/sample_scratch.h"
#include "kernels/cuda/sample.h"

namespace tandem::cuda {

constexpr int32_t kNoId = 0x7fffffff;

struct Best { float value = -INFINITY; int32_t id = kNoId; };

// What is left of one block's share of a row, and of a row: its largest logit (NaN when any is), where it first is, and the sum of
// exp(logit - largest), or for a row float(largest + log(sum)), where logprobs are wanted.
struct alignas(16) RawBest { float value = 0; int32_t id = 0; float sum = 0; int32_t unused = 0; };
static_assert(sizeof(RawBest) == kPartialBytes);

// The larger; of equals the lower id. NaN is larger than all.
__device__ __forceinline__ Best better(Best a, Best b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan || b_nan) return a_nan && (!b_nan || a.id < b.id) ? a : b;
  return a.value > b.value || (a.value == b.value && a.id < b.id) ? a : b;
}
__device__ __forceinline__ Best warp_best(Best v) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) v = better(v, {__shfl_xor_sync(~0u, v.value, lane), __shfl_xor_sync(~0u, v.id, lane)});
  return v;
}
// shared: Best[32], free to be used again when this returns.
__device__ __forceinline__ Best block_best(Best v, Best* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  v = warp_best(v);
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  v = warp_best(lane < warps ? shared[lane] : Best{});
  __syncthreads();
  return v;
}

// Elements [4 q, 4 q + 4) of a row, minus infinity past its end. `whole`: rows are whole aligned quads. What belongs to whom does not
// depend on it: a row's sums are the same wherever it lies.
__device__ __forceinline__ float4 load_quad(const float* row, int64_t q, int64_t vocab, bool whole) {
  if (whole) return 4 * q < vocab ? __ldg(reinterpret_cast<const float4*>(row) + q) : float4{-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  const auto at = [&](int64_t i) { return i < vocab ? __ldg(row + i) : -INFINITY; };
  return {at(4 * q), at(4 * q + 1), at(4 * q + 2), at(4 * q + 3)};
}

// Draws every row greedily from the logits as they are: all there is to do for plain rows. Leaves a row's RawBest.
void take_best(const Launch& how, const SampleCall& call, const SampleScratch& layout);
// After it: rows that are not plain, by all the steps.
void draw(const Launch& how, const SampleCall& call, const SampleScratch& layout);

}  // namespace tandem::cuda
