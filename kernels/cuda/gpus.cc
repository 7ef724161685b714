// The devices of this machine, told without making a context on any of them (which would take half a gigabyte each).
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "kernels/base/cuda/check.h"
#include "kernels/cuda/plan/cuda.h"

namespace tandem::cuda {
namespace {

// Free bytes of a device by the driver's management library, which comes with the driver; `otherwise` where it is not to be had.
uint64_t free_bytes(int index, uint64_t otherwise) {
  void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return otherwise;
  // Of nvml.h, which not every toolkit brings: 0 is success, a device is a pointer, memory is total, free and used bytes.
  struct Memory { unsigned long long total, free, used; };
  const auto init = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
  const auto handle_of = reinterpret_cast<int (*)(const char*, void**)>(dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"));
  const auto memory_of = reinterpret_cast<int (*)(void*, Memory*)>(dlsym(library, "nvmlDeviceGetMemoryInfo"));
  const auto shutdown = reinterpret_cast<int (*)()>(dlsym(library, "nvmlShutdown"));
  uint64_t bytes = otherwise;
  if (init != nullptr && handle_of != nullptr && memory_of != nullptr && shutdown != nullptr && init() == 0) {
    char bus[32] = {};
    void* device = nullptr;
    Memory memory{};
    if (cudaDeviceGetPCIBusId(bus, sizeof bus, index) == cudaSuccess && handle_of(bus, &device) == 0 && memory_of(device, &memory) == 0) bytes = memory.free;
    shutdown();
  }
  dlclose(library);
  return bytes;
}

}  // namespace


int gpu_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::vector<Gpu> gpus() {
  const int count = gpu_count();
  std::vector<Gpu> list;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, index), "device");
    list.push_back({index, p.name, p.totalGlobalMem, free_bytes(index, p.totalGlobalMem), p.major, p.minor});
  }
  return list;
}

std::string why_none() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) return "the CUDA driver is missing or older than this build needs";
  if (error != cudaSuccess) return std::string("there is no CUDA device (") + cudaGetErrorString(error) + ")";
  return count == 0 ? "there is no CUDA device" : "";
}

}  // namespace tandem::cuda
