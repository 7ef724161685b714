// The CUDA backend: one device, one stream; programs become CudaExecutables. Made and used on the rank's thread.
#include <algorithm>
#include <vector>

#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/executable.h"
#include "kernels/cuda/peers.h"
#include "kernels/cuda/plan/sizes.h"
#include "kernels/cuda/tile4.h"

namespace tandem::cuda {
namespace {

class DeviceMemory {  // freed at the end
 public:
  explicit DeviceMemory(uint64_t bytes) { check(cudaMalloc(reinterpret_cast<void**>(&memory_), std::max<uint64_t>(bytes, 1)), "device memory"); }
  ~DeviceMemory() { cudaFree(memory_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  std::byte* data() const { return memory_; }

 private:
  std::byte* memory_ = nullptr;
};

class CudaBackend final : public Sizes {
 public:
  explicit CudaBackend(const DeviceInfo& device) : device_(device) {
    check(cudaSetDevice(device.index), "device");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  }
  ~CudaBackend() override { cudaStreamDestroy(stream_); }

  void* stream() const override { return stream_; }
  void watch(std::function<void()> check) override { *watch_ = std::move(check); }
  const DeviceInfo& device() const { return device_; }

  std::unique_ptr<Executable> compile(const Program& program, std::span<const KvShape> kv, const Bucket& bucket,
                                      const Arithmetic& arithmetic) override {
    if (arithmetic.kv == KvType::fp8 || arithmetic.kv == KvType::int8) {
      bad_input("--kv-dtype", std::string(tandem::name(arithmetic.kv)) + " caches are not made on GPUs yet (fp32, bf16 or fp16)");
    }
    if (bucket.rows < 1 || bucket.page_tokens < 1 || bucket.heads < 0 || bucket.context < 1) fail(Code::internal, "compile", "the bucket holds no step");
    return std::make_unique<CudaExecutable>(program, kv, bucket, arithmetic, device_, stream_, watch_);
  }

  void place(const WeightLayout& layout, const QuantizedView& slice, std::byte* destination) override {
    if (slice.rows != layout.rows || slice.cols != layout.cols || slice.format != layout.format) {
      fail(Code::internal, "place", "the slice is not what was laid out");
    }
    const Resident& kept = resident(layout);
    if (kept.kind == Kind::tile4) return place_tiles(slice, destination);
    const int64_t stride = kept.kind == Kind::vector ? layout.cols : dense_stride(layout.cols);
    const auto element = static_cast<size_t>(size(kept.element));
    if (kept.kind == Kind::dense && slice.format->is_dense() && size(slice.format->dtype()) == element && kept.name.starts_with("dense")) {
      return copy_rows(slice.data[0], layout.rows, layout.cols, element, stride, destination);
    }
    // Widened on the host, a few megabytes at a time.
    const int64_t piece = std::max<int64_t>(1, (int64_t{1} << 21) / std::max<int64_t>(1, layout.cols));
    std::vector<float> values(static_cast<size_t>(std::min(piece, layout.rows) * layout.cols));
    std::vector<std::byte> narrowed(values.size() * element);
    constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
    for (int64_t row = 0; row < layout.rows; row += piece) {
      const int64_t count = std::min(piece, layout.rows - row);
      slice.format->dequantize(slice, row, count, values.data());
      narrow(kTypes[static_cast<int>(kept.element)], values.data(), static_cast<size_t>(count * layout.cols), narrowed.data());
      copy_rows(narrowed.data(), count, layout.cols, element, stride, destination + static_cast<uint64_t>(row * stride) * element);
    }
  }

  std::byte* allocate(uint64_t bytes) override {
    if (bytes == 0) return nullptr;
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      fail(Code::resource_exhausted, "memory",
           std::to_string(bytes) + " bytes cannot be had on device " + std::to_string(device_.index) + " (" + std::to_string(free) + " of " + std::to_string(total) + " are free)");
    }
    check(error, "device memory");
    return static_cast<std::byte*>(memory);
  }

  void release(std::byte* memory, uint64_t) override {
    if (memory != nullptr) cudaFree(memory);
  }

 private:
  void copy_rows(const void* source, int64_t rows, int64_t cols, size_t element, int64_t stride, std::byte* destination) {
    const auto width = static_cast<size_t>(cols) * element, pitch = static_cast<size_t>(stride) * element;
    if (width == pitch) return check(cudaMemcpy(destination, source, width * static_cast<size_t>(rows), cudaMemcpyHostToDevice), "weights");
    check(cudaMemset(destination, 0, pitch * static_cast<size_t>(rows)), "weights");
    check(cudaMemcpy2D(destination, pitch, source, width, width, static_cast<size_t>(rows), cudaMemcpyHostToDevice), "weights");
  }

  // What a slice holds, in device memory for as long as it is repacked.
  void place_tiles(const QuantizedView& slice, std::byte* destination) {
    // Codes, block scales and statistics that are kept whole: sizes are those of the slice's own ranges.
    const int64_t whole_cols = slice.whole_cols > 0 ? slice.whole_cols : slice.cols;
    const int64_t first_row = slice.first_element / whole_cols, first_col = slice.first_element % whole_cols;
    const std::vector<Component> parts = slice.format->components(first_row + slice.rows, whole_cols);
    const auto ranges = slice.format->ranges(first_row + slice.rows, whole_cols, {first_row, first_row + slice.rows, first_col, first_col + slice.cols});
    std::vector<uint64_t> offsets;
    uint64_t total = 0;
    for (const auto& list : ranges) {
      offsets.push_back(total);
      for (const ByteRange& range : list) total += range.size();
      total = (total + 255) / 256 * 256;
    }
    const DeviceMemory staged(total);
    QuantizedView there = slice;
    for (size_t i = 0; i < ranges.size(); ++i) {
      uint64_t bytes = 0;
      for (const ByteRange& range : ranges[i]) bytes += range.size();
      there.data[i] = staged.data() + offsets[i];
      check(cudaMemcpy(staged.data() + offsets[i], slice.data[i], bytes, cudaMemcpyHostToDevice), "weights");
    }
    tile4_pack({stream_, &device_, false}, there, destination);
    check(cudaStreamSynchronize(stream_), "weights");
  }

  const DeviceInfo device_;
  cudaStream_t stream_ = nullptr;
  const std::shared_ptr<std::function<void()>> watch_ = std::make_shared<std::function<void()>>();
};

}  // namespace

std::unique_ptr<PeerGroup> make_cuda_peers(Backend& backend, int index, int size, uint64_t longest_bytes, std::shared_ptr<AbortWord> abort_word,
                                           PeerGroup* otherwise, const Exchange& exchange) {
  const auto& cuda = dynamic_cast<const CudaBackend&>(backend);
  PeerSettings settings;
  settings.index = index, settings.size = size;
  settings.launch = {static_cast<cudaStream_t>(cuda.stream()), &cuda.device(), true};
  settings.longest_bytes = longest_bytes;
  settings.abort = std::move(abort_word);
  settings.otherwise = otherwise;
  return make_device_peers(settings, exchange);
}

std::unique_ptr<Backend> make_cuda_backend(int index) {
  const int count = gpu_count();
  if (count == 0) fail(Code::failed_precondition, "--device", "cannot be cuda: " + why_none());
  if (index < 0 || index >= count) {
    fail(Code::failed_precondition, "--device cuda:" + std::to_string(index), "is not there (this machine has " + std::to_string(count) + ")");
  }
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, index), "device");
  if (p.major < 8) {
    fail(Code::failed_precondition, "--device cuda:" + std::to_string(index),
         std::string(p.name) + " has compute capability " + std::to_string(p.major) + "." + std::to_string(p.minor) + " (8.0 or later is needed)");
  }
  return std::make_unique<CudaBackend>(DeviceInfo{index, p.multiProcessorCount, p.major, p.minor, p.sharedMemPerBlockOptin});
}

}  // namespace tandem::cuda
