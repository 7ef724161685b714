// Clusters of blocks (compute capability 9.0 and later): their barrier, and stores into another block's shared memory.
#pragma once
#include <cstdint>

namespace tandem::cuda {

#if __CUDA_ARCH__ >= 900
// All threads of all blocks arrive, then wait; what was written before arriving, near or far, is seen after waiting.
__device__ __forceinline__ void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The place of `shared` in block `rank` of the cluster.
__device__ __forceinline__ uint32_t address_in_block(uint32_t shared, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared), "r"(rank));
  return there;
}
__device__ __forceinline__ void store_in_cluster(uint32_t at, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
__device__ __forceinline__ void store_in_cluster(uint32_t at, float2 v) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};" ::"r"(at), "f"(v.x), "f"(v.y) : "memory");
}
#endif

}  // namespace tandem::cuda
