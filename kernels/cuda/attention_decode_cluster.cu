// One row a sequence, on compute capability 9.0 and later: a cluster of blocks has one sequence and KV head, each block a run of the keys.
// A warp goes through tiles of sixteen keys by itself, with a ring of tiles of its own that are always on their way, so that nothing but
// the end makes warps wait for each other. Keys are the rows of the products and query heads the columns, of which there are eight or
// sixteen: scores (keys x heads) turn into weights where they are, and the outputs (head_dim x heads) stay in registers. In the end each
// block folds its warps and hands every block of the cluster its share of the columns through distributed shared memory.
#include <algorithm>

#include "kernels/base/cuda/cluster.cuh"
#include "kernels/base/cuda/mma.cuh"
#include "kernels/cuda/attention_cache.cuh"
#include "kernels/cuda/attention_copy.cuh"
#include "kernels/cuda/attention_kernels.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kTile = 16, kMostBlocks = 16;

template <typename T>
struct alignas(16) Eight {
  T each[8];
};

// NT: eights of query heads.
template <typename T, int HEAD_DIM, int NT>
struct Shared {
  static constexpr int kHeads = NT * 8, kTileBytes = kTile * HEAD_DIM * 2;
  static constexpr int kRing = HEAD_DIM <= 64 ? 6 : HEAD_DIM <= 96 ? 4 : 3;  // up to 128: four blocks a multiprocessor
  static constexpr int kStride = HEAD_DIM + 4;                               // of a warp's outputs: keeps lanes in different banks
  static constexpr bool kReload = NT > 1;  // there are not the registers for so many queries: they are read for every tile
  unsigned char ring[kWarps][kRing][kTileBytes];  // in the end a warp's own is float[heads][kStride], its outputs
  alignas(128) float4 columns[kHeads * HEAD_DIM / 4];          // [block][this block's share of the columns]; before that the queries, if not kept:
  alignas(128) T kept[kReload ? kHeads * HEAD_DIM : 8];
  float2 states[kMostBlocks][kHeads];             // blocks' maxima and sums
  float2 warp_states[kWarps][kHeads];
  float angles[HEAD_DIM];
  T added[2][HEAD_DIM];  // the new key and value
  static_assert(kHeads * kStride * sizeof(float) <= kRing * kTileBytes);
};

// From the address of a row's piece p, of a tile at a multiple of 128 bytes, that of its piece p + 2 * step; p + 2 * step without carries.
template <int HEAD_DIM>
__device__ __forceinline__ uint32_t further(uint32_t at, int step) {
  constexpr int kSpan = HEAD_DIM % 64 == 0 ? 4 : 2;  // steps within what tile_byte() shuffles
  return (at ^ static_cast<uint32_t>(step % kSpan * 32)) + static_cast<uint32_t>(step / kSpan * kSpan * 32);
}

