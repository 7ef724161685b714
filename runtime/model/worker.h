// One rank: its stage, its slots, its thread. Steps go in by number, results come out of the last stage's leader; nobody waits for
// anybody but the stage before and the mailbox. The same interface for a local thread and a remote process.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/model/step.h"

namespace tandem {

using StepBytes = std::shared_ptr<const std::vector<std::byte>>;

class Worker {
 public:
  virtual ~Worker() = default;                   // ends the thread; a step under way is aborted
  virtual void submit(StepBytes step) = 0;       // any thread; never blocks
};

// What a worker tells its owner; called on the worker's thread, must not block.
struct WorkerCallbacks {
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> loading;  // of the checkpoint; may be empty; may be called often
  std::function<void()> ready;                   // loaded; steps may be submitted before, they wait
  std::function<void(StepResult)> result;
  std::function<void(uint64_t step)> progress;   // finished its part of that step (every rank)
  std::function<void(Error)> failed;             // the worker is dead after it
};

}  // namespace tandem
