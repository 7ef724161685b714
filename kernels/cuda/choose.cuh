// The experts of one row.
#pragma once
#include <climits>

#include "kernels/base/cuda/reduce.cuh"
#include "kernels/cuda/moe.h"

namespace tandem::cuda {

struct Choice { int expert; float weight; };

// A warp's row, whose logits these are: lane k < top_k gets its choice number k, in ascending order of experts. A NaN is never better
// than a number, and makes all weights NaN.
__device__ __forceinline__ Choice choose(const MoeCall& call, const float* logits) {
  const int lane = threadIdx.x % 32;
  float most = -INFINITY;
  for (int e = lane; e < call.experts; e += 32) most = fmaxf(most, logits[e]);
  most = warp_max(most);
  float all = 0;
  for (int e = lane; e < call.experts; e += 32) all += expf(logits[e] - most);
  all = warp_sum(all);
  float value = INFINITY, chosen_value = 0;
  int expert = -1, chosen = INT_MAX;
  for (int k = 0; k < call.top_k; ++k) {  // the next after (value, expert) in descending order of values, ascending of experts
    float best = -INFINITY;
    int at = INT_MAX;
    for (int e = lane; e < call.experts; e += 32) {
      const float v = isnan(logits[e]) ? -INFINITY : logits[e];
      const bool open = v < value || (v == value && e > expert);
      if (open && (at == INT_MAX || v > best)) best = v, at = e;
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      const float other = __shfl_xor_sync(~0u, best, mask);
      const int other_at = __shfl_xor_sync(~0u, at, mask);
      if (other > best || (other == best && other_at < at)) best = other, at = other_at;
    }
    value = best, expert = at;
    if (lane == k) chosen_value = value, chosen = expert;
  }
  float weight = lane < call.top_k ? expf(chosen_value - most) / all : 0.0f;
  if (call.normalize) {
    const float kept = warp_sum(weight);
    weight = weight / kept;
  }
  int rank = 0;
  for (int k = 0; k < call.top_k; ++k) rank += __shfl_sync(~0u, chosen, k) < chosen;
  Choice result{INT_MAX, 0};
  for (int k = 0; k < call.top_k; ++k) {
    const int to = __shfl_sync(~0u, rank, k), e = __shfl_sync(~0u, chosen, k);
    const float w = __shfl_sync(~0u, weight, k);
    if (lane == to) result = {e, w};
  }
  return result;
}

}  // namespace tandem::cuda
