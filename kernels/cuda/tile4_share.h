// How a product of several rows is shared out among blocks and warps, and its launch.
#pragma once
#include <span>

#include "kernels/cuda/tile4_rows.cuh"
#include "kernels/cuda/tile4_launch.h"

namespace tandem::cuda {

struct RowsKernel {  // an instance of some_rows
  void (*kernel)(SomeRows);
  int columns, tiles, ring, most_warps;
};

// Takes the kernel and the shares that should be fastest for p.products; `items`: how many times the matrix is multiplied with up to
// 8 * columns rows (1, or the items of experts).
void launch_rows(const Launch& how, SomeRows p, std::span<const RowsKernel> kernels, int items, const LinearScratch& scratch);

}  // namespace tandem::cuda
