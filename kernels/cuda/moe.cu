// Which expert gets which row, and how experts' results become a row again.
#include "kernels/cuda/moe.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/cuda/choose.cuh"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/tile4.h"

namespace tandem::cuda {
namespace {

constexpr int kRouteWarps = 16, kOneBlockRows = 64, kRowsOfWarp = kOneBlockRows / kRouteWarps;
constexpr int kMostChosen = 32, kMostLocal = 2048;
constexpr int kPlaceThreads = 1024, kJoinThreads = 256;

// Up to 64 rows: a bit of an expert's word is a row that takes it.
__global__ void __launch_bounds__(kRouteWarps * 32) route_few(const __grid_constant__ MoeCall call) {
  extern __shared__ unsigned long long takers[];  // [local experts], then int begin[local experts + 1]
  int* const begin = reinterpret_cast<int*>(takers + call.local_experts);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, local = call.local_experts;
  let_next_begin();
  for (int e = threadIdx.x; e < local; e += blockDim.x) takers[e] = 0;
  __syncthreads();
  wait_for_previous();
  Choice mine[kRowsOfWarp];
#pragma unroll
  for (int i = 0; i < kRowsOfWarp; ++i) {
    const int row = warp + i * kRouteWarps;
    if (row >= call.rows) break;
    mine[i] = choose(call, call.router_logits + row * call.experts);
    mine[i].expert -= call.expert_begin;
    if (lane < call.top_k && mine[i].expert >= 0 && mine[i].expert < local) atomicOr(takers + mine[i].expert, 1ull << row);
  }
  __syncthreads();
  if (warp == 0) {
    int before = 0;
    for (int first = 0; first < local; first += 32) {
      const int count = first + lane < local ? __popcll(takers[first + lane]) : 0;
      int upto = count;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, upto, step);
        if (lane >= step) upto += other;
      }
      if (first + lane < local) begin[first + lane] = before + upto - count;
      before += __shfl_sync(~0u, upto, 31);
    }
    if (lane == 0) begin[local] = before;
  }
  __syncthreads();
  for (int e = threadIdx.x; e <= local; e += blockDim.x) call.lists.begin[e] = begin[e];
#pragma unroll
  for (int i = 0; i < kRowsOfWarp; ++i) {
    const int row = warp + i * kRouteWarps;
    if (row >= call.rows) break;
    if (lane >= call.top_k) continue;
    const int e = mine[i].expert;
    int pair = -1;
    if (e >= 0 && e < local) {
      pair = begin[e] + __popcll(takers[e] & ((1ull << row) - 1));
      call.lists.row_of[pair] = row;
    }
    call.lists.pair_of[row * call.top_k + lane] = pair;
    call.lists.weight[row * call.top_k + lane] = mine[i].weight;
  }
}

// Any number of rows, in three kernels. First row_of[row, choice] = local expert or -1.
__global__ void __launch_bounds__(kRouteWarps * 32) choose_many(const __grid_constant__ MoeCall call) {
  let_next_begin();
  wait_for_previous();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRouteWarps + threadIdx.x / 32;
  if (row >= call.rows) return;
  const int lane = threadIdx.x % 32;
  const Choice mine = choose(call, call.router_logits + row * call.experts);
  if (lane >= call.top_k) return;
  const int e = mine.expert - call.expert_begin;
  call.lists.row_of[row * call.top_k + lane] = e >= 0 && e < call.local_experts ? e : -1;
  call.lists.weight[row * call.top_k + lane] = mine.weight;
}

// Then a block an expert counts the choices of those before it, and numbers its own; one more block writes what lies outside.
__global__ void __launch_bounds__(kPlaceThreads) place_many(const __grid_constant__ MoeCall call) {
  __shared__ int counts[kPlaceThreads / 32];
  let_next_begin();
  wait_for_previous();
  const int expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t choices = call.rows * call.top_k;
  const int32_t* const chosen = call.lists.row_of;
  int before = 0;
  for (int64_t i = threadIdx.x; i < choices; i += kPlaceThreads) before += chosen[i] >= 0 && chosen[i] < expert;
  before = __reduce_add_sync(~0u, before);
  if (lane == 0) counts[warp] = before;
  __syncthreads();
  int next = 0;
  for (int w = 0; w < kPlaceThreads / 32; ++w) next += counts[w];
  if (threadIdx.x == 0) call.lists.begin[expert] = next;
  if (expert == call.local_experts) {
    for (int64_t i = threadIdx.x; i < choices; i += kPlaceThreads) {
      if (chosen[i] < 0) call.lists.pair_of[i] = -1;
    }
    return;
  }
  for (int64_t first = 0; first < choices; first += kPlaceThreads) {
    const int64_t i = first + threadIdx.x;
    const bool hit = i < choices && chosen[i] == expert;
    const unsigned hits = __ballot_sync(~0u, hit);
    __syncthreads();
    if (lane == 0) counts[warp] = __popc(hits);
    __syncthreads();
    int at = next;
    for (int w = 0; w < kPlaceThreads / 32; ++w) {
      if (w < warp) at += counts[w];
      next += counts[w];
    }
    if (hit) call.lists.pair_of[i] = at + __popc(hits & ((1u << lane) - 1));
  }
}

