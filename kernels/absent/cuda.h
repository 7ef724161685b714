// What a build without CUDA links in place of the CUDA backend: the same factory, which refuses by name.
#pragma once
#include <memory>

#include "kernels/program/backend.h"

namespace tandem::cuda {

int device_count();  // 0 here
// Errors: Code::failed_precondition here, always.
std::unique_ptr<Backend> make_cuda_backend(int device);

}  // namespace tandem::cuda
