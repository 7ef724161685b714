// One row a sequence, on compute capability 9.0 and later: a cluster of blocks has one sequence and KV head, each block a run of the keys.
// A warp goes through tiles of sixteen keys by itself, with a ring of tiles of its own that are always on their way, so that nothing but
// the end makes warps wait for each other. Keys are the rows of the products and query heads the columns, of which there are eight or
// sixteen: scores (keys x heads) turn into weights where they are, and the outputs (head_dim x heads) stay in registers. In the end each
// block folds its warps and hands every block of the cluster its share of the columns through distributed shared memory.
#include <algorithm>
#include <bit>

#include "kernels/base/cuda/cluster.cuh"
#include "kernels/base/cuda/mma.cuh"
#include "kernels/cuda/attention_cache.cuh"
#include "kernels/cuda/attention_copy.cuh"
#include "kernels/cuda/attention_kernels.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kTile = 16, kMostBlocks = 16, kPortableBlocks = 8, kMostPageTokens = 512;

struct Plan {  // of a launch
  bool fused, even;        // even: what rope turns are whole pieces of eight elements
  unsigned group;          // query heads of a KV head
  unsigned blocks_log2;    // of a cluster
  unsigned page_tiles, page_factor;  // page of a tile: the upper half of tile * page_factor, unless a page is a tile
};

// NT: eights of query heads.
template <typename T, int HEAD_DIM, int NT>
struct Shared {
  static constexpr int kHeads = NT * 8, kTileBytes = kTile * HEAD_DIM * 2;
  static constexpr int kRing = HEAD_DIM <= 64 ? 6 : HEAD_DIM <= 96 ? 4 : 3;  // up to 128: four blocks a multiprocessor
  static constexpr int kStride = HEAD_DIM + 4;                               // of a warp's outputs: keeps lanes in different banks
  struct Result {  // of a warp, in place of its tiles
    float outputs[kHeads][kStride];
    float2 states[kHeads];  // maximum, sum
  };
  alignas(128) unsigned char ring[kWarps][kRing][kTileBytes];
  alignas(128) unsigned char queries[kHeads * HEAD_DIM * 2];
  float4 columns[kHeads * HEAD_DIM / 4];  // [block][this block's share of the columns]
  union {
    float angles[HEAD_DIM];
    float2 states[kMostBlocks][kHeads];  // blocks' maxima and sums, after angles were used
  };
  alignas(16) unsigned char added[2][HEAD_DIM * 2];  // the new key and value
  uint64_t barrier;
  static_assert(sizeof(Result) <= kRing * kTileBytes);
};

#if __CUDA_ARCH__ >= 900
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

