// Clusters of blocks (compute capability 9.0 and later): their barrier, and stores into another block's shared memory that count on a
// barrier there, so that who waits for them needs neither a fence nor the other blocks.
#pragma once
#include <cstdint>

namespace tandem::cuda {

#if __CUDA_ARCH__ >= 900
// All threads of all blocks arrive, then wait: all blocks run, and their barriers are ready. Nothing else that was written is promised.
__device__ __forceinline__ void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// A barrier in shared memory that opens, once, when so many bytes have come. By one thread, which then arrives at the cluster.
__device__ __forceinline__ void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
      "fence.mbarrier_init.release.cluster;\n\t"
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void wait_for_bytes(uint32_t barrier) {
  asm volatile(
      "{\n\t.reg .pred opened;\n\t"
      "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 opened, [%0], 0;\n\t"
      "@!opened bra again;\n\t}" ::"r"(barrier)
      : "memory");
}

// The place of `shared` in block `rank` of the cluster.
__device__ __forceinline__ uint32_t address_in_block(uint32_t shared, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared), "r"(rank));
  return there;
}
// `at` and `barrier` in one block.
__device__ __forceinline__ void send(uint32_t at, float4 v, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w),
               "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void send(uint32_t at, float2 v, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];" ::"r"(at), "f"(v.x), "f"(v.y), "r"(barrier) : "memory");
}
#endif

}  // namespace tandem::cuda
