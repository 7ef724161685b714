// One row a sequence, by the matrix unit: a block has one split of the keys of one sequence and KV head, and up to sixteen query heads as
// the rows of its products. All keys and values of the split are on their way before the first is used; several blocks share a
// multiprocessor, so that memory is never idle. The last block of a (sequence, KV head) to end folds the splits in order.
#include <algorithm>

#include "kernels/base/cuda/mma.cuh"
#include "kernels/base/cuda/reduce.cuh"
#include "kernels/cuda/attention_cache.cuh"
#include "kernels/cuda/attention_copy.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/plan/attention_scratch.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kHeads = 16, kKeys = kSplitTokens, kWeightStride = kKeys + 8;
constexpr int kFolded = 256;  // splits whose factors are at hand while they are folded
constexpr uint64_t kNowhere = ~uint64_t{0};
static_assert(kKeys == 16 * kWarps);

template <typename T, int HEAD_DIM>
struct Tiles {  // in dynamic shared memory
  T keys[kKeys * HEAD_DIM], values[kKeys * HEAD_DIM];
  T queries[kHeads * HEAD_DIM];
  T weights[kHeads * kWeightStride];
};

template <typename T, int HEAD_DIM>
__global__ void __launch_bounds__(kThreads) attend_split_mma(const AttentionCall call, const bool fused) {
  constexpr int kChunks = HEAD_DIM / 8, kColumns = (HEAD_DIM / 8 + kWarps - 1) / kWarps;
  extern __shared__ __align__(128) unsigned char raw[];
  auto& tiles = *reinterpret_cast<Tiles<T, HEAD_DIM>*>(raw);
  __shared__ uint64_t offsets[kKeys];
  __shared__ float angles[HEAD_DIM];
  __shared__ float maxima[kWarps][kHeads], sums[kWarps][kHeads];
  __shared__ bool last;
  static_assert(sizeof tiles >= kHeads * kFolded * sizeof(float) + kThreads * sizeof(float4));  // what takes their place in the end
  let_next_begin();
  const int rotary = fused ? call.rope.rotary : 0, half = rotary / 2;
  static_assert(HEAD_DIM / 2 <= kThreads);
  const float frequency = static_cast<int>(threadIdx.x) < half ? call.rope.inverse_frequency[threadIdx.x] : 0.0f;
  wait_for_previous();
  const int split = blockIdx.x, kv_head = blockIdx.y, index = blockIdx.z, tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int count = call.step.counts[1];
  const SequenceOnDevice& sequence = call.step.sequences[index];  // there is memory for as many as were launched for
  const int position = sequence.position, row = sequence.row, rows = sequence.rows;
  if (index >= count || (!fused && rows != 1)) return;
  const int first = call.window > 0 ? max(0, position - static_cast<int>(call.window) + 1) : 0;
  const int first_split = first / kKeys, last_split = position / kKeys;
  if (split < first_split || split > last_split) return;
  const CacheLayer& cache = call.cache;
  const int heads = static_cast<int>(call.shape.heads), kv_heads = static_cast<int>(call.shape.kv_heads), group = heads / kv_heads;
  const int begin = split * kKeys;
  const bool append = fused && split == last_split;

  // Where the keys are. What no query sees is left zero.
  const std::byte* base = cache.memory + static_cast<uint64_t>(kv_head) * 2 * cache.page_tokens * HEAD_DIM * sizeof(T);
  const uint64_t to_values = static_cast<uint64_t>(cache.page_tokens) * HEAD_DIM * sizeof(T);
  if (tid < kKeys) {
    const int key = begin + tid;
    uint64_t offset = kNowhere;
    if (key >= first && key <= position) {
      const int page = key / cache.page_tokens;
      offset = static_cast<uint64_t>(call.step.pages[sequence.pages[cache.group] + page]) * cache.page_stride +
               static_cast<uint64_t>(key - page * cache.page_tokens) * HEAD_DIM * sizeof(T);
    }
    offsets[tid] = offset;
  }
  // What a thread rotates, asked for before the keys: pairs of elements, of all heads of the group, and of the new key and value.
  const T* const values = static_cast<const T*>(call.qkv) + static_cast<int64_t>(row) * call.qkv_stride;
  constexpr int kPairs = kHeads * HEAD_DIM / 2 / kThreads;
  const auto low_of = [&](int pair) { return pair < half ? pair : rotary + 2 * (pair - half); };
  const auto high_of = [&](int pair) { return pair < half ? pair + half : rotary + 2 * (pair - half) + 1; };
  T queries[kPairs][2], added[2][2];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int head = (p * kThreads + tid) / (HEAD_DIM / 2), pair = (p * kThreads + tid) % (HEAD_DIM / 2);
    queries[p][0] = queries[p][1] = from_float<T>(0);
    if (head >= group) continue;  // heads that are not there are zero
    const T* from = values + (kv_head * group + head) * HEAD_DIM;
    queries[p][0] = from[low_of(pair)], queries[p][1] = from[high_of(pair)];
  }
  if (append && tid < HEAD_DIM / 2) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const T* from = values + (heads + v * kv_heads + kv_head) * HEAD_DIM;
      added[v][0] = from[low_of(tid)], added[v][1] = from[high_of(tid)];
    }
  }
  __syncthreads();
  const uint32_t keys_at = shared_address(tiles.keys), values_at = shared_address(tiles.values), queries_at = shared_address(tiles.queries);
  const auto fetch = [&](uint32_t to, uint64_t further) {
#pragma unroll
    for (int i = tid; i < kKeys * kChunks; i += kThreads) {
      const int k = i / kChunks, chunk = i % kChunks;
      const uint64_t offset = offsets[k];
      const bool inside = offset != kNowhere;
      if (append && begin + k == position) continue;  // comes from the row itself
      copy_ahead(to + tile_byte<HEAD_DIM>(k, chunk), base + (inside ? offset + further : 0) + chunk * 16, inside);
    }
    commit_copies();
  };
  fetch(keys_at, 0);
  fetch(values_at, to_values);

  if (tid < half) {
    float sine, cosine;
    sincosf(static_cast<float>(position) * frequency, &sine, &cosine);
    angles[tid] = cosine * call.rope.scale;
    angles[half + tid] = sine * call.rope.scale;
  }
  __syncthreads();
  const auto rotate = [&](T (&v)[2], int pair) {
    if (pair >= half) return;
    const float low = to_float(v[0]), high = to_float(v[1]), cosine = angles[pair], sine = angles[half + pair];
    v[0] = from_float<T>(low * cosine - high * sine);
    v[1] = from_float<T>(high * cosine + low * sine);
  };
  const auto element_of = [](T* tile, int r, int d) -> T& { return tile[tile_byte<HEAD_DIM>(r, d / 8) / 2 + d % 8]; };
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int head = (p * kThreads + tid) / (HEAD_DIM / 2), pair = (p * kThreads + tid) % (HEAD_DIM / 2);
    rotate(queries[p], pair);
    element_of(tiles.queries, head, low_of(pair)) = queries[p][0];
    element_of(tiles.queries, head, high_of(pair)) = queries[p][1];
  }
  if (append && tid < HEAD_DIM / 2) {  // the new key and value, rounded as every later reader sees them
    rotate(added[0], tid);
    T* const at = reinterpret_cast<T*>(const_cast<std::byte*>(base) + offsets[position - begin]);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      T* const tile = v == 0 ? tiles.keys : tiles.values;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = i == 0 ? low_of(tid) : high_of(tid);
        element_of(tile, position - begin, d) = added[v][i];
        at[v * static_cast<int64_t>(cache.page_tokens) * HEAD_DIM + d] = added[v][i];
      }
    }
  }
  wait_copies<1>();
  __syncthreads();

  // Scores: a warp has sixteen keys.
  float scores[2][4] = {};
