// tandem serve: the gRPC coordinator, with its ranks as threads, as processes of this MPI job, or as an mpirun of its own.
#include <arpa/inet.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <mutex>

#include "kernels/base/error.h"
#include "launch/commands/commands.h"
#include "launch/signals.h"
#include "launch/topology.h"
#include "launch/wiring.h"
#include "rpc/listen_address.h"
#include "rpc/server.h"

namespace tandem {
namespace {

struct Options {
  DeployOptions deploy;
  ServerOptions server;
  double drain_seconds = 30;
  bool insecure = false;
};

bool is_loopback(const std::string& listen) {
  const std::string host = split_address(listen, "--listen").host;
  in_addr address{};  // not by its beginning: 127.example.com is another machine
  return host == "localhost" || host == "[::1]" || (inet_pton(AF_INET, host.c_str(), &address) == 1 && ntohl(address.s_addr) >> 24 == 127);
}

// What ends the server: a signal, a Drain call, or ranks that are lost for good.
struct End {
  std::mutex mutex;
  std::condition_variable changed;
  bool draining = false, lost = false;
};

int serve(Options& o, ThisJob& job) {
  if (!is_loopback(o.server.listen) && !o.insecure) {
    bad_input("--listen", "is " + o.server.listen + ", reachable from other machines without encryption (say --insecure as well)");
  }
  check_listen_address(o.server.listen, "--listen");  // before anything is loaded
  if (!o.deploy.control_listen.empty()) check_listen_address(o.deploy.control_listen, "--control");
  const bool in_job = job.communicator != nullptr;
  End end;
  const auto deployment = Deployment::start(o.deploy, job);
  Engine& engine = *deployment->engine;
  o.server.ranks = deployment->plan.mesh.size();
  ServerInfo info;
  info.version = TANDEM_VERSION;
  info.build = build_id();
  info.drain = [&end] {
    std::lock_guard lock(end.mutex);
    end.draining = true;
    end.changed.notify_all();
  };
  Server server(o.server, engine, deployment->text->side, std::move(info));
  const bool restartable = deployment->restartable;
  engine.on_state([follow = server.follower(), &end, &engine, restartable](EngineState state) {
    follow(state);
    if (state == EngineState::lost && restartable) {
      const std::optional<Error> why = engine.last_error();
      spdlog::warn("epoch {} is over: {}; its ranks are started again", engine.epoch(), why ? why->what() : "");
    }
    if (state != EngineState::lost || restartable) return;
    std::lock_guard lock(end.mutex);
    end.lost = true;
    end.changed.notify_all();
  });
  on_stop_signal(std::function<void()>([&end] {
    std::lock_guard lock(end.mutex);
    end.draining = true;
    end.changed.notify_all();
  }));
  std::fprintf(stderr, "listening on %s\n", server.address().c_str());
  std::fflush(stderr);

  std::unique_lock lock(end.mutex);
  end.changed.wait(lock, [&end] { return end.draining || end.lost; });
  const bool lost = end.lost;
  lock.unlock();
  if (lost) {
    const Error why = engine.last_error().value_or(Error(Code::unavailable, "ranks", "are lost"));
    server.stop(0.2);  // open streams have their status by now
    std::fprintf(stderr, "error: %s\n", why.what());
    if (in_job) abort_mpi(1);
    _exit(1);
  }
  engine.drain();
  server.stop(o.drain_seconds);
  return 0;
}

}  // namespace

Command add_serve(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->deploy.ranks = RanksAre::processes;
  options->deploy.plan.default_batch = 8;
  CLI::App* command = app.add_subcommand("serve", "A gRPC server: streaming generation over all ranks");
  add_options(*command, options->deploy.model);
  command->add_option("--listen", options->server.listen, "HOST:PORT; port 0 picks one")->capture_default_str();
  command->add_flag("--insecure", options->insecure, "allow --listen on an address other machines can reach");
  add_options(*command, options->deploy.plan.place);
  add_options(*command, options->deploy.plan.size);
  add_options(*command, options->deploy.plan.budget);
  add_trace_option(*command, options->deploy.trace);
  command->add_option("--hosts", options->deploy.hosts, "with --ranks: hosts for mpirun, a,b");
  command->add_option("--control", options->deploy.control_listen, "HOST:PORT that ranks dial (default: loopback; every interface with --hosts)");
  command->add_option("--drain-seconds", options->drain_seconds, "time that running answers get at the end")->capture_default_str()->check(between(0, 1e6));
  command->add_option("--lease-seconds", options->deploy.lease_seconds, "silence after which a rank is dead")->capture_default_str()->check(between(0.05, 1e6));
  command->add_option("--step-deadline-seconds", options->deploy.step_deadline_seconds, "a step that takes longer means a hung rank")->capture_default_str()->check(between(0.05, 1e6));
  command->footer(
      "Examples: tandem serve SmolLM2.gguf --ranks 2        starts its ranks itself and restarts them when one dies\n"
      "          mpirun -n 2 tandem serve SmolLM2.gguf      the ranks are this MPI job; it ends when one dies");
  return {command, [options] {
            hold_stop_signals();
            return run_on_ranks([&](ThisJob& job) { return serve(*options, job); });
          }, true};
}

}  // namespace tandem
