// Clusters of blocks (compute capability 9.0 and later): their barrier, and stores into another block's shared memory that count on a
// barrier there, so that who waits for them needs neither a fence nor the other blocks.
#pragma once
#include "kernels/base/cuda/barrier.cuh"

namespace tandem::cuda {

#if __CUDA_ARCH__ >= 900
// All threads of all blocks arrive, then wait: all blocks run, and their barriers are ready. Nothing else that was written is promised.
__device__ __forceinline__ void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The first phase of a barrier whose bytes any block of the cluster sends: what they wrote is seen, which costs the L1 cache's contents.
__device__ __forceinline__ void wait_for_bytes_of_cluster(uint32_t barrier) {
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
