// How fast devices of one machine copy to one another.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "kernels/base/cuda/check.h"
#include "kernels/cuda/plan/cuda.h"

namespace tandem::cuda {
namespace {

constexpr size_t kSmall = 8 << 10, kLarge = size_t{256} << 20;
constexpr int kSmallCopies = 200, kLargeCopies = 4;

struct Memory {
  void* bytes = nullptr;
  explicit Memory(int device) {
    check(cudaSetDevice(device), "device");
    check(cudaMalloc(&bytes, kLarge), "device memory");
  }
  ~Memory() { cudaFree(bytes); }
  Memory(const Memory&) = delete;
};

}  // namespace

CopyRate measure_copy(int from, int to) {
  int can = 0;
  check(cudaDeviceCanAccessPeer(&can, from, to), "device");
  const Memory target(to), source(from);  // `from` is the current device
  bool enabled = false;
  if (can != 0) {
    const cudaError_t error = cudaDeviceEnablePeerAccess(to, 0);
    enabled = error == cudaSuccess;
    if (error == cudaErrorPeerAccessAlreadyEnabled) cudaGetLastError();
  }
  cudaEvent_t begin{}, end{};
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  const auto seconds_of = [&](size_t bytes, int copies) {
    double best = 1e9;
    for (int run = 0; run < 4; ++run) {
      check(cudaEventRecord(begin), "event");
      for (int i = 0; i < copies; ++i) check(cudaMemcpyPeerAsync(target.bytes, to, source.bytes, from, bytes), "copy between devices");
      check(cudaEventRecord(end), "event");
      check(cudaEventSynchronize(end), "copy between devices");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end), "event");
      if (run > 0) best = std::min(best, 1e-3 * static_cast<double>(ms) / copies);
    }
    return best;
  };
  CopyRate rate;
  rate.latency = seconds_of(kSmall, kSmallCopies);
  rate.bandwidth = static_cast<double>(kLarge) / seconds_of(kLarge, kLargeCopies);
  rate.direct = can != 0;
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  if (enabled) cudaDeviceDisablePeerAccess(to);
  return rate;
}

}  // namespace tandem::cuda
