// How a product with row-major weights is shared out among blocks and warps.
#include "kernels/cuda/dense_linear.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/cuda/dense_linear.cuh"

namespace tandem::cuda {
namespace {

constexpr int kMostStages = 4;  // of activations that stream

// Of a multiprocessor's memory. Behind kernels that take most of it the head of an 8B model read its 1.05 GB in 390 us; with this, 240.
constexpr int kSharedPercent = 44;

// Norms of so few rows are taken by every block of a product; more are taken once, by a kernel ahead.
constexpr int kNormsOnTheWay = 2;

struct Kernel {
  void (*bf16_kernel)(DenseProducts);
  void (*f16_kernel)(DenseProducts);
  int tiles8, row_tiles, units;  // N, R, D
};
const Kernel kKernels[] = {{multiply_dense<bf16, 1, 1, 8>, multiply_dense<f16, 1, 1, 8>, 1, 1, 8},
                           {multiply_dense<bf16, 2, 1, 8>, multiply_dense<f16, 2, 1, 8>, 2, 1, 8},
                           {multiply_dense<bf16, 4, 2, 4>, multiply_dense<f16, 4, 2, 4>, 4, 2, 4},
                           {multiply_dense<bf16, 8, 2, 4>, multiply_dense<f16, 8, 2, 4>, 8, 2, 4}};

int divided(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

void allow_all_shared(const DeviceInfo& device) {
  static OncePerDevice once;
  if (!once.first(device)) return;
  for (const Kernel& k : kKernels) {
    allow_shared(k.bf16_kernel, device.shared_per_block, "dense_linear");
    allow_shared(k.f16_kernel, device.shared_per_block, "dense_linear");
    prefer_shared(k.bf16_kernel, kSharedPercent, "dense_linear");
    prefer_shared(k.f16_kernel, kSharedPercent, "dense_linear");
  }
}

// Warps that share a tile's columns: many for few tiles, so that every multiprocessor has a block, but not more than there are columns for.
int k_groups_of(const Kernel& k, const DenseProducts& p, int multiprocessors) {
  const int most = k.row_tiles == 1 && p.output != LinearOutput::gated ? 8 : 4;  // gated: both products' tiles in one block
  int groups = k.row_tiles == 1 ? most : 1;
  while (groups < most && divided(p.tiles, kDenseWarps / groups * k.row_tiles) < multiprocessors) groups *= 2;
  while (groups > 1 && p.cols <= groups / 2 * k.units * kDenseUnit) groups /= 2;
  return groups;
}

// Whether y may be made by adding to it.
bool can_add(const DenseProducts& p) {
  return p.output == LinearOutput::add_f32 || (p.output == LinearOutput::store_f32 && p.scale == 1 && p.soft_cap == 0);
}

// `most_rows`: of activations (of one expert). `experts`: 1, or how many the grid has.
void start(const Launch& how, DenseProducts p, Element element, int most_rows, int experts) {
  const DeviceInfo& device = *how.device;
  if (element == Element::f32) {
    p.aligned = p.cols % 4 == 0 && p.input.stride % 4 == 0 && reinterpret_cast<uintptr_t>(p.input.values) % 16 == 0;
    const int units = p.output == LinearOutput::gated ? p.tiles / 2 * 16 : p.tiles * 8;
    const dim3 grid(divided(units, kDenseWarps), divided(most_rows, kPlainRows), experts);
    return launch(how, multiply_plain, grid, kDenseThreads, 0, "dense_linear", p);
  }
  allow_all_shared(device);
  // Few tiles of weights: the rows are shared out too, down to eight a block, and the weights read again from the L2 cache.
  int choice = most_rows <= 8 ? 0 : most_rows <= 16 ? 1 : most_rows <= 32 ? 2 : 3;
  if (experts > 1) choice = std::min(choice, 1);  // a mixture's rows are spread over its experts
  const auto blocks = [&](const Kernel& k) {
    return divided(p.tiles, kDenseWarps / k_groups_of(k, p, device.multiprocessors) * k.row_tiles) * divided(most_rows, k.tiles8 * 8) * experts;
  };
  while (choice > 0 && blocks(kKernels[choice]) < device.multiprocessors * 3 / (choice == 2 ? 8 : 4)) --choice;
  const Kernel& k = kKernels[choice];
  p.k_groups = k_groups_of(k, p, device.multiprocessors);
  p.block_tiles = divided(p.tiles, kDenseWarps / p.k_groups * k.row_tiles);
  const int columns = p.k_groups * k.units * kDenseUnit;
  p.chunks = divided(p.cols, columns);
  const size_t sums = sizeof(float) * kDenseWarps * k.row_tiles * k.tiles8 * 8 * kSumStride * (k.tiles8 <= 2 ? 2 : 1);
  const size_t stage = static_cast<size_t>(std::min(most_rows, k.tiles8 * 8)) * static_cast<size_t>(columns * 2 + kStagePad);
  // Two blocks of the smaller kernels stand on a multiprocessor, if their activations fit. (A block has 1 KiB of its own.)
  const size_t half = (device.shared_per_block + 1024) / 2 - 1024;
  const int fit = static_cast<int>((device.shared_per_block - sums) / stage);
  // Activations that do not fit: sums that are kept in fp32 are made of several runs of columns, else the activations stream.
  int run = p.chunks;
  if (p.chunks > fit && k.tiles8 == 2 && fit > 0 && can_add(p)) {
    run = divided(p.chunks, divided(p.chunks, fit));
  } else if (p.chunks > fit && fit < 2) {
    fail(Code::internal, "dense_linear", "two stages of activations do not fit this device's shared memory");
  }
  const int all = p.cols, chunks = p.chunks;
  for (int first = 0; first < chunks; first += run) {
    p.first_column = first * columns;
    p.chunks = std::min(run, chunks - first);
    p.cols = std::min(p.chunks * columns, all - p.first_column);
    p.readable = std::min(p.chunks * columns, p.stride - p.first_column);
    p.stages = p.chunks <= fit ? p.chunks : std::min(k.tiles8 == 1 && sums + 2 * stage <= half ? static_cast<int>((half - sums) / stage) : fit, kMostStages);
    const size_t shared = sums + stage * static_cast<size_t>(p.stages);
    const int each = k.tiles8 <= 2 && shared <= half ? 2 : 1;
    const dim3 grid(std::min(p.block_tiles, each * device.multiprocessors), divided(most_rows, k.tiles8 * 8), experts);
    launch(how, element == Element::bf16 ? k.bf16_kernel : k.f16_kernel, grid, kDenseThreads, shared, "dense_linear", p);
    p.output = LinearOutput::add_f32;
    for (DenseMatrix& m : p.matrix) m.bias = nullptr;
  }
}

bool reads_pieces(const LinearInput& in, int64_t cols) {
  return cols % 8 == 0 && in.stride % 8 == 0 && reinterpret_cast<uintptr_t>(in.values) % 16 == 0;
}

template <typename T>
void normalize(const Launch& how, const LinearInput& in, int64_t rows, int64_t cols, std::byte* out) {
  launch(how, normalize_rows<T>, static_cast<unsigned>(rows), kDenseThreads, 0, "dense_normalize", in, static_cast<int>(cols),
         static_cast<int>(dense_stride(cols)), reinterpret_cast<T*>(out));
}

}  // namespace

void dense_linear(const Launch& how, const LinearCall& call, const LinearScratch& scratch) {
  const Element element = call.input.element;
  const bool gated = call.output == LinearOutput::gated;
  DenseProducts p;
  p.products = static_cast<int32_t>(call.products.size());
  int32_t row = 0;
  for (int i = 0; i < p.products; ++i) {
    const BoundProduct& product = call.products[static_cast<size_t>(i)];
    const Weight& w = product.weight;
    if (w.resident->element != element) fail(Code::internal, "dense_linear", "weights and activations differ in type");
    if (w.cols != call.products[0].weight.cols || (gated && w.rows != call.products[0].weight.rows)) {
      fail(Code::internal, "dense_linear", "products of one call have different shapes");
    }
    p.matrix[i] = {w.data, nullptr, product.bias, static_cast<int32_t>(w.rows), p.tiles, gated ? 0 : row};
    p.tiles += divided(w.rows, 16), row += p.matrix[i].rows;
    p.cols = static_cast<int32_t>(w.cols), p.stride = static_cast<int32_t>(dense_stride(w.cols));
  }
  if (gated && p.products != 2) fail(Code::internal, "dense_linear", "a gate has two products");
  p.input = call.input;
  p.rows = static_cast<int32_t>(call.rows);
  p.output = call.output, p.activation = call.activation;
  p.y = call.y, p.y_stride = call.y_stride, p.scale = call.scale, p.soft_cap = call.soft_cap;
  p.aligned = reads_pieces(p.input, p.cols);
  if (p.input.values == nullptr) {
    const bool on_the_way = element != Element::f32 && call.rows <= kNormsOnTheWay && p.cols <= kNormColumns && p.cols % 4 == 0 && p.input.stride % 4 == 0 &&
                            reinterpret_cast<uintptr_t>(p.input.residual) % 16 == 0 && reinterpret_cast<uintptr_t>(p.input.norm_weight) % 16 == 0;
    if (!on_the_way) {
      const uint64_t bytes = static_cast<uint64_t>(call.rows * p.stride * size(element));
      if (scratch.bytes < kDenseInputOffset + bytes) fail(Code::internal, "dense_linear", "scratch is too small for the normalized rows");
      std::byte* const out = scratch.memory + kDenseInputOffset;
      if (element == Element::f32) normalize<float>(how, p.input, call.rows, p.cols, out);
      if (element == Element::bf16) normalize<bf16>(how, p.input, call.rows, p.cols, out);
      if (element == Element::f16) normalize<f16>(how, p.input, call.rows, p.cols, out);
      p.input.values = out, p.input.residual = nullptr, p.input.row_of = nullptr, p.input.stride = p.stride;
      p.aligned = true;  // the padding is zero
    }
  }
  start(how, p, element, p.rows, 1);
}

void dense_experts(const Launch& how, const ExpertCall& call) {
  DenseProducts p;
  p.begin = call.lists.begin;
  p.input.values = call.h, p.input.element = call.element, p.input.stride = call.hidden, p.input.row_of = call.lists.row_of;
  p.cols = static_cast<int32_t>(call.hidden), p.stride = static_cast<int32_t>(dense_stride(call.hidden));
  p.aligned = reads_pieces(p.input, call.hidden);
  const auto matrix = [](const ExpertWeights& w, int64_t rows, int tiles) {
    DenseMatrix m;
    m.experts = w.data, m.rows = static_cast<int32_t>(rows), m.first_tile = tiles;
    return m;
  };
  const int tiles = divided(call.ffn, 16);
  p.products = 2, p.tiles = 2 * tiles;
  p.matrix[0] = matrix(call.gate, call.ffn, 0), p.matrix[1] = matrix(call.up, call.ffn, tiles);
  p.output = LinearOutput::gated, p.activation = call.activation;
  p.y = call.gated, p.y_stride = call.ffn;
  start(how, p, call.element, static_cast<int>(call.rows), call.local_experts);

  p.input.values = call.gated, p.input.stride = call.ffn, p.input.row_of = nullptr;
  p.cols = static_cast<int32_t>(call.ffn), p.stride = static_cast<int32_t>(dense_stride(call.ffn));
  p.aligned = reads_pieces(p.input, call.ffn);
  p.products = 1, p.tiles = divided(call.hidden, 16);
  p.matrix[0] = matrix(call.down, call.hidden, 0);
  p.output = LinearOutput::store_f32, p.activation = Activation::none;
  p.y = call.results, p.y_stride = call.hidden;
  start(how, p, call.element, static_cast<int>(call.rows), call.local_experts);
}

}  // namespace tandem::cuda
