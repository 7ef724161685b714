#include "kernels/cpu/linear_isa.h"

namespace tandem::cpu {

std::span<const LinearKernel* const> avx2_kernels() { return {}; }
void avx2_quantize_row(const float* x, int64_t cols, Int8Block* out) { quantize_row(x, cols, out); }

}  // namespace tandem::cpu
