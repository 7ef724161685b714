// Bulk copies from global to shared memory (compute capability 9.0 and later): one thread says how many bytes a barrier shall expect and
// asks for them. No register waits for them.
#pragma once
#include "kernels/base/cuda/barrier.cuh"

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
// Addresses and bytes are multiples of 16. Read once: it need not stay in the L2 cache.
__device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "{\n\t.reg .b64 policy;\n\t"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n\t"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], policy;\n\t}" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
#endif

}  // namespace tandem::cuda
