// Products with 4-bit tiles at the shapes of known models: microseconds in a chain of a CUDA graph with programmatic dependent launch, each
// link with weights of its own, and the share of the bandwidth of a read-only stream, measured first.
#include "bench/cuda_bench.cuh"
#include "kernels/cuda/tile4.h"

namespace tandem::cuda {
namespace {

__global__ void fill_floats(float* p, size_t count, float value) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count; i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    p[i] = value * (1 + 0.001f * static_cast<float>(i % 97));
  }
}
struct Shape {
  const char* name;
  std::vector<int64_t> rows;
  int64_t cols;
  LinearOutput output;
  bool norm;
};

LinearScratch scratch;
std::byte *input, *output, *norm_weight;

Weight weight(const Format& format, int64_t rows, int64_t cols) {
  static unsigned seed = 1;
  const Tile4 t = tile4(format, rows, cols);
  std::byte* const data = allocate(t.bytes);
  fill<<<512, 256>>>(reinterpret_cast<unsigned*>(data), t.codes_bytes / 4, seed++);
  if (t.nested) {
    fill<<<512, 256>>>(reinterpret_cast<unsigned*>(data + t.scales_offset), t.scales_bytes / 4, seed++);
    fill_floats<<<512, 256>>>(reinterpret_cast<float*>(data + t.nested_offset), t.nested_bytes / 4, 0.01f);
  } else {
    fill_floats<<<512, 256>>>(reinterpret_cast<float*>(data + t.scales_offset), t.scales_bytes / 4, 0.01f);
  }
  std::vector<float> map(t.map_bytes / 4);
  for (size_t i = 0; i < map.size(); ++i) map[i] = i < 16 ? (static_cast<float>(i) - 7.5f) / 8 : i == 16 ? 0.01f : i < 32 ? 0 : (static_cast<float>(i) - 160) / 128;
  check(cudaMemcpy(data + t.map_offset, map.data(), t.map_bytes, cudaMemcpyHostToDevice), "copy");
  return {nullptr, &format, data, rows, cols};
}

