// Bulk copies from global to shared memory (compute capability 9.0 and later): one thread asks, a barrier in shared memory opens when all
// bytes have come. No register waits for them. A barrier opens once a phase; phases have parities 0, 1, 0 ...
#pragma once
#include <cstdint>

namespace tandem::cuda {

#if __CUDA_ARCH__ >= 900
// One lane of a whole warp, always the same.
__device__ __forceinline__ bool elected() {
  uint32_t is;
  asm volatile(
      "{\n\t.reg .pred one;\n\t"
      "elect.sync _|one, 0xffffffff;\n\t"
      "selp.u32 %0, 1, 0, one;\n\t}"
      : "=r"(is));
  return is != 0;
}
// By one thread, before any use; others see it after a __syncwarp() or barrier.
__device__ __forceinline__ void make_bulk_barrier(uint32_t barrier) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
      "fence.mbarrier_init.release.cluster;" ::"r"(barrier)
      : "memory");
}
// All bytes of the phase, before its copies. By one thread.
__device__ __forceinline__ void expect_bulk(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Addresses and bytes are multiples of 16. Read once: it need not stay in the L2 cache.
__device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "{\n\t.reg .b64 policy;\n\t"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n\t"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], policy;\n\t}" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void wait_bulk(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n\t.reg .pred opened;\n\t"
      "again: mbarrier.try_wait.parity.shared::cta.b64 opened, [%0], %1;\n\t"
      "@!opened bra again;\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
#endif

}  // namespace tandem::cuda
