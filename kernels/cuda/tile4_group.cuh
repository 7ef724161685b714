// 2 .. 32 rows of activations on compute capability 9.0: wgmma with the weights as the operand in registers. A warpgroup has four row tiles
// at a time (a unit; when gated two tiles of gate and the same two of up), a warp each, and a run of slices; the run's activations stay in
// shared memory for the whole launch, where all four warps' products read them once: that is what makes many rows cheap. Each warp has a
// stream of weights of its own, through four stages of two blocks of 64 columns in shared memory: had registers to wait for them, ptxas
// would make the oldest wait for the youngest. While the products of a block run, the codes of the next become numbers; a block's sums are
// scaled when it has ended. Where the run is not the whole width the sums of `splits` blocks meet in scratch, and one of them adds
// them up, always in the same order.
//
// With kExperts the rows are pairs of a row and one of its experts, in the order of the lists that route() wrote; an item is up to kTokens
// pairs of one expert. A block has consecutive tasks of all (item, unit), so that it seldom changes the expert.
//
// A tile's 16 bytes of a lane are what its registers need, so the columns of activations are exchanged to match: within 32 columns, pair
// 4 t + 2 o + h of the weights' order (t: lane % 4) is pair t of depth piece 2 o + h.
#pragma once
#include <type_traits>

#include "kernels/base/cuda/bulk.cuh"
#include "kernels/cuda/tile4.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace tandem::cuda {

constexpr int kMostWarpgroups = 4;

struct GroupRows {
  TileProducts products;
  int32_t splits = 1, first_unit = 0, end_unit = 0;
  const bf16* values = nullptr;
  int64_t stride = 0;
  const int32_t* row_of = nullptr;
  float4* partial = nullptr;    // [units][splits][4 tiles][kTokens / 8][32 lanes]
  unsigned* arrived = nullptr;  // [units]
  // kExperts: begin[local_experts + 1] of the pairs, where each expert's weights lie; row_of is that of the pairs; units are those of an item.
  const int32_t* begin = nullptr;
  const std::byte* const* data[2] = {};
  int32_t local_experts = 0, most_items = 0;
};

struct GroupItem {
  const std::byte* data[2];
  int32_t first_pair, count;
};

constexpr int kStages = 4, kStageBytes = 1024, kScaleBytes = 512;
constexpr int kWarpBytes = kStages * (kStageBytes + 8) + kScaleBytes;  // stages, their barriers, scales of a slice

// Shared memory: table, activations, sums that no scratch takes, what each warp's stream needs, items.
inline int group_rows_shared(int tokens, int warpgroups, const GroupRows& p) {
  const int run = (p.products.slices + p.splits - 1) / p.splits;
  return kTableBytes + run * tokens * 1024 + (p.splits == 1 ? warpgroups * tokens * 256 : 0) + warpgroups * 4 * kWarpBytes +
         (p.most_items > 0 ? 16 + p.most_items * static_cast<int>(sizeof(GroupItem)) : 0);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// What the block's threads wrote before a barrier is seen by who reads the counter with arrivals().
__device__ __forceinline__ void arrive(unsigned* counter) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory"); }
__device__ __forceinline__ unsigned arrivals(const unsigned* counter) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(counter) : "memory");
  return v;
}
#endif

