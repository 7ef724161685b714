// Rows of a large step brought together by expert.
#pragma once
#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/plan/layout.h"

namespace tandem::cuda {

// out[pair] = h[row_of[pair]]; element[pairs, hidden].
void gather_rows(const Launch& how, const void* h, Element element, int64_t hidden, const int32_t* row_of, int64_t pairs, void* out);

}  // namespace tandem::cuda
