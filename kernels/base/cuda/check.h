// Errors of CUDA calls as Error.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

#include "kernels/base/error.h"

namespace tandem::cuda {

// Errors: Code::resource_exhausted when memory is short, else Code::internal; `what` is what was tried.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  const Code code = error == cudaErrorMemoryAllocation ? Code::resource_exhausted : Code::internal;
  fail(code, what, std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error));
}

}  // namespace tandem::cuda