template <bool kNested, int kTokens, bool kExperts>
__global__ void __launch_bounds__(kMostWarpgroups * 128, 1) group_rows(const __grid_constant__ GroupRows p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kColumns = kTokens / 8;
  extern __shared__ __align__(1024) unsigned char shared[];
  const TileProducts& all = p.products;
  // By shuffle, so that the compiler knows that a warp's lanes agree: descriptors stay in uniform registers.
  const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), slot = warp & 3, group = warp >> 2, groups = blockDim.x >> 7;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int split = blockIdx.x % p.splits, first_slice = split * all.slices / p.splits, run = (split + 1) * all.slices / p.splits - first_slice;
  const int blocks = gridDim.x / p.splits, block = blockIdx.x / p.splits, units = p.end_unit - p.first_unit;
  unsigned char* const activations = shared + kTableBytes;
  unsigned char* const warps = activations + run * kTokens * 1024 + (p.splits == 1 ? groups * kTokens * 256 : 0);
  let_next_begin();
  auto* const item_count = reinterpret_cast<int*>(warps + groups * 4 * kWarpBytes);
  auto* const items = reinterpret_cast<GroupItem*>(item_count + 4);
  int item = 0, first_row = 0, count = all.rows;
  const auto* const map = reinterpret_cast<const float*>((kExperts ? p.data[0][0] : all.matrix[0].data) + all.matrix[0].map_offset);
  TableRow<bf16, kNested> table;
  table.load(map, threadIdx.x & 255);

  // This warp's tile of a unit; tile -1: none.
  const auto place = [&](int unit) {
    if (all.gated) {
      const int tile = unit * 2 + (slot & 1);
      return TilePlace{slot >> 1, tile < all.matrix[1].first_tile ? tile : -1};
    }
    return unit * 4 + slot < all.tiles ? place_of(all, unit * 4 + slot) : TilePlace{0, -1};
  };
  // Nothing is left out: where there is no tile the first is read, and its scales count as zero.
  struct Source {
    const std::byte *codes, *scales, *nested;
    float offset;
    bool there;
  };
  const auto source_of = [&](int unit) {
    const TilePlace at = place(unit);
    const TileMatrix& m = all.matrix[at.product];
    const std::byte* const data = kExperts ? items[item].data[at.product] : m.data;
    const size_t pair = static_cast<size_t>(max(at.tile, 0)) * all.slices + first_slice;
    return Source{data + pair * 4096, data + m.scales_offset + pair * (kNested ? 128 : 512), data + m.nested_offset + pair * 64,
                  kNested ? __ldg(reinterpret_cast<const float*>(data + m.map_offset) + 16) : 0.0f, at.tile >= 0};
  };
  const unsigned char* const stages = warps + warp * kWarpBytes;
  const unsigned char* const scales = stages + kStages * kStageBytes;
  const auto stages_at = static_cast<uint32_t>(__cvta_generic_to_shared(stages)), scales_at = stages_at + kStages * kStageBytes, barriers = scales_at + kScaleBytes;
  // Blocks 2 stage and 2 stage + 1 of a slice; its scales with the first.
  const auto fetch = [&](const std::byte* codes, const std::byte* of_scales, const std::byte* of_nested, int stage) {
    const uint32_t barrier = barriers + stage * 8;
    if (elected()) {
      expect_bytes(barrier, kStageBytes + (stage > 0 ? 0 : kNested ? 192 : 512));
      copy_bulk(stages_at + stage * kStageBytes, codes + stage * kStageBytes, kStageBytes, barrier);
      if (stage > 0) return;
      copy_bulk(scales_at, of_scales, kNested ? 128 : 512, barrier);
      if constexpr (kNested) copy_bulk(scales_at + 128, of_nested, 64, barrier);
    }
  };

  const auto begin_stream = [&](const Source& s) {
    for (int i = 0; i < kStages; ++i) fetch(s.codes, s.scales, s.nested, i);
  };

  if (lane == 0) {
    for (int i = 0; i < kStages; ++i) make_barrier(barriers + i * 8);
  }
  __syncwarp();
  int unit = p.first_unit + block * groups + group, end = p.end_unit, stride = blocks * groups;
  int task = 0, task_end = 0;  // kExperts
  Source now{};
  if constexpr (!kExperts) {
    now = source_of(min(unit, end - 1));
    if (unit < end) begin_stream(now);
    store_table(table, shared, map);
    wait_for_previous();
  } else {  // which experts have rows is known only now
    store_table(table, shared, map);
    wait_for_previous();
    for (int e = threadIdx.x; e < p.local_experts; e += blockDim.x) {
      int at = 0, begin = p.begin[0];
      for (int before = 0; before < e; ++before) {
        const int last = p.begin[before + 1];
        at += (last - begin + kTokens - 1) / kTokens;
        begin = last;
      }
      const int last = p.begin[e + 1];
      for (; begin < last; begin += kTokens, ++at) {
        items[at] = {{p.data[0][e], all.products > 1 ? p.data[1][e] : nullptr}, begin, min(kTokens, last - begin)};
      }
      if (e == p.local_experts - 1) *item_count = at;
    }
    __syncthreads();
    const int64_t tasks = static_cast<int64_t>(*item_count) * units;
    task = static_cast<int>(tasks * block / blocks), task_end = static_cast<int>(tasks * (block + 1) / blocks);
  }

  // Activations: [block of 64 columns] panels of kTokens rows. A warp has eight rows of 32 columns at a time, and asks for eight such
  // pieces before it stores the first.
  constexpr int kAtOnce = 8;
  const auto fill = [&] {
    for (int first = warp; first < kColumns * run * 16; first += kAtOnce * groups * 4) {
      uint4 v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * groups * 4, token = i % kColumns * 8 + g, col = (first_slice * 16 + i / kColumns) * 32 + t * 8;
        v[k] = make_uint4(0, 0, 0, 0);
        if (i >= kColumns * run * 16 || token >= count || col >= all.cols) continue;
        v[k] = __ldcg(reinterpret_cast<const uint4*>(p.values + (p.row_of != nullptr ? p.row_of[first_row + token] : first_row + token) * p.stride + col));
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * groups * 4, piece = i / kColumns, token = i % kColumns * 8 + g;
        if (i >= kColumns * run * 16) break;
        unsigned char* const to = activations + (piece >> 1) * kTokens * 128 + token * 128 + 4 * t;
        const int chunk = (piece & 1) * 4, turn = token & 7;
        *reinterpret_cast<unsigned*>(to + ((chunk ^ turn) * 16)) = v[k].x;
        *reinterpret_cast<unsigned*>(to + (((chunk + 1) ^ turn) * 16)) = v[k].y;
        *reinterpret_cast<unsigned*>(to + (((chunk + 2) ^ turn) * 16)) = v[k].z;
        *reinterpret_cast<unsigned*>(to + (((chunk + 3) ^ turn) * 16)) = v[k].w;
      }
    }
    publish_to_products();
    __syncthreads();
  };

  const unsigned lane4 = lane * 4;
  const uint32_t panels = (kSharedBegin + kTableBytes) >> 4;  // where activations lie

  // A float4 is what a lane holds of (tile, column group n): rows g and g + 8, activation rows 2 t and 2 t + 1. The sums of a unit lie in
  // shared memory or, of all splits, in scratch.
  constexpr int kUnit = 4 * kColumns * 32;  // float4s of a unit's sums
  const bool leads = (threadIdx.x & 127) == 0;
  float4* const here = reinterpret_cast<float4*>(activations + run * kTokens * 1024) + group * kUnit;
  const auto barrier = [group] { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); };
  // `kMine` pieces of a lane: everything is asked for before the first is put.
  const auto put_pieces = [&]<int kMine, bool kGated>(int id, std::integral_constant<int, kMine>, std::bool_constant<kGated>) {
    const float4* const sums = p.splits == 1 ? here : p.partial + static_cast<size_t>(id) * p.splits * kUnit;
    const int of_item = kExperts ? id / units : 0, of = p.first_unit + id - of_item * units;
    const int from_row = kExperts ? items[of_item].first_pair : 0, rows = kExperts ? items[of_item].count : all.rows;
    const int tile = kGated ? slot & 1 : slot, first_n = kGated ? slot >> 1 : 0;  // of gated units two warps have a tile's pieces in turn
    constexpr int kStep = kGated ? 2 : 1;
    const TilePlace at = kGated ? TilePlace{0, of * 2 + tile < all.matrix[1].first_tile ? of * 2 + tile : -1} : place(of);
    if (at.tile < 0 || first_n >= kColumns) return;
    const TileMatrix& m = all.matrix[at.product];
    const int row = at.tile * 16 + g;
    const float4* const from = sums + (tile * kColumns + first_n) * 32 + lane;
    const int64_t corner = (from_row + first_n * 8 + 2 * t) * p.products.y_stride + m.first_row + row;
    const auto inside = [&](int k, int j) { return (first_n + k * kStep) * 8 + 2 * t + j % 2 < rows && row + j / 2 * 8 < m.rows; };
    const auto place_of_value = [&](int k, int j) { return corner + (k * kStep * 8 + j % 2) * p.products.y_stride + j / 2 * 8; };
    float value[kMine][4], second[kGated ? kMine : 1][4];
    const auto add = [&](float (&to)[4], const float4* what, bool is_first) {
      const float4 v = p.splits == 1 ? *what : __ldcg(what);
      to[0] = is_first ? v.x : to[0] + v.x, to[1] = is_first ? v.y : to[1] + v.y, to[2] = is_first ? v.z : to[2] + v.z, to[3] = is_first ? v.w : to[3] + v.w;
    };
    float before[kMine][4] = {};
    if (all.output == LinearOutput::add_f32) {
#pragma unroll
      for (int k = 0; k < kMine; ++k) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (inside(k, j)) before[k][j] = static_cast<const float*>(all.y)[place_of_value(k, j)];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      add(value[k], from + k * kStep * 32, true);
      if constexpr (kGated) add(second[k], from + 2 * kColumns * 32 + k * kStep * 32, true);
    }
#pragma unroll 4
    for (int s = 1; s < p.splits; ++s) {
#pragma unroll
      for (int k = 0; k < kMine; ++k) {
        add(value[k], from + s * kUnit + k * kStep * 32, false);
        if constexpr (kGated) add(second[k], from + s * kUnit + 2 * kColumns * 32 + k * kStep * 32, false);
      }
    }
    const float bias[2] = {bias_of(m, row), bias_of(m, row + 8)}, up_bias[2] = {kGated ? bias_of(all.matrix[1], row) : 0, kGated ? bias_of(all.matrix[1], row + 8) : 0};
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (!inside(k, j)) continue;
        float v = before[k][j] + value[k][j] + bias[j / 2];
        if constexpr (kGated) {
          v = activated(all.activation, v) * (second[k][j] + up_bias[j / 2]);
        } else if (all.output == LinearOutput::activated) {
          v = activated(all.activation, v);
        }
        if (all.output == LinearOutput::store_f32) {
          v *= all.scale;
          if (all.soft_cap > 0) v = capped(v, all.soft_cap);
        }
        if (all.output == LinearOutput::add_f32 || all.output == LinearOutput::store_f32) {
          static_cast<float*>(all.y)[place_of_value(k, j)] = v;
        } else {
          static_cast<bf16*>(all.y)[place_of_value(k, j)] = from_float<bf16>(v);
        }
      }
    }
  };
  const auto put_unit = [&](int id) {
    if (all.gated) {
      put_pieces(id, std::integral_constant<int, (kColumns + 1) / 2>{}, std::true_type{});
    } else {
      put_pieces(id, std::integral_constant<int, kColumns>{}, std::false_type{});
    }
  };
  // Once the sums of all splits are there. All blocks of the grid are on the device at once, or will be without this one's doing.
  const auto finish = [&](int id) {
    unsigned* const counter = p.arrived + id;
    if (lane == 0) {
      while (arrivals(counter) < static_cast<unsigned>(p.splits)) __nanosleep(20);
    }
    barrier();
    if (leads) *counter = 0;
    put_unit(id);
  };
  int waiting = -1, turn = 0;
  uint32_t parity = 0;
  do {
    if constexpr (kExperts) {
      if (task >= task_end) break;
      item = task / units;
      first_row = items[item].first_pair, count = items[item].count;
      const int first = task - item * units, many = min(units - first, task_end - task);
      unit = p.first_unit + first + group, end = p.first_unit + first + many, stride = groups;
      task += many;
      now = source_of(min(unit, end - 1));
      if (unit < end) begin_stream(now);
    }
    fill();
    for (; unit < end; unit += stride) {
      const int id = item * units + unit - p.first_unit;
      float sum[kColumns][4] = {};
      const bool more_units = unit + stride < end;
      const Source next = source_of(more_units ? unit + stride : unit);
#pragma unroll 1
      for (int step = 0; step < run; ++step, parity ^= 1) {
        const bool last = step + 1 == run, more = !last || more_units;
        const std::byte* const next_codes = last ? next.codes : now.codes + (step + 1) * 4096;
        const std::byte* const next_scales = last ? next.scales : now.scales + (step + 1) * (kNested ? 128 : 512);
        const std::byte* const next_nested = last ? next.nested : now.nested + (step + 1) * 64;
        const auto fetch_next = [&](int stage) {  // the stage has been read by all lanes
          __syncwarp();
          if (more) fetch(next_codes, next_scales, next_nested, stage);
        };
        uint4 words[2];  // of the next blocks
        const auto read_words = [&](int b) { words[b & 1] = *reinterpret_cast<const uint4*>(stages + b * 512 + lane * 16); };
        wait_for_bytes(barriers, parity);
        read_words(0);
        read_words(1);
        // Rows g and g + 8 of blocks 2 t and 2 t + 1; a block's are fetched from the lane of its quad that has them.
        float low[2], high[2];
        if constexpr (kNested) {
          const unsigned codes = *reinterpret_cast<const unsigned*>(scales + lane * 4);
          const float of_low = *reinterpret_cast<const float*>(scales + 128 + g * 4), of_high = *reinterpret_cast<const float*>(scales + 160 + g * 4);
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            low[odd] = fmaf(scale_at(address_of(codes, odd, lane4)), of_low, now.offset);
            high[odd] = fmaf(scale_at(address_of(codes, 2 + odd, lane4)), of_high, now.offset);
          }
        } else {
          const float4 plain = *reinterpret_cast<const float4*>(scales + lane * 16);
          low[0] = plain.x, low[1] = plain.y, high[0] = plain.z, high[1] = plain.w;
        }
        if (!now.there) low[0] = low[1] = high[0] = high[1] = 0;
        uint32_t a[2][4][4];
        float block[2][kColumns][4];
        const auto look_up = [&](int b, int q) {
          const uint4& v = words[b & 1];
          const unsigned word = q == 0 ? v.x : q == 1 ? v.y : q == 2 ? v.z : v.w;
#pragma unroll
          for (int i = 0; i < 4; ++i) a[b & 1][q][i] = pair_at<false>(address_of(word, i, lane4));
        };
        const auto fold = [&](int b) {
          settle(block[b & 1]);
          const float of_low = __shfl_sync(~0u, low[b & 1], (lane & ~3) + (b >> 1)), of_high = __shfl_sync(~0u, high[b & 1], (lane & ~3) + (b >> 1));
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            sum[n][0] = fmaf(block[b & 1][n][0], of_low, sum[n][0]), sum[n][1] = fmaf(block[b & 1][n][1], of_low, sum[n][1]);
            sum[n][2] = fmaf(block[b & 1][n][2], of_high, sum[n][2]), sum[n][3] = fmaf(block[b & 1][n][3], of_high, sum[n][3]);
          }
        };
        const uint32_t panel = panels + static_cast<uint32_t>(step * kTokens * 64);  // 1024 bytes a row and slice, in units of 16
#pragma unroll
        for (int q = 0; q < 4; ++q) look_up(0, q);
#pragma unroll
        for (int b = 0; b < 8; ++b) {
          if (b % 2 == 1) fetch_next(b / 2);
          if (b < 6) {
            if (b % 2 == 0) wait_for_bytes(barriers + (b / 2 + 1) * 8, parity);
            read_words(b + 2);
          }
          begin_products();
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const uint64_t at = panel_descriptor(0) | (panel + b * kTokens * 8 + q * 2);
            if (q == 0) {
              multiply_group<false>(block[b & 1], a[b & 1][q], at);
            } else {
              multiply_group<true>(block[b & 1], a[b & 1][q], at);
            }
          }
          commit_products();
          if (b > 0) {  // the block before has ended: its registers are free
            wait_products<1>();
#pragma unroll
            for (int q = 0; q < 4; ++q) keep(a[(b - 1) & 1][q]);
          }
#pragma unroll
          for (int q = 0; q < 4 && b < 7; ++q) look_up(b + 1, q);
          if (b > 0) fold(b - 1);
        }
        wait_products<0>();
