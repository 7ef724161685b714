// The kernels over 4-bit tiles, as tile4.cu calls them; each in a file of its own.
#pragma once
#include "kernels/cuda/tile4.cuh"
#include "kernels/cuda/tile4.h"

namespace tandem::cuda {

// Activations and the table are bf16. `nested`: Tile4::nested of all products.
bool one_row_takes(const DeviceInfo& device, const TileProducts& products, const LinearInput& input);
void multiply_one_row(const Launch& how, const TileProducts& products, const LinearInput& input, bool nested);
// 2 .. 32 rows of values: with wgmma, and without.
void multiply_group_rows(const Launch& how, const TileProducts& products, const LinearInput& input, bool nested, const LinearScratch& scratch);
void multiply_rows(const Launch& how, const TileProducts& products, const LinearInput& input, bool nested, const LinearScratch& scratch);

}  // namespace tandem::cuda
