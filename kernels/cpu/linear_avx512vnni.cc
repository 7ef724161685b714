#include "kernels/cpu/linear_isa.h"

namespace tandem::cpu {

std::span<const LinearKernel* const> avx512vnni_kernels() { return {}; }

}  // namespace tandem::cpu
