// What the kernels over 4-bit tiles share: the tables in shared memory, the matrix unit, parameters of a launch, and what happens to sums.
//
// Codes become numbers through a table of all 256 bytes (pairs of elements), one copy for each lane: byte v's pair for lane l lies at
// 256 v + 4 l, always in the lane's own bank, and one byte permute makes that address. The other 128 bytes of each row hold, likewise
// once a lane, the fp32 value of scale code v. Weights are the A operand of mma.m16n8k16, activations B: scales never touch the weights,
// sums are scaled block by block.
#pragma once
#include "kernels/base/cuda/element.cuh"
#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/plan/tile4.h"

namespace tandem::cuda {

constexpr int kTableBytes = 256 * 256;

struct TileMatrix {  // one product
  const std::byte* data = nullptr;
  const float* bias = nullptr;
  uint64_t scales_offset = 0, nested_offset = 0, map_offset = 0;
  int32_t rows = 0;
  int32_t first_tile = 0;  // its tiles are numbered from here, after those of the products before it
  int32_t first_row = 0;   // its rows of y
};

struct TileProducts {  // parameters of every product kernel
  TileMatrix matrix[3];
  int32_t products = 1, tiles = 0;  // of all products
  int32_t slices = 0, cols = 0;
  int32_t rows = 0;                 // of activations
  bool gated = false;
  LinearOutput output = LinearOutput::store;
  Activation activation = Activation::none;
  void* y = nullptr;
  int64_t y_stride = 0;
  float scale = 1, soft_cap = 0;
};

// Weights, read once. kOrdered: the assembler keeps such loads and those of pair_at() in their order. Left free it may sink all loads
// that the next turn of a loop needs to the end of this one, and their latency shows; where it does not, freedom is faster.
template <bool kOrdered>
__device__ __forceinline__ uint4 load_once(const void* p) {
  uint4 v;
  if constexpr (kOrdered) {
    asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  } else {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  }
  return v;
}
// v or 0: opaque, or the compiler keeps all masked copies in registers.
__device__ __forceinline__ unsigned masked(unsigned v, unsigned mask) {
  unsigned r;
  asm volatile("and.b32 %0,%1,%2;" : "=r"(r) : "r"(v), "r"(mask));
  return r;
}

// The table is the first thing in a block's dynamic shared memory, and these kernels have no static one. kSharedBegin: where that is on
// every device since compute capability 8.0 (the system keeps the first KiB); build_table() holds it to that.
constexpr int kSharedBegin = 1024;
template <bool kOrdered>
__device__ __forceinline__ unsigned pair_at(unsigned address) {
  unsigned v;
  if constexpr (kOrdered) {
    asm volatile("ld.volatile.shared.b32 %0,[%1+1024];" : "=r"(v) : "r"(address));
  } else {
    asm volatile("ld.shared.b32 %0,[%1+1024];" : "=r"(v) : "r"(address));
  }
  return v;
}
__device__ __forceinline__ float scale_at(unsigned address) {
  float v;
  asm volatile("ld.shared.f32 %0,[%1+1152];" : "=f"(v) : "r"(address));
  return v;
}
// The address of byte i of v for a lane: 256 * byte + 4 * lane.
__device__ __forceinline__ unsigned address_of(unsigned v, int i, unsigned lane4) {
  return __byte_perm(v, lane4, 0x5504 + 16 * i);
}

template <typename T>
__device__ __forceinline__ unsigned pair_of(float first, float second);
template <>
__device__ __forceinline__ unsigned pair_of<bf16>(float first, float second) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const unsigned*>(&v);
}
template <>
__device__ __forceinline__ unsigned pair_of<f16>(float first, float second) {
  const __half2 v = __floats2half2_rn(first, second);
  return *reinterpret_cast<const unsigned*>(&v);
}

