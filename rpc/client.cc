#include "rpc/client.h"

#include <grpcpp/grpcpp.h>

#include <mutex>

#include "rpc/convert.h"
#include "rpc/grpc_log.h"
#include "rpc/health.grpc.pb.h"
#include "rpc/slow_factor.h"
#include "rpc/tandem.grpc.pb.h"

namespace tandem {
namespace {

constexpr double kDay = 86400;

std::chrono::system_clock::time_point after(double seconds) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(std::chrono::duration<double>(seconds));
}

void check_status(const grpc::Status& status) {
  if (!status.ok()) throw from_status(status);
}

}  // namespace

std::string_view retry_policy_json() {
  return R"({"methodConfig": [{"name": [{"service": "tandem.v1.Inference"}, {"service": "tandem.v1.Control"}], )"
         R"("retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2, )"
         R"("retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]})";
}

struct Client::Core {
  std::string address;
  ClientOptions options;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> inference;
  std::unique_ptr<v1::Control::Stub> control;
  std::unique_ptr<grpc::health::v1::Health::Stub> health;

  void connect() {
    const auto deadline = after(options.connect_seconds);
    for (;;) {
      const grpc_connectivity_state state = channel->GetState(true);
      if (state == GRPC_CHANNEL_READY) return;
      const bool failed = state == GRPC_CHANNEL_TRANSIENT_FAILURE && options.connect_seconds <= 0;
      const bool changed = !failed && channel->WaitForStateChange(state, options.connect_seconds > 0 ? deadline : after(10 * kSlowFactor));
      if (failed || !changed) {
        fail(Code::unavailable, std::string(name(Code::unavailable)),
             "nobody listens on " + address + " (is `tandem serve` running there?)");
      }
    }
  }

  template <class Stub, class Request, class Response>
  Response ask(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*), const Request& request,
               double seconds = 60) {
    connect();
    grpc::ClientContext context;
    context.set_deadline(after(seconds));
    Response response;
    check_status((stub.*method)(&context, request, &response));
    return response;
  }
};

struct Client::Call::Core {
  std::mutex mutex;
  grpc::ClientContext* context = nullptr;
  bool cancelled = false;

  // The context may be cancelled while an Attach lives.
  struct Attach {
    Attach(Core* core, grpc::ClientContext& context) : core(core) {
      if (core == nullptr) return;
      const std::lock_guard lock(core->mutex);
      core->context = &context;
      if (core->cancelled) context.TryCancel();
    }
    ~Attach() {
      if (core == nullptr) return;
      const std::lock_guard lock(core->mutex);
      core->context = nullptr;
      core->cancelled = false;
    }
    Core* core;
  };
};

Client::Call::Call() : core_(std::make_shared<Core>()) {}
Client::Call::~Call() = default;

void Client::Call::cancel() {
  const std::lock_guard lock(core_->mutex);
  core_->cancelled = true;
  if (core_->context != nullptr) core_->context->TryCancel();
}

Client::Client(std::string address, ClientOptions options) : core_(std::make_unique<Core>()) {
  prepare_grpc();
  Core& core = *core_;
  core.address = std::move(address);
  core.options = options;
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, options.retry ? 1 : 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (options.retry) arguments.SetServiceConfigJSON(std::string(retry_policy_json()));
  core.channel = grpc::CreateCustomChannel(core.address, grpc::InsecureChannelCredentials(), arguments);
  core.inference = v1::Inference::NewStub(core.channel);
  core.control = v1::Control::NewStub(core.channel);
  core.health = grpc::health::v1::Health::NewStub(core.channel);
}

Client::~Client() = default;