__device__ __forceinline__ uint32_t transposed(uint32_t v) {  // an 8 x 8 matrix of a warp
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

template <typename T, int HEAD_DIM, int NT>
__global__ void __launch_bounds__(kThreads, HEAD_DIM > 128 ? 2 : NT == 1 ? 4 : 3) attend_cluster(const AttentionCall call, const bool fused) {
#if __CUDA_ARCH__ >= 900
  using Memory = Shared<T, HEAD_DIM, NT>;
  constexpr int kSteps = HEAD_DIM / 16, kRing = Memory::kRing, kTileBytes = Memory::kTileBytes, kPieces = HEAD_DIM / 8;
  constexpr float kLog2E = 1.44269504088896340736f;  // exponentials are powers of two
  extern __shared__ __align__(128) unsigned char raw[];
  Memory& memory = *reinterpret_cast<Memory*>(raw);
  let_next_begin();
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  const int rotary = fused ? call.rope.rotary : 0, half = rotary / 2;
  static_assert(HEAD_DIM / 2 <= kThreads);
  const float frequency = tid < half ? call.rope.inverse_frequency[tid] : 0.0f;
  wait_for_previous();
  const int rank = blockIdx.x, kv_head = blockIdx.y, index = blockIdx.z;
  const int count = call.step.counts[1];
  const SequenceOnDevice& sequence = call.step.sequences[index];  // there is memory for as many as were launched for
  const CacheLayer& cache = call.cache;
  const int position = sequence.position, row = sequence.row, rows = sequence.rows, table = sequence.pages[cache.group];
  if (index >= count || (!fused && rows != 1)) return;  // the whole cluster
  const int window = static_cast<int>(min(call.window, int64_t{1} << 30));
  const int first = window > 0 ? max(0, position - window + 1) : 0;
  const int blocks_log2 = 31 - __clz(static_cast<int>(gridDim.x));
  const int first_tile = first / kTile, all_tiles = position / kTile - first_tile + 1;
  const int share = (all_tiles + static_cast<int>(gridDim.x) - 1) >> blocks_log2;
  const int begin = first_tile + rank * share, tiles = max(0, min(share, all_tiles - rank * share));
  const bool folds = all_tiles > share;  // more than one block has keys
  if (tiles == 0 && !folds) return;
  const int heads = static_cast<int>(call.shape.heads), kv_heads = static_cast<int>(call.shape.kv_heads), group = heads / kv_heads;
  T* const result = static_cast<T*>(call.out) + (static_cast<int64_t>(row) * heads + kv_head * group) * HEAD_DIM;

  if (tiles == 0) {
    if (folds) arrive_at_cluster();
  } else {
    const bool append = fused && rank * share + tiles == all_tiles;  // has the row's own key
    // Asked for at once: the row's queries, new key and value, and the pages of the warp's first tiles, one a lane. Elements d of the
    // first and of the second half are rotated together; what is not rotated goes through the same hands as pairs of neighbours.
    const T* const values = static_cast<const T*>(call.qkv) + static_cast<int64_t>(row) * call.qkv_stride;
    const int parts = append ? group + 2 : group;
    const auto part_at = [&](int part) {
      return values + (part < group ? kv_head * group + part : heads + (part - group) * kv_heads + kv_head) * HEAD_DIM;
    };
    constexpr int kEights = HEAD_DIM / 16, kItems = ((NT * 8 + 2) * kEights + kThreads - 1) / kThreads;
    const bool even = rotary % 16 == 0;
    Eight<T> low[kItems], high[kItems];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int part = (k * kThreads + tid) / kEights, eight = (k * kThreads + tid) % kEights;
      if (!even || part >= parts) continue;
      const bool rotates = part <= group && eight < half / 8;
      const T* const from = part_at(part);
      low[k] = *reinterpret_cast<const Eight<T>*>(from + (rotates ? eight * 8 : eight * 16));
      high[k] = *reinterpret_cast<const Eight<T>*>(from + (rotates ? eight * 8 + half : eight * 16 + 8));
    }
    const int page_tiles = cache.page_tokens / kTile;
    const std::byte* const base = cache.memory + static_cast<uint64_t>(kv_head) * 2 * cache.page_tokens * HEAD_DIM * sizeof(T);
    const uint64_t to_values = static_cast<uint64_t>(cache.page_tokens) * HEAD_DIM * sizeof(T);
    const int mine = (tiles - warp + kWarps - 1) / kWarps;  // tiles of this warp: every fourth of the block's; none: zero or less
    const auto tile_of_lane = [&](int from) {  // where the keys of tile `from + lane` of this warp are
      if (from + lane >= mine) return base;
      const int tile = begin + warp + (from + lane) * kWarps, page = tile / page_tiles;
      return base + static_cast<uint64_t>(call.step.pages[table + page]) * cache.page_stride + (tile - page * page_tiles) * kTileBytes;
    };
    const std::byte* tile_ahead = tile_of_lane(0);
    T* appended = nullptr;
    if (append) {
      const int page = position / cache.page_tokens;
      appended = reinterpret_cast<T*>(const_cast<std::byte*>(base) + static_cast<uint64_t>(call.step.pages[table + page]) * cache.page_stride) +
                 (position - page * cache.page_tokens) * HEAD_DIM;
    }

    // Keys, then values of one tile after the other, through the ring. What the query does not see is left zero, and so is the row's own
    // key, which comes from the row.
    const uint32_t ring = shared_address(memory.ring[warp]);
    const std::byte* fetched = base;
    const int seen_end = fused ? position : position + 1;
    const auto fetch = [&](int tile, bool is_value, int slot) {
      if (tile < mine) {
        if (!is_value) {
          if (tile > 0 && tile % 32 == 0) tile_ahead = tile_of_lane(tile);
          fetched = reinterpret_cast<const std::byte*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(tile_ahead), tile % 32));
        }
        const std::byte* const from = fetched + (is_value ? to_values : 0) + lane * 16;
        const uint32_t to = ring + slot * kTileBytes;
        const int key = (begin + warp + tile * kWarps) * kTile, hidden = max(first - key, 0);
        const unsigned seen = max(seen_end - key - hidden, 0);
#pragma unroll
        for (int i = 0; i < kTile * kPieces / 32; ++i) {
          const int k = (i * 32 + lane) / kPieces, piece = (i * 32 + lane) % kPieces;
          copy_ahead(to + tile_byte<HEAD_DIM>(k, piece), from + i * 512, static_cast<unsigned>(k - hidden) < seen);
        }
      }
      commit_copies();
    };
