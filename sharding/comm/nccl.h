// Ranks that each own a GPU: what lies in device memory travels by NCCL in the order of the rank's stream, everything else (control,
// mail, barriers, host numbers) by the host's communicator, over which the ranks also find one another. Without CUDA, or without NCCL
// or a GPU for each rank, making one is refused. Owned and called by the rank's thread, with its device current; abort() from any.
#pragma once
#include <chrono>
#include <memory>
#include <span>

#include "sharding/comm/communicator.h"

namespace tandem {

namespace cuda { class AbortWord; }

// send() and receive() on kHiddenChannel and the collectives look where their memory is. Of device memory they are enqueued on the stream
// and return before they are done: kernels enqueued later come after them, the host calls wait_stream() or wait_event() first. Both ends
// of a message must be of one kind and the same length. Sums: member order for two members, for more an order of NCCL's own; the same
// bits on every member either way. To be captured into a graph, an exchange must have happened once outside of it; the graph ends first.
class DeviceCommunicator : public Communicator {
 public:
  // Makes what the collectives of these members need (half a second), else done by the first of them. Collective over members.
  virtual void prepare(std::span<const int> members) = 0;

  // Waits of the host that end like a Communicator's: when the work enqueued so far (or the event) is done, when something is wrong, at
  // the deadline. After an error everything is aborted, as abort() does.
  virtual void wait_stream() = 0;
  virtual void wait_event(void* event /* cudaEvent_t */) = 0;
  virtual void check() = 0;  // throws what a wait would, never blocks: for those who wait by themselves

  // Raised by abort(): what kernels poll that wait for a peer.
  virtual std::shared_ptr<cuda::AbortWord> abort_word() = 0;
};

// Called by all ranks of `host` at once. `stream`: the rank's cudaStream_t on `device`; outlives the communicator. `deadline`: of every
// wait, those over `host` included. NCCL (libnccl.so.2) is opened by the first call in the process.
// Errors: Code::failed_precondition on all ranks when one has no NCCL or no GPU of its own; Code::deadline_exceeded.
std::unique_ptr<DeviceCommunicator> make_nccl(std::unique_ptr<Communicator> host, int device, void* stream, std::chrono::milliseconds deadline);

}  // namespace tandem