#pragma unroll
        for (int q = 0; q < 4; ++q) keep(a[1][q]);
        fold(7);
      }
      now = next;

      if (p.splits == 1) {
#pragma unroll
        for (int n = 0; n < kColumns; ++n) here[(slot * kColumns + n) * 32 + lane] = make_float4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]);
        barrier();
        put_unit(id);
        barrier();  // the sums have been read
        continue;
      }
      float4* const own = p.partial + (static_cast<size_t>(id) * p.splits + split) * kUnit + slot * kColumns * 32 + lane;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) __stcg(own + n * 32, make_float4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]));
      barrier();
      if (leads) arrive(p.arrived + id);
      // The splits put units in turn, each a unit later: by then the others' sums are there, most often.
      if (waiting >= 0) finish(waiting);
      waiting = turn == split ? id : -1;
      turn = turn + 1 < p.splits ? turn + 1 : 0;
    }
    if constexpr (kExperts) __syncthreads();  // the item's activations have been read
  } while (kExperts);
  if (waiting >= 0) finish(waiting);
#endif
}

struct GroupKernel {  // an instance of group_rows
  void (*kernel)(GroupRows);
  int tokens;
};
template <bool kNested, bool kExperts>
const GroupKernel& group_kernel(const DeviceInfo& device, int rows) {
  static const GroupKernel all[] = {{group_rows<kNested, 8, kExperts>, 8}, {group_rows<kNested, 16, kExperts>, 16}, {group_rows<kNested, 32, kExperts>, 32}};
  static OncePerDevice once;
  if (once.first(device)) {
    for (const GroupKernel& k : all) allow_shared(k.kernel, device.shared_per_block, "tile4_group");
  }
  return rows <= 8 ? all[0] : rows <= 16 ? all[1] : all[2];
}
// Shares the work out and launches. `items`: how many times the matrix is multiplied (1, or the items of experts that are likely).
void launch_group(const Launch& how, GroupRows p, const GroupKernel& kernel, int items, const LinearScratch& scratch);

}  // namespace tandem::cuda
