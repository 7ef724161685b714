// The ranks of the MPI job that this process was started in (`mpirun -n N tandem ...`). Rank 0 is also the coordinator; all ranks,
// rank 0 too, join the control stream as workers. A lost rank ends the job.
#pragma once
#include <memory>

#include "launch/control_group.h"
#include "sharding/comm/comms.h"

namespace tandem {

class Pulse;

struct ThisJob {
  MpiWorld world;
  std::unique_ptr<Communicator> communicator;
  int cores = 1;  // that this rank got of its host's
  std::shared_ptr<Pulse> pulse;  // rank 0: the communicator's user until the others are told what to do
};

// Initialises MPI and shares the host's cores among its ranks. Ends the process when a rank does not come. From then on rank 0 lets the
// others know that it lives, until one of the functions below tells them what to do.
ThisJob join_job();
// The same for ranks that have no coordinator and speak to one another at once.
ThisJob join_ranks();
// The same for a worker that already has a coordinator, which sees who is missing.
std::unique_ptr<Communicator> join_workers();

// Rank 0: a launcher whose one epoch is this job; its own rank runs on a thread of this process.
std::unique_ptr<Launcher> make_job_launcher(ThisJob job);
// Other ranks: wait for the coordinator's word, work, end. Returns the exit code. Ends the process when rank 0 falls silent.
int work_in_job(ThisJob job);
// Rank 0 could not begin: tells the others to end with this exit code.
void dismiss_job(ThisJob& job, int exit_code);

}  // namespace tandem
