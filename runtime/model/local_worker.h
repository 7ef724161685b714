// A rank as a thread of this process: loads its stage, then carries out steps in order. Made by launch; see worker.h.
#pragma once
#include "kernels/base/trace.h"
#include "runtime/model/blueprint.h"
#include "runtime/model/loader.h"
#include "runtime/model/worker.h"
#include "sharding/comm/communicator.h"

namespace tandem {

struct WorkerSettings {
  const Blueprint* blueprint = nullptr;   // borrowed, shared by the ranks of a process
  const Plan* plan = nullptr;             // borrowed
  int rank = 0;
  bool all_logits = false;
  bool check_digests = false;
  std::function<std::unique_ptr<Backend>()> backend;           // called on the rank's thread
  std::function<std::unique_ptr<Communicator>(Backend&)> communicator;  // likewise; may be empty with one rank
  std::function<std::unique_ptr<PeerGroup>(Communicator&, Backend&)> peers;  // of this rank's stage, likewise; may give null: alone in it
  LoadListener progress;                  // called on the rank's thread
  std::shared_ptr<TraceTrack> trace;      // what the rank's thread does; null: nobody wants to know
};

std::unique_ptr<Worker> make_local_worker(WorkerSettings settings, WorkerCallbacks callbacks);

}  // namespace tandem
