// How fast a device reads its memory: the ceiling that decoding is compared with.
#include <algorithm>

#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/plan/cuda.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 512, kBlocksPerMultiprocessor = 2, kInFlight = 8;

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) read_all(const uint4* data, size_t count, unsigned* sink) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  unsigned sum = 0;
  for (; i + (kInFlight - 1) * stride < count; i += kInFlight * stride) {
    uint4 v[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) v[k] = __ldcs(data + i + k * stride);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  for (; i < count; i += stride) sum += data[i].x;
  if (sum == 0x12345678u) *sink = sum;  // never removed, hardly ever true
}

}  // namespace

double measure_read_bandwidth(int device) {
  check(cudaSetDevice(device), "device");
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, device), "device");
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "device memory");
  const size_t bytes = std::min<size_t>(size_t{4} << 30, free / 2) / 4096 * 4096;
  uint4* data = nullptr;
  check(cudaMalloc(reinterpret_cast<void**>(&data), bytes), "device memory");
  cudaEvent_t begin{}, end{};
  check(cudaMemset(data, 1, bytes), "device memory");
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  double best = 0;
  for (int run = 0; run < 6; ++run) {
    check(cudaEventRecord(begin), "event");
    read_all<<<p.multiProcessorCount * kBlocksPerMultiprocessor, kThreads>>>(data, bytes / sizeof(uint4), reinterpret_cast<unsigned*>(data));
    check(cudaEventRecord(end), "event");
    check(cudaEventSynchronize(end), "read bandwidth");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (run > 0) best = std::max(best, static_cast<double>(bytes) / (1e-3 * ms));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaFree(data);
  return best;
}

}  // namespace tandem::cuda
