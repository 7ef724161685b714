// Which query rows a block of a prompt's attention has.
#pragma once
#include "kernels/cuda/step_view.h"

namespace tandem::cuda {

struct RowBlock { int sequence = -1, first = 0, rows = 0; };  // rows [first, first + rows) of a sequence
// The block of this number among those of all sequences of more than one row; by all lanes of a warp.
template <int ROWS>
__device__ __forceinline__ RowBlock row_block(const StepView& step, int number) {
  const int lane = threadIdx.x % 32, sequences = step.counts[1];
  for (int base = 0; base < sequences; base += 32) {
    const int rows = base + lane < sequences ? step.sequences[base + lane].rows : 0;
    const int blocks = rows > 1 ? (rows + ROWS - 1) / ROWS : 0;
    int before = blocks;  // and including this lane's
#pragma unroll
    for (int l = 1; l < 32; l *= 2) {
      const int other = __shfl_up_sync(~0u, before, l);
      if (lane >= l) before += other;
    }
    const unsigned found = __ballot_sync(~0u, number < before);
    if (found != 0) {
      const int owner = __ffs(static_cast<int>(found)) - 1;
      const int first = (number - __shfl_sync(~0u, before - blocks, owner)) * ROWS;
      return {base + owner, first, min(ROWS, __shfl_sync(~0u, rows, owner) - first)};
    }
    number -= __shfl_sync(~0u, before, 31);
  }
  return {};
}

}  // namespace tandem::cuda
