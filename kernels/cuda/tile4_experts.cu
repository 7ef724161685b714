// The experts' products: the kernels of single products over the lists that route() wrote, first gate and up, then down.
#include <algorithm>
#include <span>

#include "kernels/cuda/tile4_group.cuh"
#include "kernels/cuda/tile4_launch.h"
#include "kernels/cuda/tile4_one.cuh"
#include "kernels/cuda/tile4_share.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kFewPairs = 5;  // multiplied one by one: two that share an expert read it twice (from 6 on as many rows of it at once)

template <bool kNested>
std::span<const RowsKernel> rows_kernels(const DeviceInfo& device, int shared_limit) {
  static const RowsKernel all[] = {{some_rows<bf16, kNested, 1, 2, 4, 512, true>, 1, 2, 4, 16}, {some_rows<bf16, kNested, 2, 2, 4, 448, true>, 2, 2, 4, 14}};
  static OncePerDevice once;
  if (once.first(device)) {
    for (const RowsKernel& k : all) allow_shared(k.kernel, static_cast<size_t>(shared_limit), "tile4_experts");
  }
  return all;
}

struct Half {  // gate and up, or down
  TileProducts products;
  bool nested = false;
  const std::byte* const* data[2] = {};
  const void* values = nullptr;
  int64_t stride = 0;
  const int32_t* row_of = nullptr;
};

void add_matrix(Half& half, const ExpertWeights& weights) {
  const Tile4 shape = tile4(*weights.shape.format, weights.shape.rows, weights.shape.cols);
  const int n = half.products.tiles == 0 ? 0 : 1;
  TileMatrix& m = half.products.matrix[n];
  m.scales_offset = shape.scales_offset, m.nested_offset = shape.nested_offset, m.map_offset = shape.map_offset;
  m.rows = static_cast<int32_t>(shape.rows);
  m.first_tile = half.products.tiles;
  half.products.products = n + 1;
  half.products.tiles += static_cast<int32_t>(shape.row_tiles);
  half.products.slices = static_cast<int32_t>(shape.slices), half.products.cols = static_cast<int32_t>(shape.cols);
  half.nested = shape.nested;
  half.data[n] = weights.data;
}

// `lists_known`: the kernel ahead let this one begin only when the lists were complete. Returns that for the next one.
bool run(const Launch& how, const ExpertCall& call, Half& half, bool lists_known, const LinearScratch& scratch) {
  const int64_t pairs = call.rows * call.top_k;
  if (pairs <= kFewPairs && half.products.slices <= most_slices(half.products.gated)) {
    OneRow p;
    p.products = half.products;
    p.values = half.values, p.stride = half.stride, p.row_of = half.row_of;
    p.begin = call.lists.begin, p.local_experts = call.local_experts;
    p.data[0] = half.data[0], p.data[1] = half.data[1];
    p.lists_known = lists_known;
    half.nested ? launch_one<true, true>(how, p, "tile4_experts") : launch_one<false, true>(how, p, "tile4_experts");
    return true;
  }
  if (has_wgmma(*how.device)) {
    // An expert has at most as many pairs as there are rows, but most have far fewer: items of half as many seldom need a second one.
    const DeviceInfo& device = *how.device;
    const int rows = static_cast<int>(call.rows <= 16 ? call.rows : (call.rows + 1) / 2);
    const GroupKernel& kernel = half.nested ? group_kernel<true, true>(device, rows) : group_kernel<false, true>(device, rows);
    GroupRows p;
    p.products = half.products;
    p.values = static_cast<const bf16*>(half.values), p.stride = half.stride, p.row_of = half.row_of;
    p.begin = call.lists.begin, p.local_experts = call.local_experts;
    p.data[0] = half.data[0], p.data[1] = half.data[1];
    const auto touched = static_cast<int>(std::min<int64_t>(call.local_experts, pairs));
    p.most_items = touched + static_cast<int>(pairs / kernel.tokens);
    launch_group(how, p, kernel, touched, scratch);
    return false;
  }
  SomeRows p;
  p.products = half.products;
  p.products.rows = call.rows <= 8 ? 8 : 16;  // of an item
  p.values = half.values, p.stride = half.stride, p.row_of = half.row_of;
  p.begin = call.lists.begin, p.local_experts = call.local_experts;
  p.data[0] = half.data[0], p.data[1] = half.data[1];
  p.most_items = static_cast<int>(std::min<int64_t>(call.local_experts, pairs) + pairs / p.products.rows);
  const int limit = static_cast<int>(how.device->shared_per_block);
  launch_rows(how, p, half.nested ? rows_kernels<true>(*how.device, limit) : rows_kernels<false>(*how.device, limit), p.most_items, scratch);
  return false;
}

}  // namespace

void tile4_experts(const Launch& how, const ExpertCall& call, const LinearScratch& scratch) {
  if (call.element != Element::bf16) fail(Code::internal, "tile4_experts", "activations must be bf16");
  if (call.rows <= 0 || call.local_experts <= 0) return;
  Half wide;
  add_matrix(wide, call.gate);
  add_matrix(wide, call.up);
  wide.products.gated = true, wide.products.output = LinearOutput::gated, wide.products.activation = call.activation;
  wide.products.y = call.gated, wide.products.y_stride = call.ffn;
  wide.values = call.h, wide.stride = call.hidden, wide.row_of = call.lists.row_of;
  const bool lists_known = run(how, call, wide, false, scratch);
  Half back;
  add_matrix(back, call.down);
  back.products.output = LinearOutput::store_f32;
  back.products.y = call.results, back.products.y_stride = call.hidden;
  back.values = call.gated, back.stride = call.ffn;
  run(how, call, back, lists_known, scratch);
}

}  // namespace tandem::cuda
