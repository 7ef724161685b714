#include "kernels/cpu/linear_isa.h"

namespace tandem::cpu {

std::span<const LinearKernel* const> avx2_kernels() { return {}; }

}  // namespace tandem::cpu
