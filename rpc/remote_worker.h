// The worker process's end of the control stream: dials the coordinator, loads through a function of launch, feeds steps to the Worker
// and results back. Heartbeats come from a thread of their own, so loading and computing do not stop them.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/base/error.h"
#include "rpc/slow_factor.h"
#include "runtime/model/worker.h"
#include "runtime/serving/worker_group.h"
#include "sharding/comm/rendezvous.h"

namespace tandem {

struct RemoteWorkerOptions {
  std::string address;  // the coordinator's control address
  std::string secret;
  uint32_t epoch = 0;
  int rank = 0;
  std::string build;
  double heartbeat_seconds = 0.2;
  double lease_seconds = 3 * kSlowFactor;  // without a word from the coordinator: fenced
  double connect_seconds = 10 * kSlowFactor;
};

struct WelcomeTerms {
  uint32_t epoch = 0;
  int ranks = 0;
  std::string plan, options;
};

struct LoadedWorker {
  std::unique_ptr<Worker> worker;
  std::string device;
  int first_layer = 0, last_layer = -1;
};
// Called on the caller's thread of run_remote_worker. The callbacks may be used from any thread until the worker is destroyed.
using LoadWorker = std::function<LoadedWorker(const WelcomeTerms&, Rendezvous&, WorkerCallbacks)>;

// Returns when the coordinator says shutdown, after destroying the worker. `lost` is called at most once, from a thread of ours, when the
// stream ends otherwise, the lease runs out or the worker fails (by then the coordinator has been told): the process should _exit in it.
// If `lost` returns, so does run_remote_worker, by throwing the same Error. Errors before that: unauthenticated, unavailable; what `load`
// throws is reported to the coordinator and thrown again.
void run_remote_worker(const RemoteWorkerOptions& options, const LoadWorker& load, const std::function<void(const Error&)>& lost);

}  // namespace tandem