#pragma unroll
    for (int i = 0; i < kRing; ++i) fetch(i / 2, i % 2 == 1, i);

    if (tid < half) {
      float sine, cosine;
      sincosf(static_cast<float>(position) * frequency, &sine, &cosine);
      memory.angles[tid] = cosine * call.rope.scale;
      memory.angles[half + tid] = sine * call.rope.scale;
    }
    __syncthreads();
    // Those of heads that do not exist stay what they are.
    unsigned char* const queries = Memory::kReload ? reinterpret_cast<unsigned char*>(memory.kept) : reinterpret_cast<unsigned char*>(memory.columns);
    if (even) {
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const int part = (k * kThreads + tid) / kEights, eight = (k * kThreads + tid) % kEights;
        if (part >= parts) continue;
        const bool rotates = part <= group && eight < half / 8;
        const int d = rotates ? eight * 8 : eight * 16, other = rotates ? d + half : d + 8;
        if (rotates) {
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const float a = to_float(low[k].each[e]), b = to_float(high[k].each[e]), cosine = memory.angles[d + e], sine = memory.angles[half + d + e];
            low[k].each[e] = from_float<T>(a * cosine - b * sine);
            high[k].each[e] = from_float<T>(b * cosine + a * sine);
          }
        }
        if (part < group) {
          *reinterpret_cast<Eight<T>*>(queries + tile_byte<HEAD_DIM>(part, d / 8)) = low[k];
          *reinterpret_cast<Eight<T>*>(queries + tile_byte<HEAD_DIM>(part, other / 8)) = high[k];
        } else {  // rounded as every later reader sees them
          T* const to = appended + (part - group) * cache.page_tokens * HEAD_DIM;
          *reinterpret_cast<Eight<T>*>(memory.added[part - group] + d) = *reinterpret_cast<Eight<T>*>(to + d) = low[k];
          *reinterpret_cast<Eight<T>*>(memory.added[part - group] + other) = *reinterpret_cast<Eight<T>*>(to + other) = high[k];
        }
      }
    } else {
      for (int i = tid; i < parts * (HEAD_DIM / 2); i += kThreads) {
        const int part = i / (HEAD_DIM / 2), pair = i % (HEAD_DIM / 2);
        const bool rotates = part <= group && pair < half;
        const int d[2] = {rotates ? pair : 2 * pair, rotates ? pair + half : 2 * pair + 1};
        T v[2] = {part_at(part)[d[0]], part_at(part)[d[1]]};
        if (rotates) {
          const float a = to_float(v[0]), b = to_float(v[1]), cosine = memory.angles[pair], sine = memory.angles[half + pair];
          v[0] = from_float<T>(a * cosine - b * sine);
          v[1] = from_float<T>(b * cosine + a * sine);
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (part < group) *reinterpret_cast<T*>(queries + tile_byte<HEAD_DIM>(part, d[e] / 8) + d[e] % 8 * 2) = v[e];
          else memory.added[part - group][d[e]] = appended[(part - group) * cache.page_tokens * HEAD_DIM + d[e]] = v[e];
        }
      }
    }
    __syncthreads();
    const uint32_t queries_at = shared_address(queries) + tile_byte<HEAD_DIM>(lane % 8, lane / 8);
    const auto load_queries = [&](uint32_t (&r)[4], int n, int s) { load_matrices(r, further<HEAD_DIM>(queries_at, s) + n * 8 * HEAD_DIM * 2); };  // of two steps
    uint32_t q[NT][kSteps / 2][4];
    if constexpr (!Memory::kReload) {
#pragma unroll
      for (int s = 0; s < kSteps; s += 2) load_queries(q[0][s / 2], 0, s);
    }
    if (folds) arrive_at_cluster();  // from here on other blocks may write to where the queries were

    float out[kSteps][NT][4] = {}, maximum[NT][2], sum[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n) maximum[n][0] = maximum[n][1] = -INFINITY, sum[n][0] = sum[n][1] = 0;
    // The oldest tile of the ring, complete; the warp that has the row's own key adds it.
    const auto arrived = [&](bool last, int is_value, uint32_t at) {
      wait_copies<kRing - 1>();
      __syncwarp();
      if (!last) return;
      if (lane < kPieces) {
        const uint4 v = reinterpret_cast<const uint4*>(memory.added[is_value])[lane];
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(at + tile_byte<HEAD_DIM>(position % kTile, lane)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
      }
      __syncwarp();
    };
    const float scale = call.soft_cap > 0 ? call.scale : call.scale * kLog2E;
    const uint32_t keys_lane = tile_byte<HEAD_DIM>(lane % 16, lane / 16), values_lane = tile_byte<HEAD_DIM>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    int slot = 0;
#pragma unroll 1
    for (int tile = 0; tile < mine; ++tile) {
      const int key = (begin + warp + tile * kWarps) * kTile;
      const bool last = append && position - key < kTile;
      uint32_t at = ring + slot * kTileBytes;
      arrived(last, 0, at);
      constexpr int kChains = NT == 1 ? 2 : 1;  // products that wait for each other
      float scores[NT][kChains][4] = {};
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        uint32_t a[4];
        load_matrices(a, further<HEAD_DIM>(at + keys_lane, s));
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          if (Memory::kReload && s % 2 == 0) load_queries(q[n][s / 2], n, s);
          mma(scores[n][s % kChains], a[0], a[1], a[2], a[3], q[n][s / 2][s % 2 * 2], q[n][s / 2][s % 2 * 2 + 1], T{});
        }
      }
      __syncwarp();
      fetch(tile + kRing / 2, kRing % 2 == 1, slot);
      slot = slot + 1 == kRing ? 0 : slot + 1;
      uint32_t weights[NT][2];
      const bool edge = key < first || key + kTile - 1 > position;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float v[4], shrink[2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          v[i] = scores[n][0][i];
          if constexpr (kChains == 2) v[i] += scores[n][1][i];
          v[i] *= scale;
          if (call.soft_cap > 0) v[i] = capped(v[i], call.soft_cap) * kLog2E;
          const int k = key + g + i / 2 * 8;
          if (edge && (k < first || k > position)) v[i] = -INFINITY;
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float largest = fmaxf(v[h], v[2 + h]);  // of a tile: at least one of its keys is seen
          largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 4));
          largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 8));
          largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 16));
          largest = fmaxf(largest, maximum[n][h]);
          shrink[h] = power_of_two(maximum[n][h] - largest);
          maximum[n][h] = largest;
          v[h] = power_of_two(v[h] - largest), v[2 + h] = power_of_two(v[2 + h] - largest);
          sum[n][h] = sum[n][h] * shrink[h] + (v[h] + v[2 + h]);
        }
        weights[n][0] = transposed(pack(v[0], v[1], T{}));
        weights[n][1] = transposed(pack(v[2], v[3], T{}));
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) out[m][n][i] *= shrink[i % 2];
        }
      }
      at = ring + slot * kTileBytes;
      arrived(last, 1, at);
