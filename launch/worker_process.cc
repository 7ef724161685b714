#include "launch/worker_process.h"

#include <future>
#include <nlohmann/json.hpp>

#include "launch/devices.h"
#include "launch/local_group.h"
#include "launch/topology.h"
#include "launch/trace_file.h"

namespace tandem {
namespace {

// What must outlive the worker.
struct Held {
  Blueprint blueprint;
  Plan plan;
};

}  // namespace

std::string to_json(const WorkerTerms& t) {
  return nlohmann::json{{"model", t.model.model}, {"format", t.model.format}, {"double_quant", t.model.double_quant}, {"weights", t.model.weights}, {"compute", t.model.compute},
                        {"kv_dtype", t.model.kv_dtype}, {"threads", t.threads}, {"all_logits", t.all_logits}, {"check_digests", t.check_digests},
                        {"wait_seconds", t.wait_seconds}, {"trace", t.trace}, {"trace_host", t.trace_host}}.dump();
}

WorkerTerms worker_terms_from_json(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text);
  WorkerTerms t;
  t.model.model = json.at("model");
  t.model.format = json.at("format");
  t.model.double_quant = json.at("double_quant");
  t.model.weights = json.at("weights");
  t.model.compute = json.at("compute");
  t.model.kv_dtype = json.at("kv_dtype");
  t.threads = json.at("threads");
  t.all_logits = json.at("all_logits");
  t.check_digests = json.at("check_digests");
  t.wait_seconds = json.at("wait_seconds");
  t.trace = json.at("trace");
  t.trace_host = json.at("trace_host");
  return t;
}

void run_worker(const RemoteWorkerOptions& options, const std::function<std::unique_ptr<Communicator>()>& communicator,
                const std::function<void(const Error&)>& on_lost) {
  auto held = std::make_shared<Held>();
  const LoadWorker load = [&, held](const WelcomeTerms& welcome, Rendezvous&, WorkerCallbacks callbacks) {
    auto shared = std::make_shared<std::unique_ptr<Communicator>>(communicator());
    const WorkerTerms terms = worker_terms_from_json(welcome.options);
    held->plan = plan_from_json(nlohmann::json::parse(welcome.plan), "plan");
    held->blueprint = make_blueprint(terms.model, is_gpu(held->plan.devices.at(static_cast<size_t>(options.rank)).id));
    if (held->blueprint.checkpoint.digest != held->plan.digest) {
      bad_input(terms.model.model, "on host " + host_name() + " is not what the coordinator planned (every host needs the same files)");
    }
    GroupSettings settings;
    settings.blueprint = &held->blueprint;
    settings.plan = &held->plan;
    settings.all_logits = terms.all_logits;
    settings.check_digests = terms.check_digests;
    settings.threads = terms.threads;
    settings.wait_seconds = terms.wait_seconds;
    if (!terms.trace.empty() && terms.trace_host == host_name()) settings.trace = TraceFile::join(terms.trace);
    settings.progress = [loading = callbacks.loading](int) -> LoadListener {
      return [loading](const LoadProgress& done) { loading(done.done_bytes, done.total_bytes); };
    };

    // The stage loads on the worker's own thread; ready is said when it has.
    auto loaded = std::make_shared<std::promise<void>>();
    auto told = std::make_shared<std::atomic<bool>>(false);
    callbacks.ready = [loaded, told, ready = callbacks.ready] {
      ready();
      if (!told->exchange(true)) loaded->set_value();
    };
    const auto failed = callbacks.failed;
    callbacks.failed = [loaded, told, failed](Error error) {
      if (!told->exchange(true)) {
        loaded->set_exception(std::make_exception_ptr(error));
      } else {
        failed(std::move(error));
      }
    };
    std::function<std::unique_ptr<Communicator>()> take;
    if (held->plan.mesh.size() > 1) take = [shared] { return std::move(*shared); };
    LoadedWorker result;
    result.worker = make_local_worker(worker_settings(settings, options.rank, take), std::move(callbacks));
    loaded->get_future().get();
    const PlanStage& stage = held->plan.stages.at(static_cast<size_t>(held->plan.mesh.stage(options.rank)));
    result.device = held->plan.devices.at(static_cast<size_t>(options.rank)).id;
    result.first_layer = stage.first_layer;
    result.last_layer = stage.last_layer;
    return result;
  };
  run_remote_worker(options, load, on_lost);
}

}  // namespace tandem
