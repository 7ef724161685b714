// The CUDA backend as the rest of the program sees it, whether this build has it or not.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/program/backend.h"

namespace tandem::cuda {

struct Gpu {
  int index = 0;
  std::string name;             // as the driver says it
  uint64_t total_bytes = 0, free_bytes = 0;
  int major = 0, minor = 0;     // compute capability
};

int gpu_count();                // of this machine; 0 without a driver, a device or CUDA in the build
std::vector<Gpu> gpus();        // of this machine, their memory as it is now; empty without a driver, a device or CUDA in the build
std::string why_none();         // one clause that says why gpus() is empty: "no CUDA driver is loaded", ...

// Errors: Code::failed_precondition when there is no such device, or it is too old for the kernels of this build, or CUDA is not built in.
std::unique_ptr<Backend> make_cuda_backend(int device);

// The members of a stage, each with a device: collectives on device memory in the order of the backend's stream. `abort_word`: what its
// kernels poll, from the communicator. `exchange` gives every member's bytes to all. `otherwise`: used where devices cannot reach one
// another. All members at once. Errors: those of make_device_peers.
class AbortWord;
using Exchange = std::function<std::vector<std::string>(std::string_view mine)>;
std::unique_ptr<PeerGroup> make_cuda_peers(Backend& backend, int index, int size, uint64_t longest_bytes, std::shared_ptr<AbortWord> abort_word,
                                           PeerGroup* otherwise, const Exchange& exchange);

// Bytes per second that a device reads of its own memory, measured now: the best of several passes over gigabytes.
double measure_read_bandwidth(int device);

// Copies from one device's memory to another's, by the device's own engine: seconds of a small one among many, bytes per second of a large one.
struct CopyRate {
  double latency = 0, bandwidth = 0;
  bool direct = false;  // else through the host's memory
};
CopyRate measure_copy(int from, int to);

// Tells sizes and layouts without a device; it cannot compile, place or allocate (Code::failed_precondition).
std::unique_ptr<Backend> make_cuda_sizes();

}  // namespace tandem::cuda
