// wgmma with the left operand in registers and the right one in shared memory, for compute capability 9.0: a warpgroup's 64 rows times
// 8 to 64 columns, depth 16, fp32 sums. Tiles in shared memory are panels of 64 columns: rows of 128 bytes, 16-byte pieces exchanged
// within 1024 bytes (the 128-byte swizzle of PTX's shared memory matrix layouts); a panel begins at a multiple of 1024 bytes.
#pragma once
#include <cstdint>

#include "kernels/base/cuda/element.cuh"

namespace tandem::cuda {

// Byte of the 16-byte piece `chunk` (0..7) of row `row` in a panel.
__device__ __forceinline__ uint32_t panel_byte(int row, int chunk) { return static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) * 16)); }

// Groups of eight rows 1024 bytes apart; good for both orders of a panel.
__device__ __forceinline__ uint64_t panel_descriptor(uint32_t shared) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16 | (shared & 0x3FFFF) >> 4;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All products but the newest `kLeft` batches have ended.
template <int kLeft>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
__device__ __forceinline__ void end_products() {
  commit_products();
  wait_products<0>();
}
// Registers of a product, named before begin_products() and after end_products(): what the compiler does with them stays outside.
template <int N>
__device__ __forceinline__ void settle(float (&c)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}
template <int N>
__device__ __forceinline__ void settle(uint32_t (&a)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) asm volatile("" : "+r"(a[n][0]), "+r"(a[n][1]), "+r"(a[n][2]), "+r"(a[n][3])::"memory");
}
// What plain stores and copies put into shared memory is seen by wgmma after this and a barrier.
__device__ __forceinline__ void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define TANDEM_WGMMA_64(NAME, TYPE, KIND, TRANSPOSED)                                                                                        \
  __device__ __forceinline__ void NAME(float (&c)[8][4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, TYPE) {              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." KIND "." KIND                                                                 \
                 " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}," \
                 " {%32,%33,%34,%35}, %36, 1, 1, 1, " TRANSPOSED ";"                                                                         \
                 : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]),   \
                   "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]),   \
                   "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),   \
                   "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])    \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                                                                              \
  }
// scores: the panel's rows are the product's columns. weighted: its columns are.
TANDEM_WGMMA_64(multiply_scores, bf16, "bf16", "0")
TANDEM_WGMMA_64(multiply_scores, f16, "f16", "0")
TANDEM_WGMMA_64(multiply_weighted, bf16, "bf16", "1")
TANDEM_WGMMA_64(multiply_weighted, f16, "f16", "1")
#undef TANDEM_WGMMA_64

// ---- products that go on while something else is done
// c = a b or c += a b: a warpgroup's 64 rows, depth 16, 8 columns for each piece of c.
#define TANDEM_PIECE(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
template <bool kAdd>
__device__ __forceinline__ void multiply_group(float (&c)[1][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, "
               "{%4,%5,%6,%7}, %8, %9, 1, 1, 0;"
               : TANDEM_PIECE(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd ? 1 : 0));
}
template <bool kAdd>
__device__ __forceinline__ void multiply_group(float (&c)[2][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, "
               "{%8,%9,%10,%11}, %12, %13, 1, 1, 0;"
               : TANDEM_PIECE(0), TANDEM_PIECE(1)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd ? 1 : 0));
}
template <bool kAdd>
__device__ __forceinline__ void multiply_group(float (&c)[4][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
               "{%16,%17,%18,%19}, %20, %21, 1, 1, 0;"
               : TANDEM_PIECE(0), TANDEM_PIECE(1), TANDEM_PIECE(2), TANDEM_PIECE(3)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd ? 1 : 0));
}
#undef TANDEM_PIECE

// Registers that a product reads until it has ended: named after the wait, so that nothing else is put there before.
__device__ __forceinline__ void keep(const uint32_t (&a)[4]) { asm volatile("" ::"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]) : "memory"); }
#endif

}  // namespace tandem::cuda
