// The ranks of one model as threads of this process. See worker_group.h.
#pragma once
#include <memory>

#include "launch/trace_file.h"
#include "runtime/model/local_worker.h"
#include "runtime/serving/worker_group.h"

namespace tandem {

struct GroupSettings {
  const Blueprint* blueprint = nullptr;  // borrowed
  const Plan* plan = nullptr;            // borrowed
  bool all_logits = false, check_digests = false;
  int threads = 1;                       // of each rank
  double wait_seconds = 30;              // longest wait of one rank for another inside a step
  std::function<LoadListener(int rank)> progress;  // may be empty
  std::shared_ptr<TraceFile> trace;      // null: none
};

std::unique_ptr<WorkerGroup> make_local_group(GroupSettings settings);

// A rank's worker as launch makes it everywhere: the backend of the plan's device, a guarded communicator (may be null with one rank).
WorkerSettings worker_settings(const GroupSettings& settings, int rank, std::function<std::unique_ptr<Communicator>()> communicator);

}  // namespace tandem
