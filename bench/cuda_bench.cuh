// What the programs that measure kernels share: the device, a stream, memory filled with numbers, the rate of a read-only stream, and the
// time of a captured chain.
#pragma once
#include <algorithm>
#include <cstdio>
#include <vector>

#include "kernels/base/cuda/launch.h"

namespace tandem::cuda {

inline DeviceInfo device;
inline cudaStream_t stream;
inline double stream_rate = 0;  // GB/s

inline std::byte* allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes), "cudaMalloc");
  return static_cast<std::byte*>(p);
}

__device__ __forceinline__ unsigned scrambled(size_t i, unsigned seed) {
  unsigned z = static_cast<unsigned>(i) * 2654435761u + seed;
  z ^= z >> 16, z *= 0x85ebca6b, z ^= z >> 13, z *= 0xc2b2ae35, z ^= z >> 16;
  return z;
}
static __global__ void fill(unsigned* p, size_t words, unsigned seed) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < words; i += static_cast<size_t>(gridDim.x) * blockDim.x) p[i] = scrambled(i, seed);
}

// Milliseconds of `runs` calls of start() after two that warm up, the shortest first.
template <typename Start>
std::vector<float> milliseconds(int runs, const Start& start) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = -2; i < runs; ++i) {
    check(cudaEventRecord(begin, stream), "event");
    start();
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "measurement");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  cudaEventDestroy(begin), cudaEventDestroy(end);
  return times;
}

// Of one link of a graph that enqueue() fills with `links` of them, in microseconds: the median of ten launches.
template <typename Enqueue>
double microseconds_a_link(int links, const Enqueue& enqueue) {
  cudaGraph_t graph;
  cudaGraphExec_t chain;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  enqueue();
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&chain, graph, 0), "graph");
  const double median = milliseconds(10, [&] { check(cudaGraphLaunch(chain, stream), "graph"); })[5];
  cudaGraphExecDestroy(chain), cudaGraphDestroy(graph);
  return median * 1e3 / links;
}

static __global__ void __launch_bounds__(512) read_stream(const uint4* p, size_t count, unsigned* out) {
  unsigned sum = 0;
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    uint4 v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = __ldcs(p + i + k * step);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (sum == 0x12345678) *out = sum;
}

// The device, a stream, and stream_rate: the best of five readings of 4 GiB. Prints the device and `what` the shares are of.
inline void begin_measuring(const char* what) {
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, 0), "device");
  device = {0, p.multiProcessorCount, p.major, p.minor, p.sharedMemPerBlockOptin};
  check(cudaStreamCreate(&stream), "stream");
  const size_t bytes = size_t{4} << 30;
  std::byte* const memory = allocate(bytes);
  fill<<<512, 256>>>(reinterpret_cast<unsigned*>(memory), bytes / 4, 7);
  check(cudaDeviceSynchronize(), "fill");
  const float shortest = milliseconds(5, [&] {
    read_stream<<<device.multiprocessors * 4, 512, 0, stream>>>(reinterpret_cast<const uint4*>(memory), bytes / 16, reinterpret_cast<unsigned*>(memory));
  })[0];
  stream_rate = static_cast<double>(bytes) / shortest / 1e6;
  cudaFree(memory);
  std::printf("%s; share of %.0f GB/s%s\n", p.name, stream_rate, what);
}

}  // namespace tandem::cuda
