// Barriers in shared memory that open when so many bytes have come (mbarrier, compute capability 9.0 and later). A barrier opens once a
// phase; phases have parities 0, 1, 0 ... Addresses are those of shared memory.
#pragma once
#include <cstdint>

namespace tandem::cuda {

#if __CUDA_ARCH__ >= 900
// By one thread, before any use; others see it after a barrier of theirs.
__device__ __forceinline__ void make_barrier(uint32_t barrier) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
      "fence.mbarrier_init.release.cluster;" ::"r"(barrier)
      : "memory");
}
// All bytes of the phase. By one thread.
__device__ __forceinline__ void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Bytes that copies of this block bring; those of other blocks: cluster.cuh.
__device__ __forceinline__ void wait_for_bytes(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n\t.reg .pred opened;\n\t"
      "again: mbarrier.try_wait.parity.shared::cta.b64 opened, [%0], %1;\n\t"
      "@!opened bra again;\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
#endif

}  // namespace tandem::cuda
