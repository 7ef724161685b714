// The kernels of each instruction set, best first. Only linear.cc may call these, after it has asked the processor.
#pragma once
#include <span>

#include "kernels/cpu/linear.h"

namespace tandem::cpu {

std::span<const LinearKernel* const> avx512vnni_kernels();
std::span<const LinearKernel* const> avx2_kernels();

}  // namespace tandem::cpu