AnswerEnd Client::generate(const Ask& ask, const std::function<void(const AnswerDelta&)>& on_delta, double deadline_seconds, Call* call) {
  core_->connect();
  v1::GenerateRequest request;
  to_wire(ask, request);
  grpc::ClientContext context;
  context.set_deadline(after(deadline_seconds > 0 ? deadline_seconds : kDay));
  const Call::Core::Attach attach(call != nullptr ? call->core_.get() : nullptr, context);
  const auto reader = core_->inference->Generate(&context, request);

  v1::GenerateEvent event;
  AnswerEnd end;
  uint64_t sequence = 0;
  bool finished = false, final = false;
  std::optional<Error> broken;
  const auto take = [&] {
    if (event.sequence() != ++sequence)
      fail(Code::internal, "stream", "event " + std::to_string(event.sequence()) + " came in place of " + std::to_string(sequence));
    if (final) fail(Code::internal, "stream", "an event came after the final one");
    switch (event.event_case()) {
      case v1::GenerateEvent::kDelta:
        if (finished) fail(Code::internal, "stream", "a delta came after the end");
        if (on_delta) on_delta(from_wire(event.delta()));
        break;
      case v1::GenerateEvent::kFinished:
        finished = true;
        from_wire(event.finished(), end);
        break;
      case v1::GenerateEvent::kFinal:
        final = true;
        from_wire(event.final(), end);
        break;
      default:
        break;  // of a later version
    }
  };
  try {
    while (reader->Read(&event)) take();
  } catch (...) {
    context.TryCancel();
    while (reader->Read(&event)) {
    }
    reader->Finish();
    throw;
  }
  check_status(reader->Finish());
  if (!final) fail(Code::internal, "stream", "it ended well without a final event");
  return end;
}

Tokens Client::tokenize(const Ask& ask, bool special, bool generation_prompt) {
  v1::TokenizeRequest request;
  to_wire(ask, request);
  request.set_add_special_tokens(special);
  request.set_add_generation_prompt(generation_prompt);
  const auto response = core_->ask(*core_->inference, &v1::Inference::Stub::Tokenize, request);
  return {{response.ids().begin(), response.ids().end()}, {response.pieces().begin(), response.pieces().end()}, response.text()};
}

std::string Client::detokenize(const std::vector<int32_t>& ids, bool skip_special) {
  v1::DetokenizeRequest request;
  request.mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_skip_special_tokens(skip_special);
  return core_->ask(*core_->inference, &v1::Inference::Stub::Detokenize, request).text();
}

int32_t Client::count_tokens(const Ask& ask) {
  v1::CountTokensRequest request;
  to_wire(ask, request);
  return core_->ask(*core_->inference, &v1::Inference::Stub::CountTokens, request).tokens();
}

ServedModel Client::model() {
  const auto info = core_->ask(*core_->control, &v1::Control::Stub::GetModelInfo, v1::GetModelInfoRequest());
  ServedModel out;
  out.name = info.name();
  out.family = info.family();
  out.format = info.format();
  out.compute = info.compute();
  out.kv_dtype = info.kv_dtype();
  out.digest = info.digest();
  out.context = info.context();
  out.vocab = info.vocab();
  out.layers = info.layers();
  out.max_batch = info.max_batch();
  out.chat = info.chat();
  out.text = info.text();
  out.stop_ids.assign(info.stop_token_ids().begin(), info.stop_token_ids().end());
  return out;
}

ServedTopology Client::topology() {
  const auto response = core_->ask(*core_->control, &v1::Control::Stub::GetTopology, v1::GetTopologyRequest());
  ServedTopology out;
  out.epoch = response.epoch();
  for (const v1::Rank& rank : response.ranks()) {
    out.ranks.push_back({rank.rank(), rank.pid(), rank.host(), rank.device(), rank.first_layer(), rank.last_layer()});
  }
  return out;
}

Load Client::load() {
  const auto load = core_->ask(*core_->control, &v1::Control::Stub::GetLoad, v1::GetLoadRequest());
  return {load.running(), load.waiting(), load.kv_pages_total(), load.kv_pages_free()};
}

std::string Client::state() { return core_->ask(*core_->control, &v1::Control::Stub::GetServerInfo, v1::GetServerInfoRequest()).state(); }

std::vector<bool> Client::abort(const std::vector<std::string>& request_ids) {
  v1::AbortRequest request;
  for (const std::string& id : request_ids) request.add_request_ids(id);
  const auto response = core_->ask(*core_->control, &v1::Control::Stub::Abort, request);
  std::vector<bool> out;
  for (const auto& result : response.results()) {
    out.push_back(result.outcome() == v1::AbortResponse::ABORTED);
  }
  return out;
}

void Client::drain() { core_->ask(*core_->control, &v1::Control::Stub::Drain, v1::DrainRequest()); }

bool Client::healthy(const std::string& service) {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  return core_->ask(*core_->health, &grpc::health::v1::Health::Stub::Check, request).status() ==
         grpc::health::v1::HealthCheckResponse::SERVING;
}

}  // namespace tandem
