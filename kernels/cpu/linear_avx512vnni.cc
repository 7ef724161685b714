#include "kernels/cpu/linear_isa.h"

namespace tandem::cpu {

std::span<const LinearKernel* const> avx512vnni_kernels() { return {}; }
void avx512vnni_quantize_row(const float* x, int64_t cols, Int8Block* out) { quantize_row(x, cols, out); }

}  // namespace tandem::cpu