#pragma unroll
      for (int m = 0; m < kSteps; ++m) {
        uint32_t a[4];
        load_transposed(a, further<HEAD_DIM>(at + values_lane, m));
#pragma unroll
        for (int n = 0; n < NT; ++n) mma(out[m][n], a[0], a[1], a[2], a[3], weights[n][0], weights[n][1], T{});
      }
      __syncwarp();
      fetch(tile + (kRing + 1) / 2, kRing % 2 == 0, slot);
      slot = slot + 1 == kRing ? 0 : slot + 1;
    }

    if (mine > 0) {
      float* const outputs = reinterpret_cast<float*>(memory.ring[warp]);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          sum[n][h] += __shfl_xor_sync(~0u, sum[n][h], 4);
          sum[n][h] += __shfl_xor_sync(~0u, sum[n][h], 8);
          sum[n][h] += __shfl_xor_sync(~0u, sum[n][h], 16);
          const int head = n * 8 + 2 * t + h;
          if (head >= group) continue;
          if (g == 0) memory.warp_states[warp][head] = make_float2(maximum[n][h], sum[n][h]);
#pragma unroll
          for (int m = 0; m < kSteps; ++m) {
            outputs[head * Memory::kStride + m * 16 + g] = out[m][n][h];
            outputs[head * Memory::kStride + m * 16 + 8 + g] = out[m][n][2 + h];
          }
        }
      }
    }
    __syncthreads();
  }

  // Columns are four elements of a head. Four neighbouring columns belong to one block of the cluster, the next four to the next.
  const int columns = group * (HEAD_DIM / 4), shared_columns = ((columns / 4 + static_cast<int>(gridDim.x) - 1) >> blocks_log2) * 4;
  const auto write = [&](int column, float4 v, float total) {
    const float inverse = 1 / total;
    *reinterpret_cast<uint2*>(result + column * 4) = make_uint2(pack(v.x * inverse, v.y * inverse, T{}), pack(v.z * inverse, v.w * inverse, T{}));
  };
  const auto add = [](float4& v, float factor, float4 more) {
    v.x += factor * more.x, v.y += factor * more.y, v.z += factor * more.z, v.w += factor * more.w;
  };
  if (folds) wait_for_cluster();
  if (tiles > 0) {
    float factors[kWarps];
    const auto state_of = [&](int head) {  // the block's
      float2 states[kWarps], state = make_float2(-INFINITY, 0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        states[w] = w < tiles ? memory.warp_states[w][head] : make_float2(-INFINITY, 0);
        state.x = fmaxf(state.x, states[w].x);
      }
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        factors[w] = power_of_two(states[w].x - state.x);
        state.y += factors[w] * states[w].y;
      }
      return state;
    };
    for (int column = tid; column < columns; column += kThreads) {
      const int head = column / (HEAD_DIM / 4), d = column % (HEAD_DIM / 4) * 4;
      const float2 state = state_of(head);
      float4 v = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w < tiles) add(v, factors[w], *reinterpret_cast<const float4*>(reinterpret_cast<const float*>(memory.ring[w]) + head * Memory::kStride + d));
      }
      if (!folds) {
        write(column, v, state.y);
      } else {
        const int four = column / 4, at = rank * shared_columns + (four >> blocks_log2) * 4 + column % 4;
        store_in_cluster(address_in_block(shared_address(memory.columns + at), four & (static_cast<int>(gridDim.x) - 1)), v);
      }
    }
    if (folds) {
      for (int i = tid; i < group << blocks_log2; i += kThreads) {
        const int head = i >> blocks_log2, to = i & (static_cast<int>(gridDim.x) - 1);
        store_in_cluster(address_in_block(shared_address(&memory.states[rank][head]), to), state_of(head));
      }
    }
  }
  if (!folds) return;
  __syncwarp();
  arrive_at_cluster();
  wait_for_cluster();  // after this nobody touches another block's memory
  const int used = (all_tiles + share - 1) / share;  // blocks that have keys
  for (int i = tid; i < shared_columns; i += kThreads) {
    const int column = (((i / 4) << blocks_log2) + rank) * 4 + i % 4, head = column / (HEAD_DIM / 4);
    if (column >= columns) break;
    float most = -INFINITY, total = 0;
    float4 v = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int r = 0; r < used; ++r) most = fmaxf(most, memory.states[r][head].x);
