// Rope of queries and keys, and the append of keys and values, for every row of a step, eight elements at a time.
#include "kernels/cuda/attention_cache.cuh"
#include "kernels/cuda/attention_kernels.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 128, kMostHeadDim = 512;

template <typename T>
union Eight {
  uint4 all;
  T each[8];
};
template <typename T>
__device__ __forceinline__ Eight<T> load(const T* p) { return {*reinterpret_cast<const uint4*>(p)}; }
template <typename T>
__device__ __forceinline__ void store(T* p, const Eight<T>& v) { *reinterpret_cast<uint4*>(p) = v.all; }

template <typename T>
__global__ void __launch_bounds__(kThreads) rotate_and_append_eight(const AttentionCall call) {
  __shared__ float angles[kMostHeadDim];
  let_next_begin();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  if (row >= call.step.counts[0]) return;
  const int position = call.step.positions[row];
  const SequenceOnDevice& sequence = call.step.sequences[call.step.sequence_of[row]];
  const CacheLayer& cache = call.cache;
  const int head_dim = static_cast<int>(cache.head_dim), heads = static_cast<int>(call.shape.heads), kv_heads = static_cast<int>(call.shape.kv_heads);
  const int rotary = call.rope.rotary, half = rotary / 2;
  rope_angles(call.rope, position, angles);
  const int32_t page = call.step.pages[sequence.pages[cache.group] + position / cache.page_tokens];
  const int64_t inside = static_cast<int64_t>(position % cache.page_tokens) * head_dim, to_values = static_cast<int64_t>(cache.page_tokens) * head_dim;
  T* const values = static_cast<T*>(call.qkv) + row * call.qkv_stride;
  __syncthreads();
  // A thread has a piece of a head's first half and the piece it is rotated with: queries can be turned in place.
  const int pieces = half / 8;
  for (int i = threadIdx.x; i < (heads + kv_heads) * pieces; i += kThreads) {
    const int head = i / pieces, d = i % pieces * 8;
    T* from = values + static_cast<int64_t>(head) * head_dim + d;
    Eight<T> low = load(from), high = load(from + half);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float a = to_float(low.each[e]), b = to_float(high.each[e]), cosine = angles[d + e], sine = angles[half + d + e];
      low.each[e] = from_float<T>(a * cosine - b * sine);
      high.each[e] = from_float<T>(b * cosine + a * sine);
    }
    T* to = head < heads ? from : page_of<T>(cache, page, head - heads) + inside + d;
    store(to, low);
    store(to + half, high);
  }
  const int still = (head_dim - rotary) / 8;  // of a key, not rotated
  for (int i = threadIdx.x; i < kv_heads * still; i += kThreads) {
    const int head = i / still, d = rotary + i % still * 8;
    store(page_of<T>(cache, page, head) + inside + d, load(values + static_cast<int64_t>(heads + head) * head_dim + d));
  }
  for (int i = threadIdx.x; i < kv_heads * head_dim / 8; i += kThreads) {
    const int head = i * 8 / head_dim, d = i * 8 % head_dim;
    store(page_of<T>(cache, page, head) + inside + to_values + d, load(values + static_cast<int64_t>(heads + kv_heads + head) * head_dim + d));
  }
}

template <typename T>
void start(const Launch& how, const AttentionCall& call) {
  launch(how, rotate_and_append_eight<T>, dim3(static_cast<unsigned>(call.most_rows)), dim3(kThreads), 0, "append", call);
}

}  // namespace

bool append_eight(const Launch& how, const AttentionCall& call) {
  const bool even = call.shape.head_dim % 8 == 0 && call.shape.head_dim <= kMostHeadDim && call.rope.rotary % 16 == 0 && call.qkv_stride % 8 == 0 &&
                    reinterpret_cast<uintptr_t>(call.qkv) % 16 == 0 && reinterpret_cast<uintptr_t>(call.cache.memory) % 16 == 0 && call.cache.page_stride % 16 == 0;
  if (!even) return false;
  if (call.element == Element::bf16 && call.cache.type == KvType::bf16) return start<bf16>(how, call), true;
  if (call.element == Element::f16 && call.cache.type == KvType::fp16) return start<f16>(how, call), true;
  return false;
}

}  // namespace tandem::cuda