// Fills the tables, in two halves so that what it reads is asked for first of all: load(), then the first weights, then store(), then a
// __syncthreads(). A thread has one row, or, where threads are few, several.
template <typename T, bool kNested>
struct TableRow {
  float high, low, scale;
  __device__ __forceinline__ void load(const float* __restrict__ map, int v) {
    high = __ldg(map + (v >> 4)), low = __ldg(map + (v & 15));
    if constexpr (kNested) scale = __ldg(map + 32 + v);
  }
  __device__ __forceinline__ void store(unsigned char* shared, int v) const {
    const unsigned pair = pair_of<T>(high, low);
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // begun at another piece by each lane: no bank conflicts
      unsigned char* const to = shared + v * 256 + ((i + v) & 7) * 16;
      *reinterpret_cast<uint4*>(to) = make_uint4(pair, pair, pair, pair);
      if constexpr (kNested) *reinterpret_cast<float4*>(to + 128) = make_float4(scale, scale, scale, scale);
    }
  }
};
template <typename T, bool kNested>
__device__ __forceinline__ void store_table(TableRow<T, kNested> row, unsigned char* shared, const float* __restrict__ map) {
  if (threadIdx.x == 0 && __cvta_generic_to_shared(shared) != kSharedBegin) __trap();
  if (threadIdx.x < 256) row.store(shared, threadIdx.x);
  for (int v = threadIdx.x + blockDim.x; v < 256; v += blockDim.x) {
    row.load(map, v);
    row.store(shared, v);
  }
}

template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  if constexpr (sizeof(T) == 2 && !__is_same(T, f16)) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// Not inlined: long, and seldom used.
static __device__ __noinline__ float gelu(float x, bool by_tanh) {
  if (by_tanh) return 0.5f * x * (1.0f + tanhf(0.79788456f * fmaf(0.044715f, x * x * x, x)));
  return 0.5f * x * (1.0f + erff(x * 0.70710678f));
}
static __device__ __noinline__ float capped(float x, float cap) { return cap * tanhf(x / cap); }

__device__ __forceinline__ float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::silu: return __fdividef(x, 1.0f + __expf(fminf(-x, 80.0f)));
    case Activation::relu: return fmaxf(x, 0.0f);
    case Activation::none: return x;
    default: return gelu(x, activation == Activation::gelu_tanh);
  }
}

struct TilePlace {  // of a tile in the numbering over all products
  int product, tile;
};
__device__ __forceinline__ TilePlace place_of(const TileProducts& p, int tile) {
  int product = 0;
  if (p.products > 1 && tile >= p.matrix[1].first_tile) product = 1;
  if (p.products > 2 && tile >= p.matrix[2].first_tile) product = 2;
  return {product, tile - p.matrix[product].first_tile};
}

// The bias, zero past the product's rows.
__device__ __forceinline__ float bias_of(const TileMatrix& m, int row) { return m.bias != nullptr && row < m.rows ? m.bias[row] : 0.0f; }

// What was there before, where a sum is added to it.
__device__ __forceinline__ float former(const TileProducts& p, const TileMatrix& m, int row, int token) {
  if (p.output != LinearOutput::add_f32 || row >= m.rows) return 0;
  return static_cast<const float*>(p.y)[token * p.y_stride + m.first_row + row];
}
// What becomes of a sum (bias and former() included) of row `row` of matrix m for activation row `token`.
template <typename T>
__device__ __forceinline__ void put(const TileProducts& p, const TileMatrix& m, int row, int token, float value) {
  if (row >= m.rows) return;
  const int64_t at = token * p.y_stride + m.first_row + row;
  switch (p.output) {
    case LinearOutput::add_f32: static_cast<float*>(p.y)[at] = value; return;
    case LinearOutput::store_f32:
      value *= p.scale;
      static_cast<float*>(p.y)[at] = p.soft_cap > 0 ? capped(value, p.soft_cap) : value;
      return;
    case LinearOutput::activated: value = activated(p.activation, value); break;
    default: break;
  }
  static_cast<T*>(p.y)[at] = from_float<T>(value);
}

}  // namespace tandem::cuda