#pragma unroll 4
    for (int r = 0; r < used; ++r) {
      const float2 state = memory.states[r][head];
      const float factor = power_of_two(state.x - most);
      total += factor * state.y;
      add(v, factor, memory.columns[r * shared_columns + i]);
    }
    write(column, v, total);
  }
#endif
}

// Whether the kernel was compiled for devices of this generation.
constexpr bool compiled_for(int major) {
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    if (architecture / 100 == major && architecture >= 900) return true;
  }
  return false;
}

template <typename T, int HEAD_DIM, int NT>
void start(const Launch& how, const AttentionCall& call, bool fused, int blocks) {
  constexpr size_t kShared = sizeof(Shared<T, HEAD_DIM, NT>);
  const auto kernel = attend_cluster<T, HEAD_DIM, NT>;
  static OncePerDevice once;
  if (once.first(*how.device)) {
    allow_shared(kernel, kShared, "attention");
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "attention");
  }
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(call.shape.kv_heads), static_cast<unsigned>(fused ? call.most_sequences : call.singles));
  launch_clusters(how, kernel, grid, static_cast<unsigned>(blocks), dim3(kThreads), kShared, "attention", call, fused);
}

template <typename T>
bool by_head_dim(const Launch& how, const AttentionCall& call, bool fused, int blocks) {
  const bool few = call.shape.heads / call.shape.kv_heads <= 8;
  switch (call.shape.head_dim) {
    case 64: return few ? start<T, 64, 1>(how, call, fused, blocks) : start<T, 64, 2>(how, call, fused, blocks), true;
    case 96: return few ? start<T, 96, 1>(how, call, fused, blocks) : start<T, 96, 2>(how, call, fused, blocks), true;
    case 128: return few ? start<T, 128, 1>(how, call, fused, blocks) : start<T, 128, 2>(how, call, fused, blocks), true;
    case 256: return few ? start<T, 256, 1>(how, call, fused, blocks) : start<T, 256, 2>(how, call, fused, blocks), true;
    default: return false;
  }
}

}  // namespace

