// Device memory for tests: rings of sentinels around every block, outputs poisoned with NaN, host copies.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <span>
#include <vector>

#include "kernels/base/cuda/launch.h"

namespace tandem::cuda {

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}
#define TANDEM_NEEDS_GPU() \
  if (!tandem::cuda::has_gpu()) GTEST_SKIP() << "no GPU here"

inline DeviceInfo device_info(int index = 0) {
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, index), "device");
  return {index, p.multiProcessorCount, p.major, p.minor, p.sharedMemPerBlockOptin};
}

// [count] of T between two rings; freed at the end, the rings checked then.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    check(cudaMalloc(reinterpret_cast<void**>(&memory_), bytes() + 2 * kRing), "cudaMalloc");
    check(cudaMemset(memory_, 0xA5, bytes() + 2 * kRing), "cudaMemset");
    poison();
  }
  explicit DeviceArray(std::span<const T> values) : DeviceArray(values.size()) {
    if (!values.empty()) check(cudaMemcpy(data(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice), "copy");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(std::span<const T>(values)) {}
  ~DeviceArray() {
    std::vector<unsigned char> ring(2 * kRing);
    cudaMemcpy(ring.data(), memory_, kRing, cudaMemcpyDeviceToHost);
    cudaMemcpy(ring.data() + kRing, memory_ + kRing + bytes(), kRing, cudaMemcpyDeviceToHost);
    size_t bad = 0;
    for (const unsigned char c : ring) bad += c != 0xA5;
    EXPECT_EQ(bad, 0u) << "bytes around an array were written";
    cudaFree(memory_);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() { return reinterpret_cast<T*>(memory_ + kRing); }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }
  void poison() { check(cudaMemset(data(), 0xFF, bytes()), "cudaMemset"); }  // NaN in every float type
  void zero() { check(cudaMemset(data(), 0, bytes()), "cudaMemset"); }
  std::vector<T> host() {
    std::vector<T> values(count_);
    check(cudaDeviceSynchronize(), "synchronize");
    if (count_ > 0) check(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDeviceToHost), "copy");
    return values;
  }

 private:
  static constexpr size_t kRing = 256;
  size_t count_;
  unsigned char* memory_ = nullptr;
};

}  // namespace tandem::cuda