// Loads that are asked for here and not where their values are used first, which may be behind another round trip.
__device__ __forceinline__ int32_t load_now(const int32_t* p) {
  int32_t v;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint4 load_now(const void* p) {
  uint4 v;
  asm volatile("ld.global.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}

__device__ __forceinline__ float inverse(float v) { return __fdividef(1.0f, v); }
// As capped(), within 2^-22 of the cap.
__device__ __forceinline__ float capped_nearly(float score, float cap, float turns) {  // turns: 2 log2(e) / cap
  return cap - 2 * cap * inverse(1 + power_of_two(score * turns));
}

__device__ __forceinline__ float2 unpack(uint32_t v, bf16) { return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v)); }
__device__ __forceinline__ float2 unpack(uint32_t v, f16) { return __half22float2(*reinterpret_cast<const __half2*>(&v)); }
template <typename T>
__device__ __forceinline__ void rotate(uint32_t& low, uint32_t& high, float2 cosine, float2 sine) {
  const float2 a = unpack(low, T{}), b = unpack(high, T{});
  low = pack(a.x * cosine.x - b.x * sine.x, a.y * cosine.y - b.y * sine.y, T{});
  high = pack(b.x * cosine.x + a.x * sine.x, b.y * cosine.y + a.y * sine.y, T{});
}
#endif

template <typename T, int HEAD_DIM, int NT>
__global__ void __launch_bounds__(kThreads, HEAD_DIM > 128 ? 3 - NT : 5 - NT) attend_cluster(const AttentionCall call, const Plan plan) {
#if __CUDA_ARCH__ >= 900
  using Memory = Shared<T, HEAD_DIM, NT>;
  constexpr int kSteps = HEAD_DIM / 16, kRing = Memory::kRing, kTileBytes = Memory::kTileBytes, kPieces = HEAD_DIM / 8;
  constexpr bool kReload = NT > 1;  // there are not the registers for so many queries: they are read for every tile
  constexpr float kLog2E = 1.44269504088896340736f;  // exponentials are powers of two
  extern __shared__ __align__(128) unsigned char raw[];
  Memory& memory = *reinterpret_cast<Memory*>(raw);
  let_next_begin();
  const unsigned tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  const bool fused = plan.fused;
  const unsigned half = fused ? static_cast<unsigned>(call.rope.rotary) / 2 : 0;
  static_assert(HEAD_DIM / 2 <= kThreads);
  const float frequency = tid < half ? call.rope.inverse_frequency[tid] : 0.0f;
  wait_for_previous();
  const int rank = blockIdx.x, kv_head = blockIdx.y, index = blockIdx.z;
  const SequenceOnDevice* const sequence = call.step.sequences + index;  // there is memory for as many as were launched for
  const CacheLayer& cache = call.cache;
  const int count = load_now(call.step.counts + 1), position = load_now(&sequence->position), row = load_now(&sequence->row);
  const int rows = load_now(&sequence->rows), table = load_now(sequence->pages + cache.group);
  // The whole cluster. None of the last three is negative ever: looked at here, they come in one round trip with the others.
  if (index >= count || (!fused && rows != 1) || (position | row | table) < 0) return;
  const int window = static_cast<int>(min(call.window, int64_t{1} << 30));
  const int first = window > 0 ? max(0, position - window + 1) : 0;
  const int blocks = 1 << plan.blocks_log2, first_tile = first / kTile;
  const int all_tiles = position / kTile - first_tile + 1, share = (all_tiles + blocks - 1) >> plan.blocks_log2;
  const int begin = first_tile + rank * share, tiles = max(0, min(share, all_tiles - rank * share));
  const bool folds = all_tiles > share;  // more than one block has keys
  if (tiles == 0 && !folds) return;
  const int group = static_cast<int>(plan.group), heads = static_cast<int>(call.shape.heads);

  // Columns are four elements of a head. Four neighbouring columns belong to one block of the cluster, the next four to the next.
  const int columns = group * (HEAD_DIM / 4), fours = columns / 4, shared_columns = ((fours + blocks - 1) >> plan.blocks_log2) * 4;
  const auto used = static_cast<int>(static_cast<unsigned>(all_tiles + share - 1) / static_cast<unsigned>(share));  // blocks that have keys
  const uint32_t barrier = shared_address(&memory.barrier);
  const auto expect_parts = [&] {
    if (folds && tid == 0) {
      const int own = max(0, fours - rank + blocks - 1) >> plan.blocks_log2;
      make_barrier(barrier);
      expect_bytes(barrier, static_cast<uint32_t>(used * (own * 64 + group * 8)));
    }
    __syncwarp();
  };

  if (tiles == 0) {
    expect_parts();
    arrive_at_cluster();
  } else {
    // Asked for at once: the pages of the warp's first tiles, one a lane, and the row's queries, new key and value. Elements d of the
    // first and of the second half are rotated together; what is not rotated goes through the same hands as pairs of neighbours.
    const bool append = fused && rank * share + tiles == all_tiles;  // has the row's own key
    const std::byte* const base = cache.memory + static_cast<uint64_t>(kv_head) * 2 * cache.page_tokens * HEAD_DIM * sizeof(T);
    const uint32_t to_values = static_cast<uint32_t>(cache.page_tokens) * HEAD_DIM * sizeof(T);
    const int mine = (tiles - static_cast<int>(warp) + kWarps - 1) / kWarps;  // tiles of this warp: every fourth
    const int begin_mine = begin + static_cast<int>(warp);
    const auto page_of_tile = [&](unsigned tile) { return plan.page_tiles == 1 ? tile : __umulhi(tile, plan.page_factor); };
    struct Place { int32_t page; uint32_t inside; };
    const auto look_up = [&](int tile) {
      const unsigned page = page_of_tile(static_cast<unsigned>(tile));
      return Place{load_now(call.step.pages + table + page), (static_cast<unsigned>(tile) - page * plan.page_tiles) * kTileBytes};
    };
    const auto keys_at = [&](Place place) { return base + static_cast<uint32_t>(place.page) * cache.page_stride + place.inside; };
    const auto look_up_lanes = [&](int from) {
      return look_up(min(begin_mine + (from + static_cast<int>(lane)) * kWarps, begin + tiles - 1));
    };
    const Place place = look_up_lanes(0), last_place = look_up(begin + tiles - 1);

    const T* const values = static_cast<const T*>(call.qkv) + static_cast<int64_t>(row) * call.qkv_stride;
    const unsigned parts = plan.group + (append ? 2 : 0);
    const auto part_at = [&](unsigned part) {
      const int p = static_cast<int>(part), later = p - group;
      return values + (later < 0 ? kv_head * group + p : heads + later * static_cast<int>(call.shape.kv_heads) + kv_head) * HEAD_DIM;
    };
    constexpr int kEights = HEAD_DIM / 16, kItems = ((NT * 8 + 2) * kEights + kThreads - 1) / kThreads;
    const auto turns = [&](unsigned part, unsigned eight) { return part <= plan.group && eight < half / 8; };
    uint4 low[kItems], high[kItems];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const unsigned part = (k * kThreads + tid) / kEights, eight = (k * kThreads + tid) % kEights;
      if (!plan.even || part >= parts) continue;
      const T* const from = part_at(part);
      const unsigned d = turns(part, eight) ? eight * 8 : eight * 16, other = turns(part, eight) ? d + half : d + 8;
      low[k] = load_now(static_cast<const void*>(from + d)), high[k] = load_now(static_cast<const void*>(from + other));
    }

    // Keys, then values of one tile after the other, through the ring. What the query does not see is left zero, and so is the row's own
    // key, which comes from the row.
    const uint32_t ring = shared_address(memory.ring[warp]);
    const std::byte *tile_ahead = keys_at(place), *fetched = base;
    const int seen_end = fused ? position : position + 1;
    const auto fetch = [&](int tile, bool is_value, uint32_t to) {
      if (tile < mine) {
        if (!is_value) {
          if (tile > 0 && tile % 32 == 0) tile_ahead = keys_at(look_up_lanes(tile));
          fetched = reinterpret_cast<const std::byte*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(tile_ahead), tile % 32)) + lane * 16;
        }
        const std::byte* const from = is_value ? fetched + to_values : fetched;
        const int key = (begin_mine + tile * kWarps) * kTile, hidden = max(first - key, 0);
        const unsigned seen = static_cast<unsigned>(max(seen_end - key - hidden, 0));
        if constexpr (32 % kPieces == 0) {
          constexpr int kRows = 32 / kPieces;  // of a copy of the warp
          const uint32_t at = to + tile_byte<HEAD_DIM>(lane / kPieces, lane % kPieces);
          const unsigned k = lane / kPieces - static_cast<unsigned>(hidden);
#pragma unroll
          for (int i = 0; i < kTile / kRows; ++i) copy_ahead((at ^ (i * kRows % 8 * 16)) + i * 512, from + i * 512, k + i * kRows < seen);
        } else {
#pragma unroll
          for (int i = 0; i < kTile * kPieces / 32; ++i) {
            const unsigned k = (i * 32 + lane) / kPieces, piece = (i * 32 + lane) % kPieces;
            copy_ahead(to + tile_byte<HEAD_DIM>(k, piece), from + i * 512, k - static_cast<unsigned>(hidden) < seen);
          }
        }
      }
      commit_copies();
    };
