// Linked instead of nccl.cc in a build without CUDA.
#ifndef TANDEM_CUDA
#include "kernels/base/error.h"
#include "sharding/comm/nccl.h"

namespace tandem {

std::unique_ptr<DeviceCommunicator> make_nccl(std::unique_ptr<Communicator>, int, void*, std::chrono::milliseconds) {
  fail(Code::failed_precondition, "nccl", "this program was built without CUDA (build it with -DTANDEM_CUDA=ON)");
}

}  // namespace tandem
#endif
