// THE list of transports, and the adaptors over any of them.
#pragma once
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/peer_group.h"
#include "sharding/comm/communicator.h"
#include "sharding/mesh.h"

namespace tandem {

// THE list (comms.cc). Each passes tests/sharding/comm/communicator_test.cc; "nccl" (nccl.h) is of GPUs, over either of the others.
struct Transport {
  std::string_view name;
  bool between_processes;
};
std::span<const Transport> transports();

// `size` communicators of one process: element i belongs to the thread that is rank i.
std::vector<std::unique_ptr<Communicator>> make_inproc(int size);
// The ranks of the MPI job; the process must be under mpirun. init_mpi() once before, in any thread; one thread at a time may use it.
struct MpiWorld { int rank = 0, size = 1, local_rank = 0, local_size = 1; };
bool under_mpirun();      // by the launcher's environment, without initialising MPI
int rank_under_mpirun();  // likewise; -1: under no mpirun
MpiWorld init_mpi();
void finalize_mpi();      // orderly end; never after an abort
[[noreturn]] void abort_mpi(int exit_code);  // ends the whole job at once
// Called the same number of times by all ranks. Its destructor waits up to two seconds for what it has sent.
std::unique_ptr<Communicator> make_mpi();
// Every wait of `inner` ends at the deadline with Code::deadline_exceeded, after which the communicator is aborted for good.
std::unique_ptr<Communicator> make_guarded(std::unique_ptr<Communicator> inner, std::chrono::milliseconds deadline);

// Every member's bytes, in member order; all give the same number of them. Over host messages.
std::vector<std::string> exchange(Communicator& communicator, std::span<const int> members, std::string_view mine);

// The peer group of this rank's stage; null when it is alone. Borrows `communicator`.
std::unique_ptr<PeerGroup> make_peer_group(Communicator& communicator, const Mesh& mesh);

}  // namespace tandem
