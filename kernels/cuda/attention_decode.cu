// One row a sequence. A block has one split of the keys of one sequence and KV head, for up to HEADS query heads at a time, so that keys
// and values are read once for all of them; the last block of a (sequence, KV head) to end folds the splits in order.
#include <algorithm>

#include "kernels/base/cuda/reduce.cuh"
#include "kernels/cuda/attention_cache.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/plan/attention_scratch.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 128, kMostHeadDim = 512, kAtOnce = 4;

template <typename C, int VECTOR>
struct Piece {  // VECTOR elements of a key or value
  float v[VECTOR];
  __device__ __forceinline__ void load(const C* p) {
    if constexpr (VECTOR == 8) {
      C raw[8];
      *reinterpret_cast<uint4*>(raw) = *reinterpret_cast<const uint4*>(p);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = to_float(raw[i]);
    } else {
      v[0] = to_float(*p);
    }
  }
};

// LANES lanes share a key, each with every LANES-th piece of VECTOR elements of it; PIECES of them at most.
template <typename C, int VECTOR, int LANES, int PIECES, int HEADS>
__global__ void __launch_bounds__(kThreads) attend_split(const AttentionCall call, const bool fused) {
  constexpr int kGroups = kThreads / LANES;  // keys at a time
  extern __shared__ float shared[];
  __shared__ float warp_values[2][HEADS][kThreads / 32];
  __shared__ int32_t pages[kSplitTokens + 2];
  __shared__ bool last;
  let_next_begin();
  wait_for_previous();
  const int split = blockIdx.x, kv_head = blockIdx.y, index = blockIdx.z;
  if (index >= call.step.counts[1]) return;
  const SequenceOnDevice& sequence = call.step.sequences[index];
  if (!fused && sequence.rows != 1) return;
  const int position = sequence.position;
  const int first = call.window > 0 ? max(0, position - static_cast<int>(call.window) + 1) : 0;
  const int first_split = first / kSplitTokens, last_split = position / kSplitTokens;
  if (split < first_split || split > last_split) return;
  const CacheLayer& cache = call.cache;
  const int head_dim = static_cast<int>(cache.head_dim), group = static_cast<int>(call.shape.heads / call.shape.kv_heads), page_tokens = cache.page_tokens;
  const int begin = max(first, split * kSplitTokens), end = min(position + 1, (split + 1) * kSplitTokens), keys = end - begin;
  const int32_t* table = call.step.pages + sequence.pages[cache.group];
  const int first_page = begin / page_tokens;
  for (int i = threadIdx.x; i <= (end - 1) / page_tokens - first_page; i += kThreads) pages[i] = table[first_page + i];
  float* queries = shared;                             // [group][head_dim]
  float* angles = queries + group * head_dim;          // [head_dim]
  float* scores = angles + head_dim;                   // [HEADS][kSplitTokens]
  float* sums = scores + HEADS * kSplitTokens;         // [kGroups][head_dim]
  const auto* row = static_cast<const char*>(call.qkv) + static_cast<int64_t>(sequence.row) * call.qkv_stride * bytes_of(call.element);
  const auto part = [&](int64_t elements) { return row + elements * bytes_of(call.element); };
  if (fused && call.rope.rotary > 0) rope_angles(call.rope, position, angles);
  __syncthreads();
  const int32_t rotary = fused ? call.rope.rotary : 0;
  for (int i = threadIdx.x; i < group * head_dim; i += kThreads) {
    const void* head = part((static_cast<int64_t>(kv_head) * group + i / head_dim) * head_dim);
    queries[i] = rotated(head, i % head_dim, call.element, rotary, angles) * call.scale;
  }
  if (fused && split == last_split) {  // the new key and value, rounded as every later reader sees them
    const void* key = part((call.shape.heads + kv_head) * head_dim);
    const void* value = part((call.shape.heads + call.shape.kv_heads + kv_head) * head_dim);
    C* at = page_of<C>(cache, pages[position / page_tokens - first_page], kv_head) + static_cast<int64_t>(position % page_tokens) * head_dim;
    for (int d = threadIdx.x; d < head_dim; d += kThreads) {
      at[d] = from_float<C>(rotated(key, d, call.element, rotary, angles));
      at[static_cast<int64_t>(page_tokens) * head_dim + d] = from_float<C>(load_element(value, d, call.element));
    }
  }
  __syncthreads();

  const int lane = threadIdx.x % LANES, key_group = threadIdx.x / LANES;
  const auto key_at = [&](int t) {
    return page_of<C>(cache, pages[t / page_tokens - first_page], kv_head) + static_cast<int64_t>(t % page_tokens) * head_dim;
  };
  const int splits = last_split - first_split + 1;
  float* states = reinterpret_cast<float*>(call.scratch + kSplitCounterBytes);
  const int64_t most_splits = gridDim.x;
  const auto state_of = [&](int head, int s) {  // maximum, sum, weighted values
    return states + ((static_cast<int64_t>(index) * call.shape.heads + kv_head * group + head) * most_splits + s) * (head_dim + 2);
  };
  for (int head0 = 0; head0 < group; head0 += HEADS) {
    const int heads = min(HEADS, group - head0);
    // Scores.
    for (int base = 0; base < keys; base += kGroups * kAtOnce) {  // as often for every lane: they exchange values
      const int t0 = base + key_group;
      float dots[kAtOnce][HEADS];
#pragma unroll
      for (int a = 0; a < kAtOnce; ++a) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) dots[a][h] = 0;
      }
#pragma unroll
      for (int p = 0; p < PIECES; ++p) {
        const int d = (p * LANES + lane) * VECTOR;
        if (d >= head_dim) break;
        Piece<C, VECTOR> k[kAtOnce];
#pragma unroll
        for (int a = 0; a < kAtOnce; ++a) {
          if (t0 + a * kGroups < keys) k[a].load(key_at(begin + t0 + a * kGroups) + d);
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
          if (h >= heads) break;
          const float* q = queries + (head0 + h) * head_dim + d;
#pragma unroll
          for (int a = 0; a < kAtOnce; ++a) {
            if (t0 + a * kGroups >= keys) break;
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) dots[a][h] += q[i] * k[a].v[i];
          }
        }
      }
