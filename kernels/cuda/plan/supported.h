// What programs the CUDA backend can run. Plain C++, so that it can be asked without a GPU.
#pragma once
#include "kernels/program/program.h"

namespace tandem::cuda {

// Errors: Code::failed_precondition naming the record, when the program holds one, or a part of one, that no kernel computes yet.
void check_supported(const Program& program);

}  // namespace tandem::cuda
