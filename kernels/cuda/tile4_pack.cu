// Stored 4-bit matrices into tiles, and tiles back into rows of numbers.
#include <algorithm>

#include "kernels/base/cuda/element.cuh"
#include "kernels/cuda/tile4.h"
#include "kernels/formats/nf4.h"

namespace tandem::cuda {
namespace {

struct Stored {
  const unsigned char* codes;
  const void* absmax;          // uint8 codes or float
  const float* code_map;       // [16]
  const float* nested_absmax;  // double-quantized formats: [blocks / 256], [256], [1]
  const float* nested_map;
  const float* offset;
  int64_t first_element, whole_cols;
};
struct Tiles {
  std::byte* memory;
  Tile4 shape;
};

__device__ __forceinline__ float scale_of(const Stored& s, int64_t blocks_of_row, int64_t row, int64_t block) {
  const int64_t at = row * blocks_of_row + block;
  if (s.nested_absmax == nullptr) return static_cast<const float*>(s.absmax)[at];
  const int64_t index = (s.first_element + row * s.whole_cols) / kTile4Block + block;  // in the whole matrix
  const float value = __fmul_rn(s.nested_map[static_cast<const unsigned char*>(s.absmax)[at]], s.nested_absmax[index / kNestedBlock]);
  return __fadd_rn(value, *s.offset);  // two roundings, as the format has them
}

// One warp a (row tile, slice).
__global__ void __launch_bounds__(256) pack(const Stored s, const Tiles to) {
  wait_for_previous();  // and no let_next_begin: products read weights before they wait
  const Tile4& shape = to.shape;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  if (blockIdx.x == 0) {
    auto* map = reinterpret_cast<float*>(to.memory + shape.map_offset);
    for (int i = threadIdx.x; i < static_cast<int>(shape.map_bytes / sizeof(float)); i += blockDim.x) {
      map[i] = i < 16 ? s.code_map[i] : i == 16 && shape.nested ? *s.offset : i < 32 ? 0.0f : s.nested_map[i - 32];
    }
  }
  const int64_t blocks_of_row = shape.cols / kTile4Block, pairs = shape.row_tiles * shape.slices;
  for (int64_t pair = blockIdx.x * 8ll + (threadIdx.x >> 5); pair < pairs; pair += gridDim.x * 8ll) {
    const int64_t slice = pair % shape.slices, low = pair / shape.slices * kTile4Rows + g;
    const auto* const rows = reinterpret_cast<const unsigned*>(s.codes);
    auto* const out = reinterpret_cast<uint4*>(to.memory) + pair * 8 * 32 + lane;
    for (int b = 0; b < 8; ++b) {
      const int64_t block = slice * 8 + b;
      unsigned w[2][2] = {};  // [row][half of the block]
      for (int u = 0; u < 2; ++u) {
        const int64_t row = low + 8 * u;
        if (row >= shape.rows || block >= blocks_of_row) continue;
        const int64_t word = (row * blocks_of_row + block) * 8 + t;  // 8 elements each
        w[u][0] = rows[word];
        w[u][1] = rows[word + 4];
      }
      out[b * 32] = make_uint4(__byte_perm(w[0][0], w[1][0], 0x5140), __byte_perm(w[0][0], w[1][0], 0x7362),
                               __byte_perm(w[0][1], w[1][1], 0x5140), __byte_perm(w[0][1], w[1][1], 0x7362));
    }
    for (int i = 0; i < 4; ++i) {
      const int64_t row = low + (i >= 2 ? 8 : 0), block = slice * 8 + 2 * t + i % 2;
      const bool inside = row < shape.rows && block < blocks_of_row;
      std::byte* const at = to.memory + shape.scales_offset;
      if (shape.nested) {
        reinterpret_cast<unsigned char*>(at)[(pair * 32 + lane) * 4 + i] =
            inside ? static_cast<const unsigned char*>(s.absmax)[row * blocks_of_row + block] : 0;
      } else {
        reinterpret_cast<float*>(at)[(pair * 32 + lane) * 4 + i] = inside ? scale_of(s, blocks_of_row, row, block) : 0.0f;
      }
    }
    if (shape.nested && lane < kTile4Rows) {
      const int64_t row = pair / shape.slices * kTile4Rows + lane;
      const int64_t index = (s.first_element + row * s.whole_cols) / kTile4Block + slice * 8;
      reinterpret_cast<float*>(to.memory + shape.nested_offset)[pair * kTile4Rows + lane] =
          row < shape.rows ? s.nested_absmax[index / kNestedBlock] : 0.0f;
    }
  }
}

template <typename T>
__device__ __forceinline__ void store8(T* to, const float* v) {
  if constexpr (sizeof(T) == 4) {
    reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
  } else {
    alignas(16) T values[8];
    for (int i = 0; i < 8; ++i) values[i] = from_float<T>(v[i]);
    __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(values));
  }
}

// One warp a (row tile, slice); a lane's 8 elements of a row are consecutive.
template <typename T>
__global__ void __launch_bounds__(256, 4) widen(const Tiles from, const int64_t first_tile, const int64_t count, T* __restrict__ out, const int64_t stride) {
  __shared__ float values[16 * 32], scale_values[256];  // the former once a lane: no bank conflicts
  let_next_begin();
  const Tile4& shape = from.shape;
  const auto* map = reinterpret_cast<const float*>(from.memory + shape.map_offset);
  for (int i = threadIdx.x; i < 16 * 32; i += blockDim.x) values[i] = map[i >> 5];
  if (shape.nested) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) scale_values[i] = map[32 + i];
  }
  const float offset = map[16];
  __syncthreads();
  wait_for_previous();
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int64_t pairs = (count + kTile4Rows - 1) / kTile4Rows * shape.slices;
  for (int64_t n = blockIdx.x * 8ll + (threadIdx.x >> 5); n < pairs; n += gridDim.x * 8ll) {
    const int64_t slice = n % shape.slices, low = n / shape.slices * kTile4Rows + g, pair = n + first_tile * shape.slices;
    const auto* codes = reinterpret_cast<const uint4*>(from.memory) + pair * 8 * 32 + lane;
    uint4 piece[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) piece[b] = __ldcs(codes + b * 32);
    float scales[4];
    if (shape.nested) {
      const uchar4 c = reinterpret_cast<const uchar4*>(from.memory + shape.scales_offset)[pair * 32 + lane];
      const auto* absmax = reinterpret_cast<const float*>(from.memory + shape.nested_offset) + pair * kTile4Rows;
      scales[0] = __fadd_rn(__fmul_rn(scale_values[c.x], absmax[g]), offset);
      scales[1] = __fadd_rn(__fmul_rn(scale_values[c.y], absmax[g]), offset);
      scales[2] = __fadd_rn(__fmul_rn(scale_values[c.z], absmax[g + 8]), offset);
      scales[3] = __fadd_rn(__fmul_rn(scale_values[c.w], absmax[g + 8]), offset);
    } else {
      const float4 s = reinterpret_cast<const float4*>(from.memory + shape.scales_offset)[pair * 32 + lane];
      scales[0] = s.x, scales[1] = s.y, scales[2] = s.z, scales[3] = s.w;
    }
#pragma unroll
    for (int b = 0; b < 8; ++b) {
      const int64_t col = slice * kTile4Slice + b * kTile4Block;
      float scale[2];
      for (int u = 0; u < 2; ++u) scale[u] = __shfl_sync(~0u, scales[2 * u + b % 2], g * 4 + b / 2);
      if (col >= shape.cols) break;
      const unsigned words[4] = {piece[b % 4].x, piece[b % 4].y, piece[b % 4].z, piece[b % 4].w};
      if (b < 4) piece[b] = __ldcs(codes + (b + 4) * 32);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int64_t row = low + 8 * u;
        if (row >= count) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float v[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) {  // word 2 half + i / 4, byte 2 (i / 2 % 2) + u, the high half first
            const unsigned nibble = words[2 * half + i / 4] >> (8 * (2 * (i / 2 % 2) + u) + (i % 2 == 0 ? 4 : 0)) & 15;
            v[i] = __fmul_rn(values[nibble * 32 + lane], scale[u]);
          }
          store8(out + row * stride + col + half * 32 + t * 8, v);
        }
      }
    }
  }
}