#pragma unroll
    for (int i = 0; i < kRing; ++i) fetch(i / 2, i % 2 == 1, ring + i * kTileBytes);

    expect_parts();
    if (tid < half) {
      float sine, cosine;
      sincosf(static_cast<float>(position) * frequency, &sine, &cosine);
      memory.angles[tid] = cosine * call.rope.scale;
      memory.angles[half + tid] = sine * call.rope.scale;
    }
    T* const appended = reinterpret_cast<T*>(const_cast<std::byte*>(keys_at(last_place))) + position % kTile * HEAD_DIM;
    __syncthreads();
    // Rounded as every later reader sees them. Queries of heads that do not exist stay what they are: columns know nothing of each other.
    if (plan.even) {
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const unsigned part = (k * kThreads + tid) / kEights, eight = (k * kThreads + tid) % kEights;
        if (part >= parts) continue;
        const unsigned d = turns(part, eight) ? eight * 8 : eight * 16, other = turns(part, eight) ? d + half : d + 8;
        if (turns(part, eight)) {
          const float4* const cosines = reinterpret_cast<const float4*>(memory.angles + d);
          const float4* const sines = reinterpret_cast<const float4*>(memory.angles + half + d);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float4 c = cosines[e], s = sines[e];
            rotate<T>(e == 0 ? low[k].x : low[k].z, e == 0 ? high[k].x : high[k].z, make_float2(c.x, c.y), make_float2(s.x, s.y));
            rotate<T>(e == 0 ? low[k].y : low[k].w, e == 0 ? high[k].y : high[k].w, make_float2(c.z, c.w), make_float2(s.z, s.w));
          }
        }
        if (part < plan.group) {
          *reinterpret_cast<uint4*>(memory.queries + tile_byte<HEAD_DIM>(part, d / 8)) = low[k];
          *reinterpret_cast<uint4*>(memory.queries + tile_byte<HEAD_DIM>(part, other / 8)) = high[k];
        } else {
          const bool is_value = part > plan.group;
          T* const to = appended + (is_value ? cache.page_tokens * HEAD_DIM : 0);
          *reinterpret_cast<uint4*>(memory.added[is_value] + d * 2) = *reinterpret_cast<uint4*>(to + d) = low[k];
          *reinterpret_cast<uint4*>(memory.added[is_value] + other * 2) = *reinterpret_cast<uint4*>(to + other) = high[k];
        }
      }
    } else {
#pragma unroll 1
      for (unsigned i = tid; i < parts * (HEAD_DIM / 2); i += kThreads) {
        const unsigned part = i / (HEAD_DIM / 2), pair = i % (HEAD_DIM / 2);
        const bool rotates = part <= plan.group && pair < half;
        const unsigned d[2] = {rotates ? pair : 2 * pair, rotates ? pair + half : 2 * pair + 1};
        T v[2] = {part_at(part)[d[0]], part_at(part)[d[1]]};
        if (rotates) {
          const float a = to_float(v[0]), b = to_float(v[1]), cosine = memory.angles[pair], sine = memory.angles[half + pair];
          v[0] = from_float<T>(a * cosine - b * sine);
          v[1] = from_float<T>(b * cosine + a * sine);
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (part < plan.group) {
            *reinterpret_cast<T*>(memory.queries + tile_byte<HEAD_DIM>(part, d[e] / 8) + d[e] % 8 * 2) = v[e];
          } else {
            const bool is_value = part > plan.group;
            *reinterpret_cast<T*>(memory.added[is_value] + d[e] * 2) = appended[(is_value ? cache.page_tokens * HEAD_DIM : 0) + d[e]] = v[e];
          }
        }
      }
    }
    __syncthreads();
    if (folds) arrive_at_cluster();  // from here on other blocks may send their states, where the angles were
    const uint32_t queries_at = shared_address(memory.queries) + tile_byte<HEAD_DIM>(lane % 8, lane / 8);
    const auto load_queries = [&](uint32_t (&r)[4], int n, int s) {  // of two steps
      load_matrices(r, further<HEAD_DIM>(queries_at, s) + n * 8 * HEAD_DIM * 2);
    };
    uint32_t q[NT][kSteps / 2][4];
    if constexpr (!kReload) {
#pragma unroll
      for (int s = 0; s < kSteps; s += 2) load_queries(q[0][s / 2], 0, s);
    }

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
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(at + tile_byte<HEAD_DIM>(position % kTile, lane)), "r"(v.x), "r"(v.y),
                     "r"(v.z), "r"(v.w)
                     : "memory");
      }
      __syncwarp();
    };
    const float scale = call.soft_cap > 0 ? call.scale : call.scale * kLog2E, cap = call.soft_cap * kLog2E, turns_of_cap = 2 * kLog2E / call.soft_cap;
    const uint32_t keys_lane = tile_byte<HEAD_DIM>(lane % 16, lane / 16);
    const uint32_t values_lane = tile_byte<HEAD_DIM>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    const uint32_t ring_end = ring + kRing * kTileBytes;
    uint32_t at = ring;
