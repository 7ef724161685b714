#include "kernels/absent/cuda.h"

#include "kernels/base/error.h"

namespace tandem::cuda {

int device_count() { return 0; }

std::unique_ptr<Backend> make_cuda_backend(int device) {
  fail(Code::failed_precondition, "--device cuda:" + std::to_string(device),
       "this tandem was built without CUDA (configure it with -DTANDEM_CUDA=ON)");
}

}  // namespace tandem::cuda
