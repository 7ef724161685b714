// Puts the concrete pieces together: a model opened, planned, its ranks started, an engine over them. The one place where classes are
// chosen. Used by every command that runs a model.
#pragma once
#include <functional>
#include <memory>

#include "launch/options.h"
#include "launch/planning.h"
#include "launch/text.h"
#include "launch/this_job.h"
#include "launch/trace_file.h"
#include "runtime/serving/engine.h"

namespace tandem {

enum class RanksAre : uint8_t { threads, processes };  // what --ranks N means to the command (under mpirun: the job's processes)

class Deployment;

struct DeployOptions {
  ModelOptions model;
  PlanRequest plan;
  RanksAre ranks = RanksAre::threads;
  bool needs_text = true;          // false: no tokenizer is opened
  bool check_digests = false;
  bool prefix_cache = true;
  std::string hosts, log_level;    // of worker processes
  std::string control_listen;      // "": a port on loopback; on every interface when ranks are on other hosts
  double lease_seconds = 1, step_deadline_seconds = 10;
  std::string trace;               // file to write; "": none
  // Whether what is asked suits the model; throws when not. Blueprint, plan and text are there. In an MPI job it comes before the ranks
  // start: one that is cut off later would give the job its own exit code.
  std::function<void(const Deployment&)> check;
};

// Owns everything between a prompt and its tokens, on the coordinator.
class Deployment {
 public:
  // Starts loading; returns once the plan is made and the ranks are on their way. `job`: the MPI job that this process leads, empty
  // outside of one; it is moved from when its ranks are started. Errors: Code::invalid_argument and others, nothing half-started.
  static std::unique_ptr<Deployment> start(const DeployOptions& options, ThisJob& job);
  ~Deployment();

  // Blocks until the model can answer. Errors: why the ranks could not be started.
  void wait_ready();

  Blueprint blueprint;
  Plan plan;
  std::unique_ptr<Backend> backend;    // sizes only; computes nothing
  std::unique_ptr<OpenText> text;
  std::shared_ptr<TraceFile> trace;    // null: none; closed after everything below has ended
  std::unique_ptr<WorkerGroup> group;
  std::unique_ptr<Engine> engine;
  std::string compute;                 // as reported: "fp32", "int8", ...
  bool restartable = false;
  double load_seconds = 0;

 private:
  Deployment() = default;
  void read_text(const DeployOptions& options);  // and checks
  std::shared_ptr<TraceTrack> engine_trace_;
  Clock::time_point started_;
};

// Runs a command's coordinator part here, or, on the other ranks of an MPI job, the worker's; returns the exit code. Errors of the
// coordinator end the other ranks in order.
int run_on_ranks(const std::function<int(ThisJob& job)>& coordinator);

// "int8" when any product of this model takes int8 activations, else the compute type's name.
std::string compute_label(const Blueprint& blueprint);

}  // namespace tandem