#pragma unroll
  for (int s = 0; s < HEAD_DIM / 16; ++s) {
    uint32_t a[4], b[4];
    load_matrices(a, queries_at + tile_byte<HEAD_DIM>(lane % 16, s * 2 + lane / 16));
    load_matrices(b, keys_at + tile_byte<HEAD_DIM>(warp * 16 + lane / 16 * 8 + lane % 8, s * 2 + lane / 8 % 2));
    mma(scores[0], a[0], a[1], a[2], a[3], b[0], b[1], T{});
    mma(scores[1], a[0], a[1], a[2], a[3], b[2], b[3], T{});
  }
  const int g = lane / 4, t = lane % 4;
  constexpr float kLog2E = 1.44269504088896340736f;  // powers of two from here
  float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = begin + warp * 16 + n * 8 + 2 * t + i % 2;
      const float v = key < first || key > position ? -INFINITY : capped(scores[n][i] * call.scale, call.soft_cap) * kLog2E;
      scores[n][i] = v;
      largest[i / 2] = fmaxf(largest[i / 2], v);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 2));
    if (t == 0) maxima[warp][g + 8 * r] = largest[r];
  }
  __syncthreads();
  float sum[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest[r] = fmaxf(largest[r], maxima[w][g + 8 * r]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float low = power_of_two(scores[n][2 * r] - largest[r]), high = power_of_two(scores[n][2 * r + 1] - largest[r]);
      sum[r] += low + high;
      *reinterpret_cast<uint32_t*>(tiles.weights + (g + 8 * r) * kWeightStride + warp * 16 + n * 8 + 2 * t) = pack(low, high, T{});
    }
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    if (t == 0) sums[warp][g + 8 * r] = sum[r];
  }
  wait_copies<0>();
  __syncthreads();

  // Weighted values: a warp has every eighth eight columns, and all keys.
  float out[kColumns][4] = {};