#pragma unroll 1
    for (int tile = 0; tile < mine; ++tile) {
      const int key = (begin_mine + tile * kWarps) * kTile;
      const bool last = append && position - key < kTile;
      arrived(last, 0, at);
      constexpr int kChains = NT == 1 ? 2 : 1;  // products that wait for each other
      float scores[NT][kChains][4] = {};
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        uint32_t a[4];
        load_matrices(a, further<HEAD_DIM>(at + keys_lane, s));
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          if (kReload && s % 2 == 0) load_queries(q[n][s / 2], n, s);
          mma(scores[n][s % kChains], a[0], a[1], a[2], a[3], q[n][s / 2][s % 2 * 2], q[n][s / 2][s % 2 * 2 + 1], T{});
        }
      }
      __syncwarp();
      fetch(tile + kRing / 2, kRing % 2 == 1, at);
      at = at + kTileBytes == ring_end ? ring : at + kTileBytes;
      uint32_t weights[NT][2];
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float v[4], shrink[2];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = (kChains == 2 ? scores[n][0][i] + scores[n][kChains - 1][i] : scores[n][0][i]) * scale;
        if (call.soft_cap > 0) {
#pragma unroll
          for (float& score : v) score = capped_nearly(score, cap, turns_of_cap);
        }
        if (key < first || key + kTile - 1 > position) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int k = key + static_cast<int>(g) + i / 2 * 8;
            if (k < first || k > position) v[i] = -INFINITY;
          }
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
      arrived(last, 1, at);