int blocks_for(const Launch& how, int64_t pairs) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>((pairs + 7) / 8, how.device->multiprocessors * 8ll)));
}

}  // namespace

void tile4_pack(const Launch& how, const QuantizedView& stored, std::byte* destination) {
  const Tile4 shape = tile4(*stored.format, stored.rows, stored.cols);
  const bool nested = static_cast<const FourBit*>(stored.format)->nested();
  const int64_t whole_cols = stored.whole_cols > 0 ? stored.whole_cols : stored.cols;
  if (shape.nested && (stored.first_element % kTile4Slice != 0 || whole_cols % kTile4Slice != 0)) {
    fail(Code::failed_precondition, std::string(stored.format->name()),
         "a slice of " + std::to_string(stored.cols) + " columns that begins inside a run of 512 elements (cuts at multiples of 512 would be right)");
  }
  const auto floats = [&](int i) { return reinterpret_cast<const float*>(stored.data[i]); };
  const Stored s{reinterpret_cast<const unsigned char*>(stored.data[0]), stored.data[1], floats(2), nested ? floats(3) : nullptr,
                 nested ? floats(4) : nullptr, nested ? floats(5) : nullptr, stored.first_element, whole_cols};
  launch(how, pack, blocks_for(how, shape.row_tiles * shape.slices), 256, 0, "tile4_pack", s, Tiles{destination, shape});
}

void tile4_widen(const Launch& how, const Weight& weight, int64_t row, int64_t count, void* out, Element element, int64_t out_stride) {
  const Tile4 shape = tile4(*weight.format, weight.rows, weight.cols);
  const Tiles from{const_cast<std::byte*>(weight.data), shape};
  const int blocks = blocks_for(how, (count + kTile4Rows - 1) / kTile4Rows * shape.slices);
  const int64_t tile = row / kTile4Rows;
  if (element == Element::f32) {
    launch(how, widen<float>, blocks, 256, 0, "tile4_widen", from, tile, count, static_cast<float*>(out), out_stride);
  } else if (element == Element::bf16) {
    launch(how, widen<bf16>, blocks, 256, 0, "tile4_widen", from, tile, count, static_cast<bf16*>(out), out_stride);
  } else {
    launch(how, widen<f16>, blocks, 256, 0, "tile4_widen", from, tile, count, static_cast<f16*>(out), out_stride);
  }
}

}  // namespace tandem::cuda