#pragma unroll
      for (int a = 0; a < kAtOnce; ++a) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
          float v = dots[a][h];
#pragma unroll
          for (int l = LANES / 2; l > 0; l /= 2) v += __shfl_xor_sync(~0u, v, l);
          if (lane == 0 && h < heads && t0 + a * kGroups < keys) scores[h * kSplitTokens + t0 + a * kGroups] = capped(v, call.soft_cap);
        }
      }
    }
    __syncthreads();
    // Weights: one key a thread.
    static_assert(kThreads == kSplitTokens);
    float mine[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      mine[h] = static_cast<int>(threadIdx.x) < keys && h < heads ? scores[h * kSplitTokens + threadIdx.x] : -INFINITY;
      const float most = warp_max(mine[h]);
      if (threadIdx.x % 32 == 0) warp_values[0][h][threadIdx.x / 32] = most;
    }
    __syncthreads();
    float most[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      most[h] = warp_values[0][h][0];
      for (int w = 1; w < kThreads / 32; ++w) most[h] = fmaxf(most[h], warp_values[0][h][w]);
      mine[h] = mine[h] == -INFINITY ? 0.0f : __expf(mine[h] - most[h]);
      if (static_cast<int>(threadIdx.x) < keys && h < heads) scores[h * kSplitTokens + threadIdx.x] = mine[h];
      const float sum = warp_sum(mine[h]);
      if (threadIdx.x % 32 == 0) warp_values[1][h][threadIdx.x / 32] = sum;
    }
    __syncthreads();
    // Values.
    float out[PIECES][HEADS][VECTOR];
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) out[p][h][i] = 0;
      }
    }
    for (int base = 0; base < keys; base += kGroups * kAtOnce) {  // as often for every lane: they exchange values
      const int t0 = base + key_group;
#pragma unroll
      for (int p = 0; p < PIECES; ++p) {
        const int d = (p * LANES + lane) * VECTOR;
        if (d >= head_dim) break;
        Piece<C, VECTOR> v[kAtOnce];
#pragma unroll
        for (int a = 0; a < kAtOnce; ++a) {
          if (t0 + a * kGroups < keys) v[a].load(key_at(begin + t0 + a * kGroups) + static_cast<int64_t>(page_tokens) * head_dim + d);
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
          if (h >= heads) break;
#pragma unroll
          for (int a = 0; a < kAtOnce; ++a) {
            if (t0 + a * kGroups >= keys) break;
            const float weight = scores[h * kSplitTokens + t0 + a * kGroups];
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) out[p][h][i] += weight * v[a].v[i];
          }
        }
      }
    }
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      if (h >= heads) break;
#pragma unroll
      for (int p = 0; p < PIECES; ++p) {
        const int d = (p * LANES + lane) * VECTOR;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
          if (d + i < head_dim) sums[key_group * head_dim + d + i] = out[p][h][i];
        }
      }
      __syncthreads();
      float total = 0;
      for (int w = 0; w < kThreads / 32; ++w) total += warp_values[1][h][w];
      for (int d = threadIdx.x; d < head_dim; d += kThreads) {
        float v = 0;
#pragma unroll
        for (int k = 0; k < kGroups; ++k) v += sums[k * head_dim + d];
        if (splits == 1) {
          store_element(call.out, static_cast<int64_t>(sequence.row) * call.shape.heads * head_dim + (kv_head * group + head0 + h) * head_dim + d, call.element, v / total);
        } else {
          state_of(head0 + h, split - first_split)[2 + d] = v;
        }
      }
      if (threadIdx.x == 0 && splits > 1) {
        float* state = state_of(head0 + h, split - first_split);
        state[0] = most[h], state[1] = total;
      }
      __syncthreads();
    }
  }
  if (splits == 1) return;

  __threadfence();
  __syncthreads();
  auto* counter = reinterpret_cast<uint32_t*>(call.scratch) + static_cast<int64_t>(index) * call.shape.kv_heads + kv_head;
  if (threadIdx.x == 0) last = atomicAdd(counter, 1) == static_cast<uint32_t>(splits - 1);
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) *counter = 0;
  __threadfence();
  for (int i = threadIdx.x; i < group * head_dim; i += kThreads) {
    const int head = i / head_dim, d = i % head_dim;
    float most = -INFINITY;
    for (int s = 0; s < splits; ++s) most = fmaxf(most, __ldcg(state_of(head, s)));
    float total = 0, v = 0;
    for (int s = 0; s < splits; ++s) {
      const float* state = state_of(head, s);
      const float scale = __expf(__ldcg(state) - most);
      total += scale * __ldcg(state + 1);
      v += scale * __ldcg(state + 2 + d);
    }
    store_element(call.out, static_cast<int64_t>(sequence.row) * call.shape.heads * head_dim + (kv_head * group) * head_dim + i, call.element, v / total);
  }
}

