// One row of activations. With one row, seven of the mma's eight columns are idle: block j of a slice's eight has its activations in
// column j only, so one accumulator runs over the whole slice and keeps the blocks apart, and a lane scales four sums a slice and row
// tile. Activations live in registers for the whole launch. `slice_warps` warps have the whole width of a matrix; they are a group, or when
// gated half of one, the other half having the same row tile of the other matrix. A group takes tiles one after the other; blocks hold one
// or more groups.
//
// With kExperts there are a few pairs of a row and one of its experts, in the order of the lists that route() wrote; a group stays with one
// pair, and the pairs have the same number of groups each.
#pragma once
#include <algorithm>

#include "kernels/cuda/tile4.cuh"

namespace tandem::cuda {

struct OneRow {
  TileProducts products;
  int32_t slice_warps = 0, groups = 0;
  const void* values = nullptr;  // element, or
  const float* residual = nullptr;
  const float* norm_weight = nullptr;
  float epsilon = 0;
  int64_t stride = 0;
  const int32_t* row_of = nullptr;
  const int32_t* begin = nullptr;  // kExperts: [local_experts + 1], of the pairs; row_of, if any, is that of the pairs
  const std::byte* const* data[2] = {};
  int32_t local_experts = 0;
  bool lists_known = false;  // the kernel ahead let this one begin only when the lists were complete
};

// Table, and sums of each warp for two units in turn. After them a normalized row.
__host__ __device__ inline int one_row_shared(int warps) { return kTableBytes + warps * 2 * 16 * 4; }

__device__ __forceinline__ void group_barrier(int group, int threads) {
  asm volatile("bar.sync %0,%1;" ::"r"(group + 1), "r"(threads) : "memory");
}

// kSlices: how many slices a warp has; kRing: blocks of 64 whose loads are in flight.
template <typename T, bool kNested, int kSlices, int kRing, int kThreads, int kBlocks, bool kOrdered, bool kExperts>
__global__ void __launch_bounds__(kThreads, kBlocks) one_row(const __grid_constant__ OneRow p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  static_assert(8 * kSlices % kRing == 0, "a block of 64 has its place in the ring");
  const TileProducts& all = p.products;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int group_warps = all.gated ? 2 * p.slice_warps : p.slice_warps;
  const int group = warp / group_warps, in_group = warp - group * group_warps;
  const int half = in_group >= p.slice_warps, w = in_group - half * p.slice_warps;
  const int first_slice = w * kSlices, my_slices = kSlices == 1 ? 1 : min(kSlices, all.slices - first_slice);
  const int units = all.gated ? all.tiles / 2 : all.tiles;
  int step = gridDim.x * p.groups, unit = blockIdx.x * p.groups + group, pair_index = 0;
  const std::byte* expert_data[kExperts ? 2 : 1] = {};
  if (!kExperts || p.lists_known) let_next_begin();
  const auto* const map = reinterpret_cast<const float*>((kExperts ? p.data[0][0] : all.matrix[0].data) + all.matrix[0].map_offset);
  TableRow<T, kNested> table;
  table.load(map, threadIdx.x & 255);

  // Of this warp.
  const auto place = [&](int of_unit) { return all.gated ? TilePlace{half, of_unit} : place_of(all, of_unit); };
  const auto data_of = [&](int product) {
    if constexpr (kExperts) return product == 0 ? expert_data[0] : expert_data[1];
    return all.matrix[product].data;
  };
  const auto codes_of = [&](const TilePlace& at) {
    return data_of(at.product) + ((static_cast<size_t>(at.tile) * all.slices + first_slice) * 8 * 32 + lane) * 16;
  };
  struct Scales {
    unsigned codes[kSlices];
    float4 plain[kNested ? 1 : kSlices];
    float low[kNested ? kSlices : 1], high[kNested ? kSlices : 1], offset;
  };
  const auto scales_of = [&](const TilePlace& at, Scales& s) {
    const TileMatrix& m = all.matrix[at.product];
    const std::byte* const data = data_of(at.product);
    const size_t pair = static_cast<size_t>(at.tile) * all.slices + first_slice;
#pragma unroll
    for (int q = 0; q < kSlices; ++q) {
      if (q >= my_slices) continue;
      if constexpr (kNested) {
        s.codes[q] = __ldg(reinterpret_cast<const unsigned*>(data + m.scales_offset) + (pair + q) * 32 + lane);
        const auto* nested = reinterpret_cast<const float*>(data + m.nested_offset) + (pair + q) * 16;
        s.low[q] = __ldg(nested + g), s.high[q] = __ldg(nested + g + 8);
      } else {
        s.plain[q] = __ldg(reinterpret_cast<const float4*>(data + m.scales_offset) + (pair + q) * 32 + lane);
      }
    }
    if constexpr (kNested) s.offset = __ldg(reinterpret_cast<const float*>(data + m.map_offset) + 16);
  };

  if constexpr (kExperts) {
    store_table(table, shared, map);
    __syncthreads();
    if (!p.lists_known) {  // which experts have rows is known only now
      wait_for_previous();
      let_next_begin();
    }
    const int pairs = __ldcg(p.begin + p.local_experts), each = pairs > 0 ? step / pairs : 0;
    if (unit >= each * pairs) return wait_for_previous();
    pair_index = unit % pairs, unit /= pairs, step = each;
    int expert = 0;
    while (__ldcg(p.begin + expert + 1) <= pair_index) ++expert;
    for (int i = 0; i < 2; ++i) expert_data[i] = i < all.products ? p.data[i][expert] : nullptr;
  }
  const std::byte* codes = data_of(0);
  uint4 ring[kRing];
  Scales scales{};
  if (unit < units) {
    const TilePlace at = place(unit);
    codes = codes_of(at);
#pragma unroll
    for (int i = 0; i < kRing; ++i) {
      if (i / 8 < my_slices) ring[i] = load_once<kOrdered>(codes + i * 512);
    }
    scales_of(at, scales);
  }
  if constexpr (!kExperts) store_table(table, shared, map);
  // The norm's weights, constants: here, or at least on their way, when the kernel ahead ends.
  constexpr bool kNormAhead = kSlices == 1 && !kOrdered;
  constexpr int kQuads = 4 * kSlices;  // of a thread: a block has at least a warp for kSlices slices
  float4 norm[kNormAhead ? kQuads : 1];
  if (!kExperts && p.residual != nullptr) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int quad = threadIdx.x + i * blockDim.x;
      const auto* const from = reinterpret_cast<const float4*>(p.norm_weight) + quad;
      if constexpr (kNormAhead) {
        norm[i] = quad < all.cols / 4 ? __ldg(from) : make_float4(0, 0, 0, 0);
      } else if (quad < all.cols / 4) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
      }
    }
  }
  if constexpr (!kExperts) __syncthreads();
  wait_for_previous();

  // Activations: lane (g, t) has columns 8 t .. 8 t + 7 of both halves of block g of each slice.
  float* const sums = reinterpret_cast<float*>(shared + kTableBytes) + group * group_warps * 32;  // [2 units][group's warps][16]
  uint4 x[kSlices][2];
  const int64_t source = (p.row_of != nullptr ? __ldcg(p.row_of + pair_index) : pair_index) * p.stride;
  if (kExperts || p.residual == nullptr) {
#pragma unroll
    for (int q = 0; q < kSlices; ++q) {
      const int col = (first_slice + q) * 512 + g * 64;
      const auto* from = reinterpret_cast<const uint4*>(static_cast<const T*>(p.values) + source + col);
      x[q][0] = col < all.cols ? __ldcg(from + t) : make_uint4(0, 0, 0, 0);
      x[q][1] = col < all.cols ? __ldcg(from + 4 + t) : make_uint4(0, 0, 0, 0);
    }
  } else {
    // The whole block normalizes the row, each thread some of its quads, and leaves it in shared memory, where each warp finds its columns.
    float4 v[kQuads];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int quad = threadIdx.x + i * blockDim.x;
      v[i] = quad < all.cols / 4 ? __ldcg(reinterpret_cast<const float4*>(p.residual + source) + quad) : make_float4(0, 0, 0, 0);
      squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) squares += __shfl_xor_sync(~0u, squares, mask);
    float* const of_warps = reinterpret_cast<float*>(shared + kTableBytes);
    if (lane == 0) of_warps[warp] = squares;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < static_cast<int>(blockDim.x >> 5); ++i) total += of_warps[i];
    const float inverse = rsqrtf(total / static_cast<float>(all.cols) + p.epsilon);
    auto* const row = reinterpret_cast<uint2*>(shared + one_row_shared(blockDim.x >> 5));
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int quad = threadIdx.x + i * blockDim.x;
      if (quad >= all.cols / 4) continue;
      const float4 n = kNormAhead ? norm[kNormAhead ? i : 0] : __ldg(reinterpret_cast<const float4*>(p.norm_weight) + quad);
      row[quad] = make_uint2(pair_of<T>(v[i].x * inverse * n.x, v[i].y * inverse * n.y), pair_of<T>(v[i].z * inverse * n.z, v[i].w * inverse * n.w));
    }
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kSlices; ++q) {
      const int col = (first_slice + q) * 512 + g * 64;
      const auto* from = reinterpret_cast<const uint4*>(row + col / 4);
      x[q][0] = col < all.cols ? from[t] : make_uint4(0, 0, 0, 0);
      x[q][1] = col < all.cols ? from[4 + t] : make_uint4(0, 0, 0, 0);
    }
  }

  const unsigned lane4 = lane * 4;
  float* turn = sums;
  int summing = 0;  // which warp adds the warps' sums of this unit
  while (unit < units) {
    const int next_unit = unit + step;
    const bool more = next_unit < units;
    const std::byte* next_codes = codes;
    Scales next_scales{};
    if (more) {
      const TilePlace at = place(next_unit);
      next_codes = codes_of(at);
      scales_of(at, next_scales);
    }
    float low = 0, high = 0;
#pragma unroll
    for (int q = 0; q < kSlices; ++q) {
      float c[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
#pragma unroll
      for (int b = 0; b < 8; ++b) {
        const int i = q * 8 + b, ahead = i + kRing;
        const uint4& v = ring[i % kRing];
        const unsigned mine = g == b ? ~0u : 0u;
        const auto two = [&](float(&sum)[4], unsigned word, unsigned b0, unsigned b1, bool first) {
          const unsigned at = address_of(word, 0, lane4);
          multiply_add<T>(sum, first ? pair_at<kOrdered>(at) : pair_at<false>(at), pair_at<false>(address_of(word, 1, lane4)),
                          pair_at<false>(address_of(word, 2, lane4)), pair_at<false>(address_of(word, 3, lane4)), masked(b0, mine), masked(b1, mine));
        };
        two(c, v.x, x[q][0].x, x[q][0].y, true);
        two(e, v.y, x[q][0].z, x[q][0].w, false);
        two(c, v.z, x[q][1].x, x[q][1].y, false);
        two(e, v.w, x[q][1].z, x[q][1].w, false);
        if (ahead < kSlices * 8) {  // after the block's last use, so that the load needs no other registers
          if (ahead / 8 < my_slices) ring[i % kRing] = load_once<kOrdered>(codes + ahead * 512);
        } else if (more && (ahead - kSlices * 8) / 8 < my_slices) {
          ring[i % kRing] = load_once<kOrdered>(next_codes + (ahead - kSlices * 8) * 512);
        }
      }
      if (q < my_slices) {
        if constexpr (kNested) {
          const unsigned s = scales.codes[q];
          low += (c[0] + e[0]) * fmaf(scale_at(address_of(s, 0, lane4)), scales.low[q], scales.offset) +
                 (c[1] + e[1]) * fmaf(scale_at(address_of(s, 1, lane4)), scales.low[q], scales.offset);
          high += (c[2] + e[2]) * fmaf(scale_at(address_of(s, 2, lane4)), scales.high[q], scales.offset) +
                  (c[3] + e[3]) * fmaf(scale_at(address_of(s, 3, lane4)), scales.high[q], scales.offset);
        } else {
          low += (c[0] + e[0]) * scales.plain[q].x + (c[1] + e[1]) * scales.plain[q].y;
          high += (c[2] + e[2]) * scales.plain[q].z + (c[3] + e[3]) * scales.plain[q].w;
        }
      }
    }
    low += __shfl_xor_sync(~0u, low, 1), high += __shfl_xor_sync(~0u, high, 1);
    low += __shfl_xor_sync(~0u, low, 2), high += __shfl_xor_sync(~0u, high, 2);
    float* const mine = turn + in_group * 16;
    if (t == 0) mine[g] = low, mine[g + 8] = high;
    group_barrier(group, group_warps * 32);
    if (in_group == summing) {
      const int upper = lane >> 4, r = lane & 15;  // when gated the upper lanes have the other matrix
      const TilePlace at = all.gated ? TilePlace{upper, unit} : place_of(all, unit);
      const int row = at.tile * 16 + r;
      float total = upper == 0 ? former(all, all.matrix[at.product], row, pair_index) : 0;
      if (upper == 0 || all.gated) {
        for (int i = 0; i < p.slice_warps; ++i) total += turn[(upper * p.slice_warps + i) * 16 + r];
      }
      total += bias_of(all.matrix[at.product], row);
      if (all.gated) {
        const float up = __shfl_down_sync(~0u, total, 16);
        total = activated(all.activation, total) * up;
      }
      if (upper == 0) put<T>(all, all.matrix[at.product], row, pair_index, total);
    }
    turn = turn == sums ? sums + group_warps * 16 : sums;
    summing = summing + 1 < group_warps ? summing + 1 : 0;
    unit = next_unit, codes = next_codes, scales = next_scales;
  }
}

