#include "kernels/cuda/tile4_rows.cuh"

#include <algorithm>
#include <span>

#include "kernels/cuda/tile4_launch.h"
#include "kernels/cuda/tile4_share.h"

namespace tandem::cuda {
namespace {

template <bool kNested>
std::span<const RowsKernel> kernels(const DeviceInfo& device, int shared_limit) {
  static const RowsKernel all[] = {
      {some_rows<bf16, kNested, 1, 1, 8, 512, false>, 1, 1, 8, 16},
      {some_rows<bf16, kNested, 1, 2, 8, 256, false>, 1, 2, 8, 8},
      {some_rows<bf16, kNested, 1, 2, 4, 512, false>, 1, 2, 4, 16},
      {some_rows<bf16, kNested, 2, 2, 8, 256, false>, 2, 2, 8, 8},
      {some_rows<bf16, kNested, 2, 2, 4, 448, false>, 2, 2, 4, 14},
      {some_rows<bf16, kNested, 4, 2, 8, 256, false>, 4, 2, 8, 8},
      {some_rows<bf16, kNested, 4, 2, 4, 384, false>, 4, 2, 4, 12},
  };
  static OncePerDevice once;
  if (once.first(device)) {
    for (const RowsKernel& k : all) allow_shared(k.kernel, static_cast<size_t>(shared_limit), "tile4_rows");
  }
  return all;
}

}  // namespace

void multiply_rows(const Launch& how, const TileProducts& products, const LinearInput& input, bool nested, const LinearScratch& scratch) {
  SomeRows p;
  p.products = products;
  p.values = input.values, p.stride = input.stride, p.row_of = input.row_of;
  const int limit = static_cast<int>(how.device->shared_per_block);
  launch_rows(how, p, nested ? kernels<true>(*how.device, limit) : kernels<false>(*how.device, limit), 1, scratch);
}

}  // namespace tandem::cuda
