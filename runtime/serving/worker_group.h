// The ranks that run one model, for one epoch at a time. In-process threads, the ranks of this mpirun, or a child mpirun: the engine
// cannot tell. All methods from the engine's thread; callbacks from any thread, they must not block.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/model/step.h"
#include "runtime/model/worker.h"

namespace tandem {

struct RankInfo {
  int rank = 0, pid = 0;
  std::string host, device;
  int first_layer = 0, last_layer = -1;
};

struct GroupEvents {
  std::function<void(uint32_t epoch, std::vector<RankInfo> ranks)> ready;  // every rank has loaded
  std::function<void(StepResult)> result;
  // The epoch is over: a rank died, hung or failed. No more results of it will come.
  std::function<void(uint32_t epoch, Error why)> lost;
};

class WorkerGroup {
 public:
  virtual ~WorkerGroup() = default;               // kills what is left
  virtual void start(uint32_t epoch, GroupEvents events) = 0;  // returns at once; ready or lost follows, loading may take its time
  virtual void submit(StepBytes step) = 0;        // to every rank, in order
  virtual void stop() = 0;                        // orderly, at any time, also after lost: returns when no rank is left; no callback runs after it
  virtual void kill() { stop(); }                 // as stop(), but at once and by force: the engine gave the epoch up (a hung rank)
  virtual bool restartable() const = 0;           // start() may be called again after lost
};

}  // namespace tandem