#pragma unroll
      for (int m = 0; m < kSteps; ++m) {
        uint32_t a[4];
        load_transposed(a, further<HEAD_DIM>(at + values_lane, m));
#pragma unroll
        for (int n = 0; n < NT; ++n) mma(out[m][n], a[0], a[1], a[2], a[3], weights[n][0], weights[n][1], T{});
      }
      __syncwarp();
      fetch(tile + (kRing + 1) / 2, kRing % 2 == 0, at);
      at = at + kTileBytes == ring_end ? ring : at + kTileBytes;
    }

    if (mine > 0) {
      auto& result = *reinterpret_cast<typename Memory::Result*>(memory.ring[warp]);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          sum[n][h] += __shfl_xor_sync(~0u, sum[n][h], 4);
          sum[n][h] += __shfl_xor_sync(~0u, sum[n][h], 8);
          sum[n][h] += __shfl_xor_sync(~0u, sum[n][h], 16);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const unsigned head = n * 8 + 2 * t + h;
          if (head >= plan.group) continue;
          if (g == 0) result.states[head] = make_float2(maximum[n][h], sum[n][h]);
#pragma unroll
          for (int m = 0; m < kSteps; ++m) {
            result.outputs[head][m * 16 + g] = out[m][n][h];
            result.outputs[head][m * 16 + 8 + g] = out[m][n][2 + h];
          }
        }
      }
    }
    __syncthreads();
  }

  T* const results = static_cast<T*>(call.out) + (static_cast<int64_t>(row) * heads + kv_head * group) * HEAD_DIM;
  const auto write = [&](unsigned column, float4 v, float total) {
    const float factor = inverse(total);
    *reinterpret_cast<uint2*>(results + column * 4) = make_uint2(pack(v.x * factor, v.y * factor, T{}), pack(v.z * factor, v.w * factor, T{}));
  };
  const auto add = [](float4& v, float factor, float4 more) {
    v.x += factor * more.x, v.y += factor * more.y, v.z += factor * more.z, v.w += factor * more.w;
  };
  const auto column_count = static_cast<unsigned>(columns), share_count = static_cast<unsigned>(shared_columns);
  const auto own_rank = static_cast<unsigned>(rank);
  if (folds) wait_for_cluster();
  if (tiles > 0) {
    const int warps = min(tiles, kWarps);  // that have keys
    const auto result = [&](int w) -> const typename Memory::Result& { return *reinterpret_cast<const typename Memory::Result*>(memory.ring[w]); };
#pragma unroll 1
    for (unsigned column = tid; column < column_count; column += kThreads) {
      const unsigned head = column / (HEAD_DIM / 4), d = column % (HEAD_DIM / 4) * 4;
      float2 states[kWarps], state = make_float2(-INFINITY, 0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        states[w] = w < warps ? result(w).states[head] : make_float2(-INFINITY, 0);
        state.x = fmaxf(state.x, states[w].x);
      }
      float4 v = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w >= warps) break;
        const float factor = power_of_two(states[w].x - state.x);
        state.y += factor * states[w].y;
        add(v, factor, *reinterpret_cast<const float4*>(result(w).outputs[head] + d));
      }
      if (!folds) {
        write(column, v, state.y);
        continue;
      }
      const unsigned four = column / 4, to = four & static_cast<unsigned>(blocks - 1);
      const uint32_t at = shared_address(memory.columns + own_rank * share_count + (four >> plan.blocks_log2) * 4 + column % 4);
      send(address_in_block(at, to), v, address_in_block(barrier, to));
      // And a head's state to all blocks: by its first columns, of which there are at least as many.
      static_assert(HEAD_DIM / 4 >= kMostBlocks);
      const unsigned block = d / 4;
      const uint32_t state_at = shared_address(&memory.states[own_rank][head]);
      if (block < static_cast<unsigned>(blocks)) send(address_in_block(state_at, block), state, address_in_block(barrier, block));
    }
  }
  if (!folds) return;
  wait_for_bytes_of_cluster(barrier);
