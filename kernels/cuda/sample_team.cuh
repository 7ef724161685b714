// The thread blocks that draw from one row together: a cluster, each with a slice of the row in its shared memory, which the others can
// read; one block alone on devices without clusters. Every thread of a team gets the same results, in the order of its members.
#pragma once
#include <cstdint>

#include "kernels/cuda/sample_best.cuh"

namespace tandem::cuda {

constexpr int kTeamMembers = 8, kTeamThreads = 512, kTeamWarps = kTeamThreads / 32;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define TANDEM_TEAM __cluster_dims__(8, 1, 1)
static_assert(kTeamMembers == 8);
#else
#define TANDEM_TEAM
#endif

using Mass = unsigned long long;  // a probability in units of 2^-44 of the best id's: sums are exact, whatever their order

struct Team {
  int rank = 0, size = 1;
  int turn = 0;                    // which slot the next exchange uses: those of two in a row do not meet
  ulonglong2* slots = nullptr;     // shared[2]
  Mass* masses = nullptr;          // shared[kTeamWarps]
  Best* bests = nullptr;           // shared[32]

  // A barrier of all threads; what was written to shared memory before is seen by all members after.
  __device__ __forceinline__ void meet() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
  }

  // The same variable in the shared memory of another member.
  template <typename T>
  __device__ __forceinline__ const T* of(const T* mine, int member) const {
#if __CUDA_ARCH__ >= 900
    uint64_t theirs;
    asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(reinterpret_cast<uint64_t>(mine)), "r"(member));
    return reinterpret_cast<const T*>(theirs);
#else
    return mine;
#endif
  }

  // f(member, its value) for each; `mine` is thread 0's.
  template <typename T, typename F>
  __device__ __forceinline__ void exchange(const T& mine, const F& f) {
    static_assert(sizeof(T) <= sizeof(ulonglong2));
    T* slot = reinterpret_cast<T*>(slots + turn);
    turn ^= 1;
    if (threadIdx.x == 0) *slot = mine;
    meet();
    T all[kTeamMembers];
#pragma unroll
    for (int m = 0; m < kTeamMembers; ++m) {
      if (m < size) all[m] = *of(slot, m);
    }
#pragma unroll
    for (int m = 0; m < kTeamMembers; ++m) {
      if (m < size) f(m, all[m]);
    }
  }

  // Sums over this block.
  template <typename T>
  __device__ __forceinline__ T block_sum_of(T v) {
    static_assert(sizeof(T) == sizeof(Mass));
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) v += __shfl_xor_sync(~0u, v, lane);
    T* parts = reinterpret_cast<T*>(masses);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    T all = 0;
#pragma unroll
    for (int w = 0; w < kTeamWarps; ++w) all += parts[w];
    __syncthreads();
    return all;
  }
  // and over the team.
  template <typename T>
  __device__ __forceinline__ T sum(T v) {
    T all = 0;
    exchange(block_sum_of(v), [&](int, T part) { all += part; });
    return all;
  }
  __device__ __forceinline__ Best best(Best v) {
    Best all;
    exchange(block_best(v, bests), [&](int, Best part) { all = better(all, part); });
    return all;
  }
};

// A value at most 0 as what it weighs; nothing below 2^-44.
__device__ __forceinline__ Mass mass_of(float value) { return static_cast<Mass>(expf(value) * 17592186044416.0f); }

}  // namespace tandem::cuda