#pragma unroll
  for (int k = 0; k < kKeys; k += 32) {
    uint32_t low[4], high[4];
    load_matrices(low, shared_address(tiles.weights + (lane % 16) * kWeightStride + k + lane / 16 * 8));
    load_matrices(high, shared_address(tiles.weights + (lane % 16) * kWeightStride + k + 16 + lane / 16 * 8));
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int chunk = c * kWarps + warp;
      if (chunk >= kChunks) break;
      uint32_t b[4];
      load_transposed(b, values_at + tile_byte<HEAD_DIM>(k + lane, chunk));
      mma(out[c], low[0], low[1], low[2], low[3], b[0], b[1], T{});
      mma(out[c], high[0], high[1], high[2], high[3], b[2], b[3], T{});
    }
  }
  const int splits = last_split - first_split + 1;
  const int64_t most_splits = gridDim.x, results = (static_cast<int64_t>(index) * heads + kv_head * group) * most_splits;
  auto* const parts = reinterpret_cast<float*>(call.scratch + kSplitCounterBytes);  // [sequence][head][split][HEAD_DIM]
  auto* const states = reinterpret_cast<float2*>(parts + static_cast<int64_t>(gridDim.z) * heads * most_splits * HEAD_DIM);  // maximum, sum
  T* const result = static_cast<T*>(call.out) + (static_cast<int64_t>(row) * heads + kv_head * group) * HEAD_DIM;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int head = g + 8 * r;
    if (head >= group) continue;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[w][head];
    const float inverse = 1 / total;
    const int64_t state = results + head * most_splits + split - first_split;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int chunk = c * kWarps + warp;
      if (chunk >= kChunks) break;
      const int d = chunk * 8 + 2 * t;
      if (splits == 1) *reinterpret_cast<uint32_t*>(result + head * HEAD_DIM + d) = pack(out[c][2 * r] * inverse, out[c][2 * r + 1] * inverse, T{});
      else __stcg(reinterpret_cast<float2*>(parts + state * HEAD_DIM + d), make_float2(out[c][2 * r], out[c][2 * r + 1]));
    }
    if (splits > 1 && warp == 0 && t == 0) __stcg(states + state, make_float2(largest[r], total));
  }
  if (splits == 1) return;

  __threadfence();
  __syncthreads();
  if (tid == 0) {
    auto* counter = reinterpret_cast<uint32_t*>(call.scratch) + static_cast<int64_t>(index) * kv_heads + kv_head;
    last = atomicAdd(counter, 1) == static_cast<uint32_t>(splits - 1);
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  // Each head's maximum and sum over the splits.
  for (int head = warp; head < group; head += kWarps) {
    const float2* state = states + results + head * most_splits;
    float most = -INFINITY, total = 0;
    for (int s = lane; s < splits; s += 32) most = fmaxf(most, __ldcg(state + s).x);
    most = warp_max(most);
    for (int s = lane; s < splits; s += 32) {
      const float2 v = __ldcg(state + s);
      total += power_of_two(v.x - most) * v.y;
    }
    total = warp_sum(total);
    if (lane == 0) maxima[0][head] = most, sums[0][head] = 1 / total;
  }
  // Several threads share a column (four elements of a head) when there are enough: each has consecutive splits of those at hand.
  auto* const factors = reinterpret_cast<float*>(raw);                  // [group][kFolded]
  auto* const kept = reinterpret_cast<float4*>(factors + kHeads * kFolded);  // [kThreads]
  const int columns = group * HEAD_DIM / 4, shares = max(1, kThreads / columns);
  for (int column0 = 0; column0 < columns; column0 += kThreads) {
    const int column = column0 + tid % min(columns, kThreads), sharer = tid / columns, head = column / (HEAD_DIM / 4);
    const float4* part = reinterpret_cast<const float4*>(parts + (results + head * most_splits) * HEAD_DIM) + column % (HEAD_DIM / 4);
    float4 v = make_float4(0, 0, 0, 0);
    for (int split0 = 0; split0 < splits; split0 += kFolded) {
      const int here = min(kFolded, splits - split0), share = (here + shares - 1) / shares;
      __syncthreads();
      for (int i = tid; i < group * here; i += kThreads) {
        const int h = i / here, s = i % here;
        factors[h * kFolded + s] = power_of_two(__ldcg(states + results + h * most_splits + split0 + s).x - maxima[0][h]) * sums[0][h];
      }
      __syncthreads();
      if (sharer >= shares || column >= columns) continue;
      const int end = min((sharer + 1) * share, here);
#pragma unroll 8
      for (int s = sharer * share; s < end; ++s) {
        const float factor = factors[head * kFolded + s];
        const float4 p = __ldcg(part + static_cast<int64_t>(split0 + s) * (HEAD_DIM / 4));
        v.x += factor * p.x, v.y += factor * p.y, v.z += factor * p.z, v.w += factor * p.w;
      }
    }
    if (shares > 1) {
      kept[tid] = v;
      __syncthreads();
      if (tid < columns) {
        for (int s = 1; s < shares; ++s) {
          const float4 other = kept[s * columns + tid];
          v.x += other.x, v.y += other.y, v.z += other.z, v.w += other.w;
        }
      }
    }
    if (sharer == 0 && column < columns) *reinterpret_cast<uint2*>(result + column * 4) = make_uint2(pack(v.x, v.y, T{}), pack(v.z, v.w, T{}));
  }
}

