// The ranks of the MPI job that this process was started in (`mpirun -n N tandem ...`). Rank 0 is also the coordinator; all ranks,
// rank 0 too, join the control stream as workers. A lost rank ends the job.
#pragma once
#include <memory>

#include "launch/control_group.h"
#include "sharding/comm/comms.h"

namespace tandem {

struct ThisJob {
  MpiWorld world;
  std::unique_ptr<Communicator> communicator;
  int cores = 1;  // that this rank got of its host's
};

// Initialises MPI and shares the host's cores among its ranks.
ThisJob join_job();

// Rank 0: a launcher whose one epoch is this job; its own rank runs on a thread of this process.
std::unique_ptr<Launcher> make_job_launcher(ThisJob job);
// Other ranks: wait for the coordinator's word, work, end. Returns the exit code.
int work_in_job(ThisJob job);
// Rank 0 could not begin: tells the others to end with this exit code.
void dismiss_job(ThisJob& job, int exit_code);

}  // namespace tandem