// Last the rows of pairs.
__global__ void __launch_bounds__(kJoinThreads) invert_many(const __grid_constant__ MoeCall call) {
  let_next_begin();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kJoinThreads + threadIdx.x;
  if (i >= call.rows * call.top_k) return;
  const int pair = call.lists.pair_of[i];
  if (pair >= 0) call.lists.row_of[pair] = static_cast<int32_t>(i / call.top_k);
}

__device__ __forceinline__ void add_scaled(float& sum, float weight, float v) { sum = fmaf(weight, v, sum); }
__device__ __forceinline__ void add_scaled(float4& sum, float weight, const float4& v) {
  sum.x = fmaf(weight, v.x, sum.x), sum.y = fmaf(weight, v.y, sum.y), sum.z = fmaf(weight, v.z, sum.z), sum.w = fmaf(weight, v.w, sum.w);
}

template <typename V>
__global__ void __launch_bounds__(kJoinThreads) join_rows(const __grid_constant__ ExpertCall call, int64_t width) {
  let_next_begin();
  wait_for_previous();
  const int64_t row = blockIdx.y, i = static_cast<int64_t>(blockIdx.x) * kJoinThreads + threadIdx.x;
  if (i >= width) return;
  V sum{};
  for (int k = 0; k < call.top_k; ++k) {
    const int pair = call.lists.pair_of[row * call.top_k + k];
    if (pair >= 0) add_scaled(sum, call.lists.weight[row * call.top_k + k], reinterpret_cast<const V*>(call.results)[pair * width + i]);
  }
  V* const y = reinterpret_cast<V*>(call.y) + row * width + i;
  if (call.add) add_scaled(sum, 1, *y);
  *y = sum;
}

}  // namespace

void route(const Launch& how, const MoeCall& call) {
  if (call.top_k > kMostChosen || call.local_experts > kMostLocal) {
    fail(Code::internal, "route", std::to_string(call.top_k) + " of " + std::to_string(call.local_experts) + " experts, at most " +
                                      std::to_string(kMostChosen) + " of " + std::to_string(kMostLocal));
  }
  if (call.rows <= 0) return;
  if (call.rows <= kOneBlockRows) {
    const size_t shared = static_cast<size_t>(call.local_experts) * (sizeof(uint64_t) + sizeof(int)) + sizeof(int);
    return launch(how, route_few, 1, kRouteWarps * 32, shared, "route", call);
  }
  const auto blocks = [](int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); };
  launch(how, choose_many, blocks(call.rows, kRouteWarps), kRouteWarps * 32, 0, "route", call);
  launch(how, place_many, static_cast<unsigned>(call.local_experts) + 1, kPlaceThreads, 0, "route", call);
  launch(how, invert_many, blocks(call.rows * call.top_k, kJoinThreads), kJoinThreads, 0, "route", call);
}

void experts(const Launch& how, const ExpertCall& call, const LinearScratch& scratch) {
  call.gate.shape.resident->kind == Kind::tile4 ? tile4_experts(how, call, scratch) : dense_experts(how, call);
  join(how, call);
}

void join(const Launch& how, const ExpertCall& call) {
  const bool quads = call.hidden % 4 == 0 && (reinterpret_cast<uintptr_t>(call.y) | reinterpret_cast<uintptr_t>(call.results)) % 16 == 0;
  const int64_t width = quads ? call.hidden / 4 : call.hidden;
  const auto kernel = quads ? join_rows<float4> : join_rows<float>;
  constexpr int64_t kMostBlocks = 65535;  // of a grid's second dimension
  for (int64_t first = 0; first < call.rows; first += kMostBlocks) {
    ExpertCall part = call;
    part.lists.pair_of += first * call.top_k, part.lists.weight += first * call.top_k;
    part.y += first * call.hidden;
    const dim3 grid(static_cast<unsigned>((width + kJoinThreads - 1) / kJoinThreads), static_cast<unsigned>(std::min(kMostBlocks, call.rows - first)));
    launch(how, kernel, grid, kJoinThreads, 0, "join", part, width);
  }
}

}  // namespace tandem::cuda
