// One row's norm, router and choice of experts. At one row each of them is a few hundred nanoseconds of work; as three kernels they cost
// their launches. One block: the router's matrix, which is small, is read while the kernel ahead still runs.
#include "kernels/base/cuda/element.cuh"
#include "kernels/base/error.h"
#include "kernels/cuda/choose.cuh"

namespace tandem::cuda {
namespace {

constexpr int kExperts = 8;  // as enters_mixture() says
constexpr int kThreads = 1024, kWarps = kThreads / 32;

// A warp's sums of kExperts values each: lane 4 e has that of e.
__device__ __forceinline__ float warp_sums(float (&v)[kExperts]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = kExperts / 2, mask = 16; half > 0; half /= 2, mask /= 2) {
    const bool upper = lane & mask;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? v[i + half] : v[i], sent = upper ? v[i] : v[i + half];
      v[i] = kept + __shfl_xor_sync(~0u, sent, mask);
    }
  }
  v[0] += __shfl_xor_sync(~0u, v[0], 2);
  return v[0] + __shfl_xor_sync(~0u, v[0], 1);
}

// Threads hold kHeld quads of the row each.
template <typename T, int kHeld>
__global__ void __launch_bounds__(kThreads) enter_one_row(const __grid_constant__ EnterMixtureCall call) {
  __shared__ float shared[32], sums[kWarps][kExperts], logits[kExperts];
  const MoeCall& choice = call.choice;
  const int quads = static_cast<int>(call.hidden / 4), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto holds = [&](int k) { return static_cast<int>(threadIdx.x) + k * kThreads < quads; };
  let_next_begin();
  float4 weight[kHeld];
  Quad<T> router[kHeld][kExperts];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int at = static_cast<int>(threadIdx.x) + k * kThreads;
    weight[k] = holds(k) ? __ldg(reinterpret_cast<const float4*>(call.norm_weight) + at) : float4{};
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
      router[k][e] = {};
      if (holds(k) && e < choice.experts) {
        router[k][e] = reinterpret_cast<const Quad<T>*>(static_cast<const T*>(call.router) + e * ((call.hidden + 7) / 8 * 8))[at];
      }
    }
  }
  wait_for_previous();
  float4 v[kHeld];
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) v[k] = holds(k) ? reinterpret_cast<const float4*>(call.x)[threadIdx.x + k * kThreads] : float4{};
#pragma unroll
  for (int k = 0; k < kHeld; ++k) squares += (v[k].x * v[k].x + v[k].y * v[k].y) + (v[k].z * v[k].z + v[k].w * v[k].w);
  const float scale = 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(call.hidden) + call.epsilon);
  float dot[kExperts] = {};
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    Quad<T> n;
    n.v[0] = from_float<T>(v[k].x * scale * weight[k].x), n.v[1] = from_float<T>(v[k].y * scale * weight[k].y);
    n.v[2] = from_float<T>(v[k].z * scale * weight[k].z), n.v[3] = from_float<T>(v[k].w * scale * weight[k].w);
    if (holds(k)) static_cast<Quad<T>*>(call.h)[threadIdx.x + k * kThreads] = n;
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
#pragma unroll
      for (int i = 0; i < 4; ++i) dot[e] = fmaf(to_float(n.v[i]), to_float(router[k][e].v[i]), dot[e]);
    }
  }
  const float sum = warp_sums(dot);
  if (lane % 4 == 0) sums[warp][lane / 4] = sum;
  __syncthreads();
  if (warp > 0) return;
  const int expert = lane % kExperts;
  float all = 0;
#pragma unroll
  for (int w = lane / kExperts; w < kWarps; w += 32 / kExperts) all += sums[w][expert];
  all += __shfl_xor_sync(~0u, all, 8);
  all += __shfl_xor_sync(~0u, all, 16);
  if (call.router_bias != nullptr && expert < choice.experts) all += call.router_bias[expert];
  if (lane < kExperts) logits[lane] = all;
  __syncwarp();
  const Choice mine = choose(choice, logits);
  const int local = lane < choice.top_k ? mine.expert - choice.expert_begin : -1;
  const bool here = local >= 0 && local < choice.local_experts;
  const unsigned chosen = __ballot_sync(~0u, here);
  unsigned taken = here ? 1u << local : 0;
  taken = __reduce_or_sync(~0u, taken);
  if (lane <= choice.local_experts) choice.lists.begin[lane] = __popc(taken & ((1u << lane) - 1));
  if (lane < choice.top_k) {
    const int pair = here ? __popc(chosen & ((1u << lane) - 1)) : -1;  // choices are in ascending order of experts
    if (here) choice.lists.row_of[pair] = 0;
    choice.lists.pair_of[lane] = pair;
    choice.lists.weight[lane] = mine.weight;
  }
}

}  // namespace

void enter_mixture(const Launch& how, const EnterMixtureCall& call) {
  const MoeCall& c = call.choice;
  if (!enters_mixture(call.element, call.hidden, c.experts) || c.rows != 1 || c.top_k > c.experts || c.local_experts > c.experts) {
    fail(Code::internal, "enter_mixture", "a row of " + std::to_string(call.hidden) + " for " + std::to_string(c.experts) + " experts");
  }
  const bool small = call.hidden <= 4 * kThreads;
  const auto kernel = call.element == Element::bf16 ? (small ? enter_one_row<bf16, 1> : enter_one_row<bf16, 2>)
                                                    : (small ? enter_one_row<f16, 1> : enter_one_row<f16, 2>);
  launch(how, kernel, 1, kThreads, 0, "enter_mixture", call);
}

}  // namespace tandem::cuda
