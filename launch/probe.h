// Measures devices and links for a cluster file (sharding/cluster.h): what `plan --cluster` reads. One process measures its machine; the
// ranks of an MPI job measure together, each its share of the cores, or one of each host its GPUs, and the links between them.
#pragma once
#include <functional>
#include <string>

#include "launch/this_job.h"
#include "sharding/cluster.h"

namespace tandem {

struct ProbeOptions {
  std::string device = "auto";  // as --device of other commands
  int threads = 0;              // of a CPU device; 0: its cores
};

// What is measured at the moment, for people: "link 0 - 1". Called on the caller's thread.
using ProbeListener = std::function<void(const std::string& what)>;

// This machine. Device ids as `plan` names them: "0", "1" ..., or "cpu". Errors: as wants_gpus().
Cluster probe_here(const ProbeOptions& options, const ProbeListener& listener);
// The job's devices, on every rank the same. CPU ranks are "cpu:0", "cpu:1" ..., GPUs "HOST/0" when there are several hosts. Every rank calls
// it. Errors: those of probe_here on any rank, and of the communicator.
Cluster probe_job(const ProbeOptions& options, Communicator& communicator, const MpiWorld& world, const ProbeListener& listener);

}  // namespace tandem
