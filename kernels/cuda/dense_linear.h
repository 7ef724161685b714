// Products of few rows with row-major weights of fp32, bf16 or fp16, for single matrices and for the experts of a mixture.
#pragma once
#include "kernels/cuda/moe.h"

namespace tandem::cuda {

void dense_linear(const Launch& how, const LinearCall& call, const LinearScratch& scratch);
// gated and results of a call; not yet joined.
void dense_experts(const Launch& how, const ExpertCall& call);

// What dense_linear takes of the scratch: normalized rows, after the part that is kept zero for other kernels.
constexpr uint64_t kDenseInputOffset = 64 << 10;

}  // namespace tandem::cuda
