// mma.sync m16n8k16 with fp32 sums, bf16 or fp16 operands (compute capability 8.0 and later).
#pragma once
#include <cstdint>

#include "kernels/base/cuda/element.cuh"

namespace tandem::cuda {

// a: rows g and g + 8 (g = lane / 4), columns 2t, 2t + 1 and 2t + 8, 2t + 9 (t = lane % 4): {g low, g + 8 low, g high, g + 8 high}.
// b: the same columns of row (token) g. c: rows g, g + 8 of columns (tokens) 2t, 2t + 1.
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, bf16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, f16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace tandem::cuda
