// Control: what the server is, how busy it is, and how to end things. Answers come from gRPC's threads; only planning, which computes,
// goes to a text thread.
#include <grpcpp/grpcpp.h>

#include "rpc/convert.h"
#include "rpc/prepare.h"
#include "rpc/service_core.h"
#include "rpc/tandem.grpc.pb.h"

namespace tandem {
namespace {

const char* state_name(EngineState state) {
  switch (state) {
    case EngineState::loading:
      return "loading";
    case EngineState::serving:
      return "serving";
    case EngineState::draining:
      return "draining";
    case EngineState::lost:
      return "lost";
    case EngineState::stopped:
      return "stopped";
  }
  return "stopped";
}

class ControlService final : public v1::Control::CallbackService {
 public:
  explicit ControlService(ServiceCore& core) : core_(core) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const v1::GetServerInfoRequest*,
                                          v1::GetServerInfoResponse* response) override {
    return answer(context, [&] {
      response->set_version(core_.info.version);
      response->set_build(core_.info.build);
      response->set_state(core_.draining ? "draining" : state_name(core_.engine.state()));
      response->set_uptime_seconds(std::chrono::duration<double>(Clock::now() - core_.started).count());
      response->set_epoch(core_.engine.epoch());
      if (const auto error = core_.engine.last_error()) response->set_last_error(error->what());
      response->set_slow_readers(core_.slow_readers);
    });
  }

  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context, const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override {
    return answer(context, [&] {
      check_model(request->model(), core_.text);
      to_wire(core_.text, *response);
    });
  }

  grpc::ServerUnaryReactor* GetTopology(grpc::CallbackServerContext* context, const v1::GetTopologyRequest*,
                                        v1::GetTopologyResponse* response) override {
    return answer(context, [&] {
      response->set_epoch(core_.engine.epoch());
      for (const RankInfo& info : core_.engine.ranks()) {
        v1::Rank& rank = *response->add_ranks();
        rank.set_rank(info.rank);
        rank.set_pid(info.pid);
        rank.set_host(info.host);
        rank.set_device(info.device);
        rank.set_first_layer(info.first_layer);
        rank.set_last_layer(info.last_layer);
      }
    });
  }

  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context, const v1::GetLoadRequest*,
                                    v1::GetLoadResponse* response) override {
    return answer(context, [&] {
      const Load load = core_.engine.load();
      response->set_running(load.running);
      response->set_waiting(load.waiting);
      response->set_kv_pages_total(load.kv_pages_total);
      response->set_kv_pages_free(load.kv_pages_free);
    });
  }

  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context, const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override {
    return answer(context, [&] {
      std::vector<std::string> ids(request->request_ids().begin(), request->request_ids().end());
      if (request->all()) {
        ids = core_.requests.all();
      } else if (ids.empty()) {
        bad_input("request_ids", "is empty (ids, or all)");
      }
      for (const std::string& id : ids) {
        v1::AbortResponse::Result& result = *response->add_results();
        result.set_request_id(id);
        const bool open = core_.requests.has(id);
        result.set_outcome(open ? v1::AbortResponse::ABORTED : v1::AbortResponse::NOT_FOUND);
        if (open) core_.engine.cancel(id, Code::aborted);
      }
    });
  }

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*, v1::DrainResponse* response) override {
    return answer(context, [&] {
      if (core_.info.drain) {
        core_.info.drain();
      } else {
        core_.engine.drain();
      }
      const Load load = core_.engine.load();
      response->set_running(load.running);
      response->set_waiting(load.waiting);
    });
  }

  grpc::ServerUnaryReactor* PlanCapacity(grpc::CallbackServerContext* context, const v1::PlanCapacityRequest* request,
                                         v1::PlanCapacityResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    if (!core_.info.plan_capacity) {
      reactor->Finish(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "this server does not plan"));
      return reactor;
    }
    const bool taken = core_.threads.run([this, reactor, request, response] {
      finish(reactor, [&] {
        PlanQuestion question{request->model(),     request->gpus(),    request->format(), request->kv_dtype(),
                              request->objective(), request->context(), request->batch(),  {}};
        for (const auto& [device, bytes] : request->max_memory()) question.max_memory[device] = bytes;
        PlanAnswer answer = core_.info.plan_capacity(question);
        response->set_verdict(std::move(answer.verdict));
        response->set_plan_json(std::move(answer.plan_json));
      });
    });
    if (!taken) finish(reactor, [] { fail(Code::resource_exhausted, "queue", "too many requests are waiting (try again)"); });
    return reactor;
  }

 private:
  template <class Work>
  void finish(grpc::ServerUnaryReactor* reactor, Work work) {
    grpc::Status status;
    try {
      work();
    } catch (const Error& error) {
      status = to_status(error, core_.retry_ms(error.code));
    } catch (const std::exception& error) {
      status = to_status(Error(Code::internal, "control", error.what()));
    }
    reactor->Finish(status);
  }

  template <class Work>
  grpc::ServerUnaryReactor* answer(grpc::CallbackServerContext* context, Work work) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    finish(reactor, work);
    return reactor;
  }

  ServiceCore& core_;
};

}  // namespace

std::unique_ptr<grpc::Service> make_control_service(ServiceCore& core) { return std::make_unique<ControlService>(core); }

}  // namespace tandem