void measure(const Format& format, const Shape& shape, const std::vector<int>& counts) {
  uint64_t bytes = 0;
  for (const int64_t rows : shape.rows) bytes += tile4(format, rows, shape.cols).bytes;
  const int copies = static_cast<int>(std::max<uint64_t>(2, 2'000'000'000 / bytes));
  std::vector<std::vector<BoundProduct>> links(static_cast<size_t>(copies));
  for (auto& link : links) {
    for (const int64_t rows : shape.rows) link.push_back({weight(format, rows, shape.cols), nullptr});
  }
  check(cudaDeviceSynchronize(), "fill");
  std::printf("%-10s %-24s %6.1f MB", std::string(format.name()).c_str(), shape.name, static_cast<double>(bytes) / 1e6);
  double one = 0;
  for (const int count : counts) {
    LinearCall call;
    call.rows = count, call.output = shape.output, call.activation = Activation::silu;
    if (shape.norm) {
      call.input.residual = reinterpret_cast<float*>(input), call.input.norm_weight = reinterpret_cast<float*>(norm_weight), call.input.epsilon = 1e-5f;
    } else {
      call.input.values = input;
    }
    call.input.stride = shape.cols;
    call.y = output;
    for (const int64_t rows : shape.rows) call.y_stride += rows;
    const Launch how{stream, &device, true};
    const int repeats = std::max(1, 100 / copies);
    const double us = microseconds_a_link(repeats * copies, [&] {
      for (int i = 0; i < repeats; ++i) {
        for (const auto& link : links) {
          call.products = link;
          tile4_linear(how, call, scratch);
        }
      }
    });
    if (one == 0) one = us;
    std::printf(" | %2d: %6.2f us %3.0f %% %4.2fx", count, us, static_cast<double>(bytes) / us / 1e3 / stream_rate * 100, us / one);
  }
  std::printf("\n");
  std::fflush(stdout);
  for (auto& link : links) {
    for (auto& product : link) cudaFree(const_cast<std::byte*>(product.weight.data));
  }
}

void measure_widening(const Format& format, int64_t rows, int64_t cols) {
  const Weight w = weight(format, rows, cols);
  std::byte* const out = allocate(static_cast<size_t>(rows * cols) * 2);
  const double us = milliseconds(10, [&] { tile4_widen({stream, &device, false}, w, 0, rows, out, Element::bf16, cols); })[5] * 1e3;
  const double bytes = static_cast<double>(tile4(format, rows, cols).bytes) + static_cast<double>(rows * cols) * 2;
  std::printf("%-10s widen %ld x %ld: %.1f us, %.0f GB/s read and written\n", std::string(format.name()).c_str(), static_cast<long>(rows), static_cast<long>(cols), us, bytes / us / 1e3);
  cudaFree(out);
  cudaFree(const_cast<std::byte*>(w.data));
}

// Mixtral's experts: 8 of 4096 x 14336, each row with two of them; each link of the chain has other rows.
void measure_experts(const Format& format, const std::vector<int>& counts) {
  constexpr int kExperts = 8, kLinks = 4;
  const int64_t hidden = 4096, ffn = 14336;
  ExpertCall call;
  std::vector<const std::byte*> data[3];
  ExpertWeights* const weights[3] = {&call.gate, &call.up, &call.down};
  std::vector<Weight> all;
  for (int m = 0; m < 3; ++m) {
    for (int e = 0; e < kExperts; ++e) {
      all.push_back(m < 2 ? weight(format, ffn, hidden) : weight(format, hidden, ffn));
      data[m].push_back(all.back().data);
    }
    weights[m]->shape = all.back();
    std::byte* const list = allocate(kExperts * sizeof(void*));
    check(cudaMemcpy(list, data[m].data(), kExperts * sizeof(void*), cudaMemcpyHostToDevice), "copy");
    weights[m]->data = reinterpret_cast<const std::byte* const*>(list);
  }
  const double expert_bytes = static_cast<double>(tile4(format, ffn, hidden).bytes) * 3;
  std::printf("%-10s Mixtral 8x7B experts", std::string(format.name()).c_str());
  call.h = input, call.hidden = hidden, call.ffn = ffn, call.local_experts = kExperts, call.top_k = 2;
  call.gated = output, call.results = reinterpret_cast<float*>(output + (16 << 20));
  for (const int count : counts) {
    double touched = 0;
    ExpertLists lists[kLinks];
    for (int link = 0; link < kLinks; ++link) {
      std::vector<int> of[kExperts], begin{0}, rows;
      unsigned state = static_cast<unsigned>(link) * 77 + static_cast<unsigned>(count);
      for (int row = 0; row < count; ++row) {
        const auto draw = [&state] { return (state = state * 1664525u + 1013904223u) >> 16; };
        const unsigned a = count == 1 ? static_cast<unsigned>(2 * link) : draw() % 8, b = count == 1 ? a + 1 : (a + 1 + draw() % 7) % 8;
        of[a].push_back(row), of[b].push_back(row);
      }
      for (const auto& list : of) {
        rows.insert(rows.end(), list.begin(), list.end());
        begin.push_back(static_cast<int>(rows.size()));
        touched += list.empty() ? 0 : 1.0 / kLinks;
      }
      std::byte* const memory = allocate(1 << 12);
      check(cudaMemcpy(memory, begin.data(), begin.size() * 4, cudaMemcpyHostToDevice), "copy");
      check(cudaMemcpy(memory + 256, rows.data(), rows.size() * 4, cudaMemcpyHostToDevice), "copy");
      lists[link].begin = reinterpret_cast<int32_t*>(memory), lists[link].row_of = reinterpret_cast<int32_t*>(memory + 256);
    }
    call.rows = count;
    const double us = microseconds_a_link(20, [&] {
      for (int i = 0; i < 20; ++i) {
        call.lists = lists[i % kLinks];
        tile4_experts({stream, &device, true}, call, scratch);
      }
    });
    const double bytes = touched * expert_bytes;
    std::printf(" | %2d: %6.2f us, %.1f experts, %3.0f %%", count, us, touched, bytes / us / 1e3 / stream_rate * 100);
  }
  std::printf("\n");
  for (const Weight& w : all) cudaFree(const_cast<std::byte*>(w.data));
}

int run() {
  begin_measuring("");
  scratch = {allocate(kTile4ScratchBytes), kTile4ScratchBytes};
  check(cudaMemset(scratch.memory, 0, kTile4CounterBytes), "cudaMemset");
  input = allocate(16 << 20), output = allocate(32 << 20), norm_weight = allocate(1 << 20);
  fill_floats<<<512, 256>>>(reinterpret_cast<float*>(input), (16 << 20) / 4, 0.5f);
  fill_floats<<<512, 256>>>(reinterpret_cast<float*>(output), (32 << 20) / 4, 0.5f);
  fill_floats<<<512, 256>>>(reinterpret_cast<float*>(norm_weight), (1 << 20) / 4, 1.0f);
  const std::vector<int> counts = {1, 2, 8, 16, 32, 64};
  const auto dq = [&](const Shape& s) { measure(format("nf4_dq"), s, counts); };
  dq({"8B qkv", {4096, 1024, 1024}, 4096, LinearOutput::store, true});
  dq({"8B qkv, values", {4096, 1024, 1024}, 4096, LinearOutput::store, false});
  dq({"8B o", {4096}, 4096, LinearOutput::add_f32, false});
  dq({"8B gate up", {14336, 14336}, 4096, LinearOutput::gated, true});
  dq({"8B gate up, values", {14336, 14336}, 4096, LinearOutput::gated, false});
  dq({"8B down", {4096}, 14336, LinearOutput::add_f32, false});
  dq({"8B down, half", {4096}, 7168, LinearOutput::add_f32, false});
  dq({"8B gate up, half", {7168, 7168}, 4096, LinearOutput::gated, true});
  dq({"70B qkv", {8192, 1024, 1024}, 8192, LinearOutput::store, true});
  dq({"70B gate up", {28672, 28672}, 8192, LinearOutput::gated, true});
  dq({"70B down", {8192}, 28672, LinearOutput::add_f32, false});
  dq({"1B gate up", {8192, 8192}, 2048, LinearOutput::gated, true});
  dq({"1B down", {2048}, 8192, LinearOutput::add_f32, false});
  dq({"135M gate up", {1536, 1536}, 576, LinearOutput::gated, true});
  measure(format("nf4"), {"8B gate up", {14336, 14336}, 4096, LinearOutput::gated, true}, counts);
  measure(format("nf4"), {"8B down", {4096}, 14336, LinearOutput::add_f32, false}, counts);
  measure_experts(format("nf4_dq"), {1, 2, 4, 8, 32});
  measure_widening(format("nf4_dq"), 28672, 8192);
  measure_widening(format("nf4"), 28672, 8192);
  check(cudaDeviceSynchronize(), "end");
  return 0;
}

}  // namespace
}  // namespace tandem::cuda

int main() { return tandem::cuda::run(); }