template <typename T, int HEAD_DIM>
void start(const Launch& how, const AttentionCall& call, bool fused) {
  constexpr size_t kShared = sizeof(Tiles<T, HEAD_DIM>);
  const auto kernel = attend_split_mma<T, HEAD_DIM>;
  static OncePerDevice once;
  if (once.first(*how.device)) allow_shared(kernel, kShared, "attention");
  const dim3 grid(static_cast<unsigned>((call.most_context + kKeys - 1) / kKeys), static_cast<unsigned>(call.shape.kv_heads),
                  static_cast<unsigned>(fused ? call.most_sequences : call.singles));
  launch(how, kernel, grid, dim3(kThreads), kShared, "attention", call, fused);
}

template <typename T>
bool by_head_dim(const Launch& how, const AttentionCall& call, bool fused) {
  switch (call.shape.head_dim) {
    case 64: return start<T, 64>(how, call, fused), true;
    case 96: return start<T, 96>(how, call, fused), true;
    case 128: return start<T, 128>(how, call, fused), true;
    case 256: return start<T, 256>(how, call, fused), true;
    default: return false;
  }
}

}  // namespace

bool attend_single_rows_mma(const Launch& how, const AttentionCall& call, bool fused) {
  const bool aligned = reinterpret_cast<uintptr_t>(call.cache.memory) % 16 == 0 && call.cache.page_stride % 16 == 0 && call.rope.rotary <= call.shape.head_dim && call.rope.rotary % 2 == 0;
  if (call.shape.heads / call.shape.kv_heads > kHeads || !aligned) return false;
  if (call.element == Element::bf16 && call.cache.type == KvType::bf16) return by_head_dim<bf16>(how, call, fused);
  if (call.element == Element::f16 && call.cache.type == KvType::fp16) return by_head_dim<f16>(how, call, fused);
  return false;
}

}  // namespace tandem::cuda
