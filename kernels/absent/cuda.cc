// What a build without CUDA links in place of the CUDA backend.
#include "kernels/base/error.h"
#include "kernels/cuda/plan/cuda.h"

namespace tandem::cuda {

int gpu_count() { return 0; }
std::vector<Gpu> gpus() { return {}; }
std::string why_none() { return "this build has no CUDA (configure it with -DTANDEM_CUDA=ON, or build preset cuda)"; }

std::unique_ptr<PeerGroup> make_cuda_peers(Backend&, int, int, uint64_t, std::shared_ptr<AbortWord>, PeerGroup*, const Exchange&) {
  fail(Code::failed_precondition, "--device", "cannot be cuda: " + why_none());
}
double measure_read_bandwidth(int) { return 0; }
CopyRate measure_copy(int, int) { return {}; }

std::unique_ptr<Backend> make_cuda_backend(int) { fail(Code::failed_precondition, "--device", "cannot be cuda: " + why_none()); }

}  // namespace tandem::cuda