// The widest matrix, in slices, that these kernels take.
constexpr int most_slices(bool gated) { return gated ? 32 : 64; }
constexpr int kOneRowMostWarps = 28, kSliceRowBytes = 1024;  // of a block; of a slice of a normalized row
constexpr int kOneRowSharedPercent = 72;  // two blocks of a narrow matrix; the rest holds weights on their way to registers

// Which instance, and how many groups a block has.
template <bool kNested, bool kExperts>
void launch_one(const Launch& how, OneRow p, const char* name) {
  struct Kernel {
    void (*kernel)(OneRow);
    int slices, most_warps, resident;  // slices of a warp; warps of a block; blocks of a multiprocessor
  };
  static const Kernel all[] = {
      {one_row<bf16, kNested, 1, 8, 256, 2, false, kExperts>, 1, 8, 2},   // narrow
      {one_row<bf16, kNested, 1, 8, 512, 1, false, kExperts>, 1, 16, 1},  // narrow and gated
      {one_row<bf16, kNested, 1, 4, kOneRowMostWarps * 32, 1, true, kExperts>, 1, kOneRowMostWarps, 1},
      {one_row<bf16, kNested, 2, 8, 512, 1, false, kExperts>, 2, 16, 1},
      {one_row<bf16, kNested, 4, 8, 512, 1, false, kExperts>, 4, 16, 1},
  };
  static OncePerDevice once;
  if (once.first(*how.device)) {
    for (const Kernel& k : all) {
      allow_shared(k.kernel, std::min<size_t>(one_row_shared(k.most_warps) + most_slices(false) * kSliceRowBytes, how.device->shared_per_block), "tile4_one_row");
      prefer_shared(k.kernel, kOneRowSharedPercent, "tile4_one_row");
    }
  }
  const int slices = p.products.slices, wide = p.products.gated ? 2 : 1, processors = how.device->multiprocessors;
  const bool one_round = p.products.tiles <= 2 * processors && !kExperts;  // a small matrix: what counts is how soon all loads are on their way
  const Kernel& k = all[wide == 2 ? (slices <= 8 ? 1 : slices <= 16 ? 3 : 4) : slices <= 8 && !one_round ? 0 : slices <= 28 ? 2 : slices <= 32 ? 3 : 4];
  p.slice_warps = (slices + k.slices - 1) / k.slices;
  const int units = p.products.tiles / wide, group_warps = p.slice_warps * wide;
  p.groups = std::max(1, std::min({k.most_warps / group_warps, 8, kExperts ? 8 : (units + processors * k.resident - 1) / (processors * k.resident)}));
  const int warps = group_warps * p.groups;
  const int blocks = kExperts ? processors * k.resident : std::min((units + p.groups - 1) / p.groups, processors * k.resident);
  const int row = p.residual != nullptr ? slices * kSliceRowBytes : 0;
  launch(how, k.kernel, static_cast<unsigned>(blocks), warps * 32, one_row_shared(warps) + row, name, p);
}

}  // namespace tandem::cuda