template <typename C, int VECTOR, int LANES, int PIECES, int HEADS>
void start(const Launch& how, const AttentionCall& call, bool fused) {
  const int64_t group = call.shape.heads / call.shape.kv_heads, head_dim = call.shape.head_dim;
  const size_t shared = sizeof(float) * static_cast<size_t>(group * head_dim + head_dim + HEADS * kSplitTokens + kThreads / LANES * head_dim);
  const auto kernel = attend_split<C, VECTOR, LANES, PIECES, HEADS>;
  static OncePerDevice once;
  if (once.first(*how.device)) allow_shared(kernel, how.device->shared_per_block - 8192, "attention");
  const dim3 grid(static_cast<unsigned>((call.most_context + kSplitTokens - 1) / kSplitTokens), static_cast<unsigned>(call.shape.kv_heads),
                  static_cast<unsigned>(fused ? call.most_sequences : call.singles));
  launch(how, kernel, grid, dim3(kThreads), shared, "attention", call, fused);
}

template <typename C>
void by_shape(const Launch& how, const AttentionCall& call, bool fused) {
  const int64_t group = call.shape.heads / call.shape.kv_heads, head_dim = call.shape.head_dim;
  if constexpr (sizeof(C) == 2) {
    if (head_dim % 8 == 0 && head_dim <= 256) {
      if (head_dim <= 64) return group <= 4 ? start<C, 8, 8, 1, 4>(how, call, fused) : start<C, 8, 8, 1, 8>(how, call, fused);
      if (head_dim <= 128) return group <= 4 ? start<C, 8, 16, 1, 4>(how, call, fused) : start<C, 8, 16, 1, 8>(how, call, fused);
      return start<C, 8, 32, 1, 4>(how, call, fused);
    }
  }
  if (head_dim <= 128) return start<C, 1, 32, 4, 4>(how, call, fused);
  if (head_dim > kMostHeadDim) fail(Code::internal, "attention", "heads of " + std::to_string(head_dim) + " elements");
  start<C, 1, 32, kMostHeadDim / 32, 1>(how, call, fused);
}

}  // namespace

void attend_single_rows(const Launch& how, const AttentionCall& call, bool fused) {
  if (attend_single_rows_cluster(how, call, fused)) return;
  if ((fused ? call.most_sequences : call.singles) * call.shape.kv_heads > kMostSplitRows) fail(Code::internal, "attention", "too many sequences");
  if (attend_single_rows_mma(how, call, fused)) return;
  switch (call.cache.type) {
    case KvType::fp32: return by_shape<float>(how, call, fused);
    case KvType::bf16: return by_shape<bf16>(how, call, fused);
    case KvType::fp16: return by_shape<f16>(how, call, fused);
    default: fail(Code::internal, "attention", "no kernel for this type of cache");
  }
}

}  // namespace tandem::cuda