// How many blocks share the keys of a sequence and KV head; 0 where even sixteen would leave most of the device idle for long. A block that
// has a multiprocessor for itself shortens the way with only two tiles; where they share multiprocessors more blocks than there is room for
// (four each, of which three to be safe) would run one after the other, and each should have something to do for what its start costs.
int cluster_blocks(int64_t sequences, int64_t kv_heads, int64_t context, int multiprocessors) {
  const int64_t pairs = sequences * kv_heads, tiles = (context + kTile - 1) / kTile;
  if (pairs * kMostBlocks * 2 < multiprocessors && context > 16384) return 0;
  int blocks = 1;
  while (blocks < kMostBlocks) {
    const int64_t next = blocks * 2;
    const bool alone = pairs * next <= multiprocessors;
    if (pairs * next > 3 * static_cast<int64_t>(multiprocessors) || tiles < next * (alone ? 2 : 2 * kWarps)) break;
    // More than eight must lie close together to be started at all: only where the keys are many.
    if (next > 8 && (!alone || tiles < next * 4 * kWarps)) break;
    blocks = static_cast<int>(next);
  }
  return blocks;
}

bool attend_single_rows_cluster(const Launch& how, const AttentionCall& call, bool fused, int blocks) {
  if (!compiled_for(how.device->major)) return false;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool fits = aligned(call.cache.memory) && call.cache.page_stride % 16 == 0 && call.cache.page_tokens % kTile == 0 && aligned(call.qkv) &&
                    call.qkv_stride % 8 == 0 && aligned(call.out) && call.rope.rotary <= call.shape.head_dim && call.rope.rotary % 2 == 0;
  if (!fits || call.shape.heads / call.shape.kv_heads > 16) return false;
  if (blocks == 0) blocks = cluster_blocks(fused ? call.most_sequences : call.singles, call.shape.kv_heads, call.most_context, how.device->multiprocessors);
  if (blocks == 0) return false;
  if (call.element == Element::bf16 && call.cache.type == KvType::bf16) return by_head_dim<bf16>(how, call, fused, blocks);
  if (call.element == Element::f16 && call.cache.type == KvType::fp16) return by_head_dim<f16>(how, call, fused, blocks);
  return false;
}

}  // namespace tandem::cuda
