// 2 .. 32 rows of activations: the mma's columns are rows, kTokens = 8 * kColumns of them. A block has row_warps x k_warps warps and a run
// of slices, whose activations stay in shared memory for the whole launch. A warp takes kTiles row tiles at a time (a unit; when gated the
// same tile of gate and up) and every k_warps-th slice of the run; the k_warps' sums meet in shared memory. Where the activations of all
// columns do not fit beside the table the columns are shared out among `splits` blocks, whose sums meet in scratch: the last warp to
// arrive adds them. All sums are taken in a fixed order.
//
// With kExperts the rows are pairs of a row and one of its experts, in the order of the lists that route() wrote; an item is up to kTokens
// pairs of one expert. A block has consecutive tasks of all (item, run of units), so that it seldom changes the expert.
#pragma once
#include "kernels/cuda/tile4.cuh"

namespace tandem::cuda {

struct SomeRows {
  TileProducts products;
  int32_t row_warps = 1, k_warps = 1, steps = 1;  // steps: slices of a warp
  int32_t splits = 1, first_unit = 0, end_unit = 0;
  const void* values = nullptr;  // element
  int64_t stride = 0;
  const int32_t* row_of = nullptr;
  float4* partial = nullptr;     // [items][units][splits][kTiles * kColumns][32 lanes]
  unsigned* arrived = nullptr;   // [items][units][k_warps]
  // kExperts: begin[local_experts + 1] of the pairs, where each expert's weights lie; row_of is that of the pairs.
  const int32_t* begin = nullptr;
  const std::byte* const* data[2] = {};
  int32_t local_experts = 0, most_items = 0;
};

struct ExpertItem {
  const std::byte* data[2];
  int32_t first_pair, count;
  float offset[2];  // of the nested statistics
};

// Shared memory: table, activations, sums of the warps.
inline int some_rows_shared(int columns, int tiles, const SomeRows& p) {
  return kTableBytes + p.steps * p.k_warps * columns * 8 * 1024 +
         (p.k_warps > 1 || p.splits == 1 ? p.row_warps * p.k_warps * tiles * columns * 512 : 0) +
         (p.most_items > 0 ? 16 + p.most_items * static_cast<int>(sizeof(ExpertItem)) : 0);
}

__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {  // 16 bytes, or zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// kRing: blocks of 64 of each tile whose loads are in flight, 4 or 8.
template <typename T, bool kNested, int kColumns, int kTiles, int kRing, int kThreads, bool kExperts>
__global__ void __launch_bounds__(kThreads, 1) some_rows(const __grid_constant__ SomeRows p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int kTokens = 8 * kColumns;
  const TileProducts& all = p.products;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, warps = blockDim.x >> 5;
  const int row_warp = warp / p.k_warps, k_warp = warp - row_warp * p.k_warps;
  const int split = blockIdx.x % p.splits, run = p.steps * p.k_warps, first_slice = split * run;
  const int groups = (p.end_unit - p.first_unit + p.row_warps - 1) / p.row_warps;  // tasks, or tasks of an item
  unsigned char* const activations = shared + kTableBytes;
  let_next_begin();
  const auto* const map = reinterpret_cast<const float*>((kExperts ? p.data[0][0] : all.matrix[0].data) + all.matrix[0].map_offset);
  TableRow<T, kNested> table;
  table.load(map, threadIdx.x & 255);

  // Tile r of a unit; tile -1: none.
  const auto place = [&](int unit, int r) {
    if (unit >= p.end_unit) return TilePlace{0, -1};
    if (all.gated) return TilePlace{r, unit};
    return unit * kTiles + r < all.tiles ? place_of(all, unit * kTiles + r) : TilePlace{0, -1};
  };
  // Where a warp's loads of a (unit, slice) begin. Loads are never left out: what does not exist is read from the first tile, and its
  // scales are zero.
  struct Source {
    const std::byte* codes;
    const std::byte* scales;
    const float* nested;
    bool there;
  };
  float4* const sums = reinterpret_cast<float4*>(activations + run * kTokens * 1024) + lane;
  int* const item_count = reinterpret_cast<int*>(sums - lane + (p.k_warps > 1 || p.splits == 1 ? warps * kTiles * kColumns * 32 : 0));
  auto* const items = reinterpret_cast<ExpertItem*>(item_count + 4);
  int task = blockIdx.x / p.splits, task_end = groups, task_step = gridDim.x / p.splits;
  const auto unit_of = [&](int of_task) { return p.first_unit + (kExperts ? of_task % groups : of_task) * p.row_warps + row_warp; };
  const auto source_of = [&](int of_task, int r, int slice) {
    TilePlace at = place(unit_of(of_task), r);
    const bool there = at.tile >= 0 && slice < all.slices && of_task < task_end;
    if (!there) at = {0, 0}, slice = 0;
    const TileMatrix& m = all.matrix[at.product];
    const std::byte* const data = kExperts ? there ? items[of_task / groups].data[at.product] : p.data[0][0] : m.data;
    const size_t pair = static_cast<size_t>(at.tile) * all.slices + slice;
    return Source{data + (pair * 256 + lane) * 16, data + m.scales_offset + (pair * 32 + g * 4) * (kNested ? 4 : 16),
                  reinterpret_cast<const float*>(data + m.nested_offset) + pair * 16 + g, there};
  };
  struct Scales {  // of a (tile, slice): nested
    uint4 codes;
    float low, high;
  };
  const auto scales_of = [&](const Source& s) {
    Scales v{};
    if constexpr (kNested) {
      v.codes = __ldg(reinterpret_cast<const uint4*>(s.scales));
      v.low = s.there ? __ldg(s.nested) : 0, v.high = s.there ? __ldg(s.nested + 8) : 0;
    }
    return v;
  };

  if constexpr (kExperts) {  // which experts have rows is known only now
    store_table(table, shared, map);
    wait_for_previous();
    for (int e = threadIdx.x; e < p.local_experts; e += blockDim.x) {
      int at = 0, begin = p.begin[0];
      for (int before = 0; before < e; ++before) {
        const int end = p.begin[before + 1];
        at += (end - begin + kTokens - 1) / kTokens;
        begin = end;
      }
      const int end = p.begin[e + 1];
      for (; begin < end; begin += kTokens, ++at) {
        ExpertItem& item = items[at];
        item.first_pair = begin, item.count = min(kTokens, end - begin);
        for (int i = 0; i < all.products; ++i) {
          item.data[i] = p.data[i][e];
          item.offset[i] = kNested ? __ldg(reinterpret_cast<const float*>(item.data[i] + all.matrix[i].map_offset) + 16) : 0;
        }
      }
      if (e == p.local_experts - 1) *item_count = at;
    }
    __syncthreads();
    const int tasks = *item_count * groups;
    task_end = static_cast<int>(static_cast<int64_t>(tasks) * (task + 1) / task_step), task = static_cast<int>(static_cast<int64_t>(tasks) * task / task_step);
    task_step = 1;
  }
  Source now[kTiles];
  Scales scales[kTiles];
  uint4 ring[kRing][kTiles];
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    now[r] = source_of(task, r, first_slice + k_warp);
#pragma unroll
    for (int i = 0; i < kRing; ++i) ring[i][r] = load_once<true>(now[r].codes + i * 512);
    scales[r] = scales_of(now[r]);
  }
  float offsets[3] = {};  // of the nested statistics
  if constexpr (kNested && !kExperts) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (i < all.products) offsets[i] = __ldg(reinterpret_cast<const float*>(all.matrix[i].data + all.matrix[i].map_offset) + 16);
    }
  }
  if constexpr (!kExperts) {
    store_table(table, shared, map);
    wait_for_previous();
  }

  // Activations: [slice][block of 64][row][8 pieces of 16 bytes], the halves of odd rows exchanged against bank conflicts.
  const auto fetch = [&](int first_row, int count) {
    for (int token = warp; token < kTokens; token += warps) {
      const bool real = token < count;
      const int64_t row = real && p.row_of != nullptr ? p.row_of[first_row + token] : first_row + token;
      const T* const from = static_cast<const T*>(p.values) + row * p.stride + first_slice * 512;
      for (int j = lane; j < run * 64; j += 32) {
        const bool there = real && first_slice * 512 + j * 8 < all.cols;
        copy_async(activations + ((j >> 3) * kTokens + token) * 128 + ((j & 7) ^ ((token & 1) << 2)) * 16, there ? from + j * 8 : p.values, there);
      }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
  };
  int first_row = 0, count = all.rows, item = -1;
  if constexpr (!kExperts) fetch(0, count);

  const unsigned lane4 = lane * 4;
  const unsigned char* const x_low = activations + k_warp * kTokens * 1024 + g * 128 + (t ^ ((g & 1) << 2)) * 16;
  const unsigned char* const x_high = activations + k_warp * kTokens * 1024 + g * 128 + (t ^ ((g & 1) << 2) ^ 4) * 16;
  for (; task < task_end; task += task_step) {
    const int unit = unit_of(task);
    if constexpr (kExperts) {
      if (task / groups != item) {  // the block's warps have all done with the last item: a barrier ends every task
        item = task / groups;
        first_row = items[item].first_pair, count = items[item].count;
        offsets[0] = items[item].offset[0], offsets[1] = all.products > 1 ? items[item].offset[1] : 0;
        fetch(first_row, count);
      }
    }
    float sum[kTiles][kColumns][4] = {};
    Source next[kTiles];
    Scales next_scales[kTiles];
    float offset[kTiles];
    constexpr int kTurns = 8 / kRing;  // of a step
#pragma unroll 1
    for (int turn = 0; turn < kTurns * p.steps; ++turn) {
      const int step = turn / kTurns;
      const bool first = turn % kTurns == 0, second = turn % kTurns == kTurns - 1;  // both when a step is one turn
      if (first) {
        const bool last = step + 1 == p.steps;
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
          next[r] = source_of(last ? task + task_step : task, r, first_slice + (last ? 0 : step + 1) * p.k_warps + k_warp);
          next_scales[r] = scales_of(next[r]);
          const int product = place(unit, r).product;
          offset[r] = !now[r].there ? 0 : product == 0 ? offsets[0] : product == 1 ? offsets[1] : offsets[2];
        }
      }
      const std::byte* ahead[kTiles];
      unsigned scale_words[kTiles][kRing / 2];
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
        ahead[r] = second ? next[r].codes : now[r].codes + kRing * 512;
        const uint4& s = scales[r].codes;
        scale_words[r][0] = first ? s.x : s.z, scale_words[r][1] = first ? s.y : s.w;
        if constexpr (kRing == 8) scale_words[r][2] = s.z, scale_words[r][3] = s.w;
      }
      const int x_step = step * p.k_warps * kTokens * 1024 + (first ? 0 : 4 * kTokens * 128);
#pragma unroll
      for (int b = 0; b < kRing; ++b) {
        float4 plain[kNested ? 1 : kTiles];
        if constexpr (!kNested) {
#pragma unroll
          for (int r = 0; r < kTiles; ++r) plain[r] = __ldg(reinterpret_cast<const float4*>(now[r].scales) + b / 2 + (first ? 0 : 2));
        }
        constexpr int kChains = kTiles * kColumns <= 2 && kRing == 8 ? 2 : 1;  // of dependent products
        float chain[kChains][kTiles][kColumns][4] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint4 x[kColumns];
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            x[n] = *reinterpret_cast<const uint4*>((half == 0 ? x_low : x_high) + x_step + (b * kTokens + n * 8) * 128);
          }
#pragma unroll
          for (int r = 0; r < kTiles; ++r) {
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
              const uint4& v = ring[b][r];
              const unsigned word = half == 0 ? (odd == 0 ? v.x : v.y) : (odd == 0 ? v.z : v.w);
              // The first of a block is ordered, and so are the loads: that holds each block's load between two of them.
              const unsigned first_at = address_of(word, 0, lane4);
              const unsigned a0 = half == 0 && r == 0 && odd == 0 ? pair_at<true>(first_at) : pair_at<false>(first_at);
              const unsigned a1 = pair_at<false>(address_of(word, 1, lane4)), a2 = pair_at<false>(address_of(word, 2, lane4)),
                             a3 = pair_at<false>(address_of(word, 3, lane4));
#pragma unroll
              for (int n = 0; n < kColumns; ++n) multiply_add<T>(chain[odd % kChains][r][n], a0, a1, a2, a3, odd == 0 ? x[n].x : x[n].z, odd == 0 ? x[n].y : x[n].w);
            }
            if (half == 1) ring[b][r] = load_once<true>(ahead[r] + b * 512);  // after the last use, so that the load needs no other registers
          }
        }
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
          float low, high;
          if constexpr (kNested) {
            const unsigned word = scale_words[r][b / 2];
            low = fmaf(scale_at(address_of(word, b % 2, lane4)), scales[r].low, offset[r]);
            high = fmaf(scale_at(address_of(word, 2 + b % 2, lane4)), scales[r].high, offset[r]);
          } else {
            low = !now[r].there ? 0 : b % 2 == 0 ? plain[r].x : plain[r].y;
            high = !now[r].there ? 0 : b % 2 == 0 ? plain[r].z : plain[r].w;
          }
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            float c[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) c[j] = kChains == 2 ? chain[0][r][n][j] + chain[kChains - 1][r][n][j] : chain[0][r][n][j];
            sum[r][n][0] = fmaf(c[0], low, sum[r][n][0]), sum[r][n][1] = fmaf(c[1], low, sum[r][n][1]);
            sum[r][n][2] = fmaf(c[2], high, sum[r][n][2]), sum[r][n][3] = fmaf(c[3], high, sum[r][n][3]);
          }
        }
      }
      if (second) {
#pragma unroll
        for (int r = 0; r < kTiles; ++r) now[r] = next[r], scales[r] = next_scales[r];
      }
    }

    // From here on a float4 is what a lane holds of (tile r, column group n): rows g and g + 8, activation rows 2 t and 2 t + 1. The
    // k_warps share these pieces out: piece i is warp i % k_warps' (when gated a piece is both tiles of n).
    const int item_unit = unit - p.first_unit + (kExperts ? item * (p.end_unit - p.first_unit) : 0);
    const bool direct = p.k_warps == 1 && p.splits > 1;  // to scratch
    float4* const mine = sums + warp * kTiles * kColumns * 32;
    float4* const partial = p.partial + static_cast<size_t>(item_unit) * p.splits * kTiles * kColumns * 32 + lane;
    float4* const own = partial + split * kTiles * kColumns * 32;
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const float4 v = make_float4(sum[r][n][0], sum[r][n][1], sum[r][n][2], sum[r][n][3]);
        if (!direct) {
          mine[(r * kColumns + n) * 32] = v;
        } else if (unit < p.end_unit) {
          __stcg(own + (r * kColumns + n) * 32, v);
        }
      }
    }
    if (p.k_warps > 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
    if (unit < p.end_unit) {
      const int pieces = all.gated ? kColumns : kColumns * kTiles;
      const auto add = [](float4& v, const float4& more) { v.x += more.x, v.y += more.y, v.z += more.z, v.w += more.w; };
      const auto k_sum = [&](int at) {
        const float4* const from = sums + (row_warp * p.k_warps * kTiles * kColumns + at) * 32;
        float4 v = from[0];
#pragma unroll 4
        for (int k = 1; k < p.k_warps; ++k) add(v, from[k * kTiles * kColumns * 32]);
        return v;
      };
      const auto split_sum = [&](int at) {
        float4 v = __ldcg(partial + at * 32);
#pragma unroll 4
        for (int s = 1; s < p.splits; ++s) add(v, __ldcg(partial + (s * kTiles * kColumns + at) * 32));
        return v;
      };
      const auto put_piece = [&](int r, int n, const float4& first, const float4& second) {  // second: of `up` when gated
        const TilePlace at = place(unit, r);
        if (at.tile < 0) return;
        const TileMatrix& m = all.matrix[at.product];
        float before[4];  // all four are asked for before the first is written
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = at.tile * 16 + g + j / 2 * 8, token = n * 8 + 2 * t + j % 2;
          before[j] = token < count ? former(all, m, row, first_row + token) : 0;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = at.tile * 16 + g + j / 2 * 8, token = n * 8 + 2 * t + j % 2;
          float value = before[j] + (j == 0 ? first.x : j == 1 ? first.y : j == 2 ? first.z : first.w) + bias_of(m, row);
          if (all.gated) value = activated(all.activation, value) * ((j == 0 ? second.x : j == 1 ? second.y : j == 2 ? second.z : second.w) + bias_of(all.matrix[1], row));
          if (token < count) put<T>(all, m, row, first_row + token, value);
        }
      };
      bool last_to_arrive = true;
      if (p.splits > 1) {
#pragma unroll 1
        for (int i = k_warp; i < pieces && !direct; i += p.k_warps) {
          __stcg(own + i * 32, k_sum(i));
          if (all.gated) __stcg(own + (kColumns + i) * 32, k_sum(kColumns + i));
        }
        __threadfence();
        __syncwarp();
        unsigned* const counter = p.arrived + item_unit * p.k_warps + k_warp;
        unsigned before = 0;
        if (lane == 0) {
          before = atomicAdd(counter, 1u);
          if (before == static_cast<unsigned>(p.splits) - 1) *counter = 0;
        }
        last_to_arrive = __shfl_sync(~0u, before, 0) == static_cast<unsigned>(p.splits) - 1;
        __threadfence();
      }
      if (last_to_arrive) {
#pragma unroll 1
        for (int i = k_warp; i < pieces; i += p.k_warps) {
          const float4 first = p.splits > 1 ? split_sum(i) : k_sum(i);
          const float4 second = !all.gated ? first : p.splits > 1 ? split_sum(kColumns + i) : k_sum(kColumns + i);
          put_piece(i / kColumns, i % kColumns, first, second);
        }
      }
    }
    if (kExperts || p.k_warps > 1) {  // the sums have been read
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
}

}  // namespace tandem::cuda
