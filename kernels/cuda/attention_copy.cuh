// Copies into shared memory that go on while a block computes, and matrix fragments out of it (compute capability 8.0 and later).
#pragma once
#include <cstdint>

#include "kernels/base/cuda/element.cuh"

namespace tandem::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes; zeros when not `inside` (then nothing is read).
__device__ __forceinline__ void copy_ahead(uint32_t shared, const void* global, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ uint32_t pack(float low, float high, bf16) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
__device__ __forceinline__ uint32_t pack(float low, float high, f16) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

__device__ __forceinline__ float power_of_two(float v) {  // 2^-22 relative; 0 for minus infinity
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// Byte of the 16-byte piece `chunk` of row `row` in a tile of [rows][HEAD_DIM] 16-bit elements, so that eight rows of one chunk lie in
// different banks.
template <int HEAD_DIM>
__device__ __forceinline__ uint32_t tile_byte(int row, int chunk) {
  const int moved = HEAD_DIM % 64 == 0 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
  return static_cast<uint32_t>(row * HEAD_DIM * 2 + moved * 16);
}

}  // namespace tandem::cuda
