// A rank as a process: joins the coordinator on the control stream, loads what the plan gives it, works until told to end.
#pragma once
#include <memory>
#include <string>

#include "launch/options.h"
#include "rpc/remote_worker.h"
#include "sharding/comm/communicator.h"

namespace tandem {

// What a worker must know besides the plan; travels as JSON in the welcome, so that a worker's command line says only where to dial.
struct WorkerTerms {
  ModelOptions model;
  int threads = 1;  // of each rank: the plan's workspace is for so many
  bool all_logits = false, check_digests = false;
  double wait_seconds = 30;
  std::string trace, trace_host;  // a file that ranks on this host write too; "": none
};
std::string to_json(const WorkerTerms& terms);
WorkerTerms worker_terms_from_json(const std::string& text);

// Blocks until the coordinator says it is over. `communicator` is called once, on this thread, when the coordinator has answered: what goes
// wrong in it, a silent wait included, the coordinator learns. `on_lost` as in run_remote_worker.
void run_worker(const RemoteWorkerOptions& options, const std::function<std::unique_ptr<Communicator>()>& communicator,
                const std::function<void(const Error&)>& on_lost);

}  // namespace tandem