#pragma unroll 1
  for (unsigned i = tid; i < share_count; i += kThreads) {
    const unsigned column = (((i / 4) << plan.blocks_log2) + own_rank) * 4 + i % 4, head = column / (HEAD_DIM / 4);
    if (column >= column_count) break;
    float most = -INFINITY, total = 0;
    float4 v = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int r = 0; r < used; ++r) most = fmaxf(most, memory.states[r][head].x);
#pragma unroll 4
    for (int r = 0; r < used; ++r) {
      const float2 state = memory.states[r][head];
      const float factor = power_of_two(state.x - most);
      total += factor * state.y;
      add(v, factor, memory.columns[r * shared_columns + static_cast<int>(i)]);
    }
    write(column, v, total);
  }
#endif
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
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(call.shape.kv_heads),
                  static_cast<unsigned>(fused ? call.most_sequences : call.singles));
  Plan plan;
  plan.fused = fused, plan.even = !fused || call.rope.rotary % 16 == 0;
  plan.group = static_cast<unsigned>(call.shape.heads / call.shape.kv_heads);
  plan.blocks_log2 = static_cast<unsigned>(std::countr_zero(static_cast<unsigned>(blocks)));
  plan.page_tiles = static_cast<unsigned>(call.cache.page_tokens) / kTile;
  plan.page_factor = static_cast<uint32_t>(((uint64_t{1} << 32) + plan.page_tiles - 1) / plan.page_tiles);  // exact for 2^32 / page_tiles tiles
  launch_clusters(how, kernel, grid, static_cast<unsigned>(blocks), dim3(kThreads), kShared, "attention", call, plan);
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

// How many blocks share the keys of a sequence and KV head, at most the eight that every device takes (sixteen were no faster: 16.5 us both
// for one sequence of 8192 tokens on an H200); 0 where that would leave most of the device idle for long. A block that has a multiprocessor
// for itself shortens the way with only two tiles; where they share multiprocessors two are still better than one while there is room for
// all at once, more are not (measured likewise).
int cluster_blocks(int64_t sequences, int64_t kv_heads, int64_t context, int multiprocessors) {
  const int64_t pairs = sequences * kv_heads, tiles = (context + kTile - 1) / kTile;
  if (pairs * kMostBlocks * 2 < multiprocessors && context > 16384) return 0;
  int blocks = 1;
  while (blocks < kPortableBlocks) {
    const int64_t next = blocks * 2;
    if (pairs * next > multiprocessors && (blocks > 1 || pairs > 2 * static_cast<int64_t>(multiprocessors) || tiles < 4 * kWarps)) break;
    if (tiles < next * 2) break;
    blocks = static_cast<int>(next);
  }
  return blocks;
}

bool attend_single_rows_cluster(const Launch& how, const AttentionCall& call, bool fused, int blocks) {
  if (!has_clusters(*how.device)) return false;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool fits = aligned(call.cache.memory) && call.cache.page_stride % 16 == 0 && call.cache.page_tokens % kTile == 0 &&
                    call.cache.page_tokens <= kMostPageTokens && aligned(call.qkv) &&
                    call.qkv_stride % 8 == 0 && aligned(call.out) && call.rope.rotary <= call.shape.head_dim && call.rope.rotary % 2 == 0;
  if (!fits || call.shape.heads / call.shape.kv_heads > 16) return false;
  const int32_t sequences = fused ? call.most_sequences : call.singles;
  if (blocks == 0) blocks = cluster_blocks(sequences, call.shape.kv_heads, call.most_context, how.device->multiprocessors);
  if (blocks == 0) return false;
  if (call.element == Element::bf16 && call.cache.type == KvType::bf16) return by_head_dim<bf16>(how, call, fused, blocks);
  if (call.element == Element::f16 && call.cache.type == KvType::fp16) return by_head_dim<f16>(how, call, fused, blocks);
  return false;
}

}  // namespace tandem::cuda
