// Residual sums and norms of one row (Zhang & Sennrich 2019 for RMS, Ba et al. 2016 for layer norm). Sums run in a fixed order.
#pragma once
#include <cstdint>

#include "kernels/program/record.h"

namespace tandem::cpu {

// x += pending (null: nothing to add); out = norm(x). All float[width]; bias may be null, out may be x.
// kind none: out = x, without a weight.
void add_normalize(float* x, const float* pending, int64_t width, NormKind kind, float epsilon, const float* weight, const float* bias,
                   float* out);
// out = a + b, float[width].
void add(const float* a, const float* b, int64_t width, float* out);
// x = x * scale, then soft_cap * tanh(x / soft_cap) unless soft_cap is 0.
void scale_and_cap(float* x, int64_t width, float scale, float soft_cap);

}  // namespace tandem::cpu
