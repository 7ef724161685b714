// Attention of one decode step at the shapes of known models: microseconds in a chain of a CUDA graph with programmatic dependent launch,
// each link with keys and values of its own as layers have, and the share of the bandwidth of a read-only stream, measured first, that
// the keys and values make. Beside attend_decode(): the kernel of splits, and clusters of every size.
#include <numeric>
#include <random>
#include <vector>

#include "bench/cuda_bench.cuh"
#include "kernels/base/cuda/element.cuh"
#include "kernels/cuda/attention_kernels.h"

namespace tandem::cuda {
namespace {

__global__ void fill_numbers(bf16* p, size_t count, unsigned seed) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count; i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    p[i] = __float2bfloat16(static_cast<float>(scrambled(i, seed) % 2001) / 1000 - 1);
  }
}
template <typename T>
T* on_device(const std::vector<T>& values) {
  std::byte* const p = allocate(values.size() * sizeof(T));
  check(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  return reinterpret_cast<T*>(p);
}

std::byte* scratch;

// Microseconds a link; 0: not a call for this kernel.
template <typename Start>
double measure(const AttentionCall& first, size_t layer_bytes, int links, const Start& start) {
  const Launch how{stream, &device, true};
  if (!start(how, first)) return 0;
  const int all = std::max(1, 100 / links) * links;
  return microseconds_a_link(all, [&] {
    AttentionCall call = first;
    for (int i = 0; i < all; ++i) {
      call.cache.memory = first.cache.memory + static_cast<size_t>(i % links) * layer_bytes;
      start(how, call);
    }
  });
}

void measure_shape(const char* name, const HeadShape& shape, int batch, int context) {
  constexpr int kPageTokens = 64;
  const int pages_each = (context + kPageTokens - 1) / kPageTokens, pages = batch * pages_each;
  const size_t layer_bytes = static_cast<size_t>(shape.kv_heads * 2 * kPageTokens * shape.head_dim) * 2;
  const double bytes = static_cast<double>(batch) * context * static_cast<double>(shape.kv_heads * 2 * shape.head_dim) * 2;
  const int links = static_cast<int>(std::clamp(500e6 / bytes, 2.0, 512.0));  // more than the L2 cache holds
  const size_t cache_bytes = layer_bytes * static_cast<size_t>(links) * static_cast<size_t>(pages);
  std::byte* const cache = allocate(cache_bytes);
  fill_numbers<<<1024, 256>>>(reinterpret_cast<bf16*>(cache), cache_bytes / 2, 1);
  const int64_t stride = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
  std::byte* const qkv = allocate(static_cast<size_t>(batch * stride) * 2);
  std::byte* const out = allocate(static_cast<size_t>(batch * shape.heads * shape.head_dim) * 2);
  fill_numbers<<<64, 256>>>(reinterpret_cast<bf16*>(qkv), static_cast<size_t>(batch * stride), 2);
  std::vector<int32_t> table(static_cast<size_t>(pages));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(3));
  std::vector<SequenceOnDevice> sequences(static_cast<size_t>(batch));
  for (int i = 0; i < batch; ++i) {
    SequenceOnDevice& s = sequences[static_cast<size_t>(i)];
    s.slot = s.row = i, s.rows = 1, s.position = context - 1, s.pages[0] = i * pages_each;
  }
  std::vector<float> frequency(static_cast<size_t>(shape.head_dim / 2), 0.01f);
  int32_t* const counts = on_device(std::vector<int32_t>{batch, batch, batch, batch});
  SequenceOnDevice* const on_sequences = on_device(sequences);
  int32_t* const on_table = on_device(table);
  float* const on_frequency = on_device(frequency);
  check(cudaDeviceSynchronize(), "fill");

  AttentionCall call;
  call.step.counts = counts, call.step.sequences = on_sequences, call.step.pages = on_table;
  call.cache = {cache, layer_bytes * static_cast<size_t>(links), KvType::bf16, 0, kPageTokens, shape.kv_heads, shape.head_dim};
  call.shape = shape;
  call.rope = {on_frequency, static_cast<int32_t>(shape.head_dim), 1};
  call.scale = 0.088f, call.qkv = qkv, call.qkv_stride = stride, call.out = out;
  call.most_sequences = call.most_rows = call.singles = batch, call.most_context = context;
  call.scratch = scratch;
  const auto share = [&](double us) { return us > 0 ? bytes / us / 1e3 / stream_rate * 100 : 0; };
  const double now = measure(call, layer_bytes, links, [](const Launch& how, const AttentionCall& c) { return attend_decode(how, c), true; });
  const double splits = measure(call, layer_bytes, links, [](const Launch& how, const AttentionCall& c) { return attend_single_rows_mma(how, c, true); });
  std::printf("%-4s %3d x %5d %7.2f MB | %7.2f us %3.0f %% (clusters of %2d) | splits %7.2f us %3.0f %% | clusters of 1, 2, 4, 8, 16:", name, batch, context, bytes / 1e6, now,
              share(now), cluster_blocks(batch, shape.kv_heads, context, device.multiprocessors), splits, share(splits));
  for (const int blocks : {1, 2, 4, 8, 16}) {
    std::printf(" %7.2f", measure(call, layer_bytes, links, [&](const Launch& how, const AttentionCall& c) { return attend_single_rows_cluster(how, c, true, blocks); }));
  }
  std::printf("\n");
  std::fflush(stdout);
  for (void* p : {static_cast<void*>(cache), static_cast<void*>(qkv), static_cast<void*>(out), static_cast<void*>(counts), static_cast<void*>(on_sequences),
                  static_cast<void*>(on_table), static_cast<void*>(on_frequency)}) {
    cudaFree(p);
  }
}

int run() {
  begin_measuring("; bf16, pages of 64");
  const HeadShape small{32, 8, 128}, large{64, 8, 128};
  const uint64_t scratch_bytes = std::max(attention_scratch_bytes(large, 64, 1024), attention_scratch_bytes(large, 1, 131072));
  scratch = allocate(scratch_bytes);
  check(cudaMemset(scratch, 0, scratch_bytes), "cudaMemset");
  const struct { int batch, context; } steps[] = {{1, 128}, {1, 256}, {1, 1024}, {1, 8192}, {8, 128}, {8, 256}, {8, 1024}, {32, 128}, {32, 256}, {32, 1024}, {64, 1024}};
  for (const auto& s : steps) measure_shape("8B", small, s.batch, s.context);
  measure_shape("70B", large, 1, 256);
  measure_shape("70B", large, 8, 1024);
  check(cudaDeviceSynchronize(), "end");
  return 0;
}

}  // namespace
}  // namespace tandem::cuda

int main() { return tandem::cuda::run(); }
