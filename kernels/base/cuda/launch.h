// Launching kernels: a stream, what the device is, and whether a kernel may begin before the one ahead of it has ended (programmatic
// dependent launch, compute capability 9.0 and later). The rule that makes the latter safe: every kernel calls wait_for_previous()
// before it reads what another kernel wrote and before its first write to global memory, also when it returns early; only weights and
// other constants may be read before. Host side: launch(), launch_clusters().
#pragma once
#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <utility>

#include "kernels/base/cuda/check.h"

namespace tandem::cuda {

struct DeviceInfo {
  int index = 0, multiprocessors = 0, major = 0, minor = 0;
  size_t shared_per_block = 0;  // with the opt-in limit
};

struct Launch {
  cudaStream_t stream = nullptr;
  const DeviceInfo* device = nullptr;
  bool dependent = false;  // programmatic dependent launch
};

// Blocks in clusters of `cluster` along x (compute capability 9.0 and later); 1: none. `shared`: dynamic bytes; above 48 KB the caller has
// raised the kernel's limit once (allow_shared).
template <typename... Parameters, typename... Arguments>
void launch_clusters(const Launch& how, void (*kernel)(Parameters...), dim3 grid, unsigned cluster, dim3 block, size_t shared, const char* name,
                     Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = how.stream;
  cudaLaunchAttribute attributes[2]{};
  config.attrs = attributes;
  if (how.dependent && how.device->major >= 9) {
    cudaLaunchAttribute& dependent = attributes[config.numAttrs++];
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& clusters = attributes[config.numAttrs++];
    clusters.id = cudaLaunchAttributeClusterDimension;
    clusters.val.clusterDim.x = cluster, clusters.val.clusterDim.y = 1, clusters.val.clusterDim.z = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...), name);
}
template <typename... Parameters, typename... Arguments>
void launch(const Launch& how, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, const char* name, Arguments&&... arguments) {
  launch_clusters(how, kernel, grid, 1, block, shared, name, std::forward<Arguments>(arguments)...);
}

// What is set up once for each device, by whichever of its launches comes first: a kernel's attributes belong to a device, and a process
// may have several. One static for each thing to set up; a device has one thread.
class OncePerDevice {
 public:
  bool first(const DeviceInfo& device) { return !done_[static_cast<size_t>(device.index)].exchange(true); }

 private:
  std::array<std::atomic<bool>, 64> done_{};
};

// Raises a kernel's shared memory limit on the current device: once, not per launch.
template <typename Kernel>
void allow_shared(Kernel* kernel, size_t bytes, const char* name) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
}

// Asks for a split of a multiprocessor's memory that gives so many percent to shared memory and the rest to the L1 cache: once. Loads that
// registers wait for are kept in the L1 cache while they are on their way, and without a preference a kernel finds whatever split the kernel
// before it left.
template <typename Kernel>
void prefer_shared(Kernel* kernel, int percent, const char* name) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributePreferredSharedMemoryCarveout, percent), name);
}

#ifdef __CUDACC__
// Whether kernels may use what not every device has: the device has it, and this build was made for it. Only where kernels are compiled:
// other compilers do not know what for.
inline bool has_wgmma(const DeviceInfo& device) {  // compute capability 9.0 alone: "90a"
#ifdef TANDEM_CUDA_90A
  return device.major == 9;
#else
  return static_cast<void>(device), false;
#endif
}
inline bool has_clusters(const DeviceInfo& device) {  // 9.0 and later
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    if (architecture / 100 == device.major && architecture >= 900) return true;
  }
  return false;
}

__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

}  // namespace tandem::cuda
