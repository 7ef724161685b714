// tandem worker: one rank under the mpirun that `serve --ranks` starts. Not typed by people.
#include <unistd.h>

#include <cstdlib>

#include "kernels/base/error.h"
#include "launch/addresses.h"
#include "launch/commands/commands.h"
#include "launch/signals.h"
#include "launch/this_job.h"
#include "launch/topology.h"
#include "launch/worker_process.h"

namespace tandem {
namespace {

struct Options {
  std::string control;
  uint32_t epoch = 0;
};

constexpr int kLostExit = 73;  // the coordinator is gone, or this rank failed and has said so

int work(const Options& o) {
  const char* secret = std::getenv("TANDEM_SECRET");
  if (!under_mpirun() || !secret) bad_input("worker", "is started by tandem serve --ranks (not by hand)");
  RemoteWorkerOptions options;
  options.secret = secret;
  options.epoch = o.epoch;
  options.build = build_id();
  unsetenv("TANDEM_SECRET");
  die_with_parent();
  set_error_reporting(false);
  options.address = reachable_address(o.control, options.connect_seconds);
  options.rank = rank_under_mpirun();
  // MPI starts after the coordinator has been told who is here: whoever stops or dies while the others wait for it in MPI_Init is missed.
  run_worker(options, [] { return join_workers(); }, [](const Error&) { _exit(kLostExit); });
  finalize_mpi();
  return 0;
}

}  // namespace

Command add_worker(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("worker", "One rank below `serve --ranks`; not typed by people");
  command->add_option("--control", options->control, "where the coordinator listens")->required();
  command->add_option("--epoch", options->epoch, "life of the worker group")->required();
  command->footer("Started by: tandem serve MODEL --ranks N");
  return {command, [options] { return work(*options); }, true};
}

}  // namespace tandem
