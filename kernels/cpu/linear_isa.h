// The kernels of each instruction set, best first. Only linear.cc may call these, after it has asked the processor.
#pragma once
#include <span>

#include "kernels/cpu/linear.h"

namespace tandem::cpu {

std::span<const LinearKernel* const> avx512vnni_kernels();
std::span<const LinearKernel* const> avx2_kernels();

// One row of activations into int8_blocks(cols) blocks, all the same bits; quantize_block is the definition.
void quantize_block(const float* x, int64_t count, Int8Block* out);
void quantize_row(const float* x, int64_t cols, Int8Block* out);
void avx2_quantize_row(const float* x, int64_t cols, Int8Block* out);
void avx512vnni_quantize_row(const float* x, int64_t cols, Int8Block* out);

}  // namespace tandem::cpu
