#include "kernels/cuda/tile4_one.cuh"

#include "kernels/cuda/tile4_launch.h"

namespace tandem::cuda {

// A normalized row lies in shared memory: wide ones have no room there on every device.
bool one_row_takes(const DeviceInfo& device, const TileProducts& products, const LinearInput& input) {
  const size_t shared = one_row_shared(kOneRowMostWarps) + (input.residual != nullptr ? products.slices * kSliceRowBytes : 0);
  return products.slices <= most_slices(products.gated) && shared <= device.shared_per_block;
}

void multiply_one_row(const Launch& how, const TileProducts& products, const LinearInput& input, bool nested) {
  OneRow p;
  p.products = products;
  p.values = input.values, p.residual = input.residual, p.norm_weight = input.norm_weight, p.epsilon = input.epsilon;
  p.stride = input.stride, p.row_of = input.row_of;
  nested ? launch_one<true, false>(how, p, "tile4_one_row") : launch_one<false, false>(how, p, "tile4_one_row");
}

}  // namespace tandem::cuda
