#include "rpc/server.h"

#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>

#include <algorithm>
#include <thread>

#include "rpc/grpc_log.h"
#include "rpc/health_service.h"
#include "rpc/listen_address.h"
#include "rpc/service_core.h"
#include "rpc/slow_factor.h"

namespace tandem {
namespace {

constexpr const char* kServices[] = {"tandem.v1.Inference", "tandem.v1.Control", "grpc.health.v1.Health",
                                     "grpc.reflection.v1alpha.ServerReflection", "grpc.channelz.v1.Channelz"};

void set_limits(grpc::ServerBuilder& builder, const ServerOptions& options, int context) {
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8 << 10);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 300000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
  builder.SetMaxReceiveMessageSize((1 << 20) + 32 * context);    // a prompt that fills the context, as text or ids, with room
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);  // reflection and channelz only
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
}

// The names that health knows. Shared with followers, which may outlive the server.
struct HealthNames {
  void set_all(bool serving) {
    health.set("", serving);
    for (const char* name : kServices) health.set(name, serving);
    health.set("model/" + model, serving);
    for (int rank = 0; rank < ranks; ++rank) set_stage(rank, serving);
  }
  void set_stage(int rank, bool serving) { health.set("stage/" + std::to_string(rank), serving); }

  HealthService health;
  std::string model;
  int ranks = 0;
};

}  // namespace

struct Server::Core {
  Core(ServerOptions options, Engine& engine, const TextSide& text, ServerInfo info)
      : shared(std::move(options), engine, text, std::move(info)) {}

  ServiceCore shared;
  std::shared_ptr<HealthNames> names = std::make_shared<HealthNames>();
  std::unique_ptr<grpc::Service> inference, control;
  std::unique_ptr<grpc::Server> server;
  std::string address;
  int port = 0;
  std::mutex stopping;
};

Server::Server(ServerOptions options, Engine& engine, const TextSide& text, ServerInfo info) {
  prepare_grpc();
  check_listen_address(options.listen, "--listen");
  core_ = std::make_unique<Core>(std::move(options), engine, text, std::move(info));
  Core& core = *core_;
  core.names->model = text.model;
  core.names->ranks = core.shared.options.ranks;
  core.names->health.set("liveness", true);
  core.names->set_all(false);
  core.inference = make_inference_service(core.shared);
  core.control = make_control_service(core.shared);

  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::channelz::experimental::InitChannelzService();
  grpc::ServerBuilder builder;
  set_limits(builder, core.shared.options, text.context);
  builder.AddListeningPort(core.shared.options.listen, grpc::InsecureServerCredentials(), &core.port);
  builder.RegisterService(core.inference.get());
  builder.RegisterService(core.control.get());
  builder.RegisterService(core.names->health.service());
  core.server = builder.BuildAndStart();
  if (core.server == nullptr || core.port == 0) {
    fail(Code::failed_precondition, "--listen", "cannot listen on " + core.shared.options.listen + " (another address or port)");
  }
  core.address = split_address(core.shared.options.listen, "--listen").host + ":" + std::to_string(core.port);
}

Server::~Server() { stop(0); }

std::string Server::address() const { return core_->address; }
int Server::port() const { return core_->port; }

std::function<void(EngineState)> Server::follower() const {
  return [names = core_->names](EngineState state) { names->set_all(state == EngineState::serving); };
}
void Server::set_stage(int rank, bool serving) { core_->names->set_stage(rank, serving); }

void Server::stop(double seconds) {
  Core& core = *core_;
  const std::lock_guard lock(core.stopping);
  if (core.server == nullptr) return;
  core.shared.draining = true;
  core.names->health.close();
  const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
  while (core.shared.open_calls > 0 && Clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  core.names->health.shutdown();
  // What is left is cancelled after a moment, in which the last statuses go out.
  core.server->Shutdown(std::chrono::system_clock::now() +
                        std::chrono::milliseconds(core.shared.open_calls > 0 ? 0 : static_cast<int>(1000 * kSlowFactor)));
  core.server.reset();
  core.shared.threads.stop();
}

uint64_t Server::slow_readers() const { return core_->shared.slow_readers; }
int Server::open_calls() const { return core_->shared.open_calls; }

}  // namespace tandem
