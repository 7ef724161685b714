// A worker group of processes on the control stream, however they were started. See worker_group.h.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "runtime/serving/worker_group.h"
#include "sharding/plan.h"

namespace tandem {

// Starts the processes of an epoch. start() returns at once; `ended` is called (any thread) when they are all gone or could not be
// started. kill() returns when none is left; no `ended` after it.
struct EpochAddress { uint32_t epoch = 0; std::string control, secret; int ranks = 1; };
class Launcher {
 public:
  virtual ~Launcher() = default;
  virtual void start(const EpochAddress& address, std::function<void(Error)> ended) = 0;
  virtual void wait(double seconds) = 0;  // for an orderly end after the workers were told to go
  virtual void kill() = 0;
  virtual bool can_restart() const = 0;
};

struct ControlGroupSettings {
  std::string plan, options;   // handed to the workers as they are
  int ranks = 1;
  std::string listen = "127.0.0.1:0";  // host 0.0.0.0: workers get all addresses of this host, and take one that answers
  double lease_seconds = 1;
  double straggle_seconds = 10;  // from the first rank that joins to the last
};

std::unique_ptr<WorkerGroup> make_control_group(ControlGroupSettings settings, std::unique_ptr<Launcher> launcher);

}  // namespace tandem
