#include "launch/wiring.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <future>

#include "kernels/cpu/products.h"
#include "launch/devices.h"
#include "launch/local_group.h"
#include "launch/mpirun.h"
#include "launch/progress.h"
#include "launch/signals.h"
#include "launch/topology.h"
#include "launch/trace_file.h"
#include "launch/worker_process.h"
#include "rpc/slow_factor.h"

namespace tandem {

namespace {

// The ranks of a job have answered one another when they are told to join, so one that does not within seconds was stopped meanwhile.
constexpr double kJobStraggle = 2, kJobStraggleRank = 0.1;

int hosts_in(const std::string& hosts) { return 1 + static_cast<int>(std::count(hosts.begin(), hosts.end(), ',')); }

}  // namespace

std::string compute_label(const Blueprint& blueprint) {
  if (!blueprint.arithmetic.automatic) return std::string(name(blueprint.arithmetic.compute));
  for (WeightId id = 0; id < blueprint.model->weights.size(); ++id) {
    const Role role = blueprint.model->weights[id].role;
    const bool product = role == Role::linear || role == Role::head;
    const Format& format = *blueprint.formats.held[static_cast<size_t>(id)];
    if (product && cpu::wanted_activations(format, blueprint.arithmetic) == cpu::Activations::int8) return "int8";
  }
  return std::string(name(blueprint.arithmetic.compute));
}

std::unique_ptr<Deployment> Deployment::start(const DeployOptions& options, ThisJob& job) {
  std::unique_ptr<Deployment> d(new Deployment);
  d->started_ = Clock::now();
  const bool in_job = job.communicator != nullptr;
  if (options.model.model.empty()) bad_input("MODEL", "is missing (a directory or a .gguf file)");
  if (!options.trace.empty()) d->trace = TraceFile::create(options.trace, [](const std::string& why) { spdlog::warn("{}", why); });
  const bool gpus = plans_for_gpus(options.plan);
  d->blueprint = make_blueprint(options.model, gpus);
  if (!d->blueprint.checkpoint.tensors) bad_input(options.model.model, "holds no weights (a directory with safetensors or a .gguf file is needed to run, or --weights synthetic)");
  if (!d->blueprint.model->runs()) {
    fail(Code::failed_precondition, options.model.model, "is of family " + std::string(d->blueprint.model->family()) + ", which can be planned but not run");
  }
  PlanRequest request = options.plan;
  if (in_job) {
    if (request.place.ranks != 0 && request.place.ranks != job.world.size) {
      bad_input("--ranks", "is " + std::to_string(request.place.ranks) + " (mpirun started " + std::to_string(job.world.size) + ")");
    }
    request.place.ranks = job.world.size;
  }
  // Every rank computes with as many threads as the plan's workspace is for.
  const int threads_here = in_job ? job.cores : threads_for(0, std::max(1, gpus ? 1 : cpu_ranks(request) / hosts_in(options.hosts)));
  const int threads = request.place.threads > 0 ? request.place.threads : threads_here;
  d->backend = make_sizes(gpus, threads);
  d->plan = plan_for(d->blueprint, request, *d->backend);
  require_fits(d->plan);
  if (options.hosts.empty()) {
    for (const PlanDevice& device : d->plan.devices) require_here(device.id);
  }
  d->compute = compute_label(d->blueprint);
  const int ranks = d->plan.mesh.size();
  if (in_job) d->read_text(options);

  const bool processes = in_job || (options.ranks == RanksAre::processes && ranks > 1);
  if (processes) {
    WorkerTerms terms{options.model, threads, request.all_logits, options.check_digests, 3 * options.step_deadline_seconds * kSlowFactor, {}, {}};
    if (d->trace) {
      d->trace->begin();
      terms.trace = d->trace->path();
      terms.trace_host = host_name();
    }
    ControlGroupSettings settings;
    settings.plan = to_json(d->plan).dump();
    settings.options = to_json(terms);
    settings.ranks = ranks;
    const bool other_hosts = in_job ? job.world.local_size < job.world.size : !options.hosts.empty();
    if (d->trace && other_hosts) spdlog::warn("--trace: {} will not have the ranks of other hosts (their clocks are others)", options.trace);
    settings.listen = !options.control_listen.empty() ? options.control_listen : other_hosts ? "0.0.0.0:0" : "127.0.0.1:0";
    settings.lease_seconds = options.lease_seconds;
    std::unique_ptr<Launcher> launcher;
    if (in_job) {
      settings.straggle_seconds = kJobStraggle + kJobStraggleRank * ranks;
      launcher = make_job_launcher(std::move(job));
    } else {
      launcher = make_mpirun_launcher({options.hosts, options.log_level, options.log_level == "debug"});
    }
    d->group = make_control_group(std::move(settings), std::move(launcher));
  } else {
    GroupSettings settings;
    settings.blueprint = &d->blueprint;
    settings.plan = &d->plan;
    settings.all_logits = request.all_logits;
    settings.check_digests = options.check_digests;
    settings.threads = threads;
    settings.wait_seconds = 3 * options.step_deadline_seconds * kSlowFactor;
    settings.trace = d->trace;
    auto bars = std::make_shared<Progress>("loading", ranks);
    settings.progress = [bars](int rank) -> LoadListener {
      return [lane = bars->lane(rank)](const LoadProgress& done) { lane(done.done_bytes, done.total_bytes); };
    };
    d->group = make_local_group(settings);
  }
  d->restartable = d->group->restartable();

  EngineOptions engine;
  engine.max_batch = d->plan.workload.batch;
  engine.chunk = d->plan.workload.chunk;
  // A core computes some two thousand prompt tokens a second of a small model: a longer chunk would be felt by every running stream.
  constexpr int32_t kDecodeChunk = 64;
  engine.decode_chunk = gpus ? engine.chunk : std::min(kDecodeChunk, engine.chunk);
  engine.max_queue = request.size.max_queue;
  engine.page_tokens = d->plan.workload.page_tokens;
  engine.context = d->plan.workload.context;
  engine.groups = d->plan.mesh.pp;
  engine.kv_pages = d->plan.kv_pages;
  for (const KvGroup& group : d->blueprint.model->kv_groups) engine.kv_windows.push_back(static_cast<int32_t>(group.window));
  engine.vocab = static_cast<int32_t>(d->blueprint.model->shape.vocab);
  engine.prefix_cache = options.prefix_cache;
  engine.step_deadline_seconds = options.step_deadline_seconds * kSlowFactor;
  engine.check_digests = options.check_digests;
  if (d->trace) d->engine_trace_ = d->trace->track(kCoordinatorProcess, "coordinator", 1, "engine");
  d->engine = std::make_unique<Engine>(engine, *d->group, d->engine_trace_.get());
  d->engine->start();  // the ranks load while the tokenizer is read
  if (!in_job) d->read_text(options);
  if (d->trace && !processes) d->trace->begin();  // now that what was asked is known to be right
  return d;
}

void Deployment::read_text(const DeployOptions& options) {
  text = options.needs_text ? open_text(blueprint) : std::make_unique<OpenText>();
  TextSide& side = text->side;
  side.vocab = static_cast<int32_t>(blueprint.model->shape.vocab);
  side.context = plan.workload.context;
  side.model = blueprint.checkpoint.name;
  side.compute = compute;
  side.family = blueprint.model->family();
  side.format = blueprint.formats.label;
  side.kv_dtype = name(blueprint.arithmetic.kv);
  side.digest = blueprint.checkpoint.digest;
  side.layers = blueprint.model->shape.layers;
  side.max_batch = plan.workload.batch;
  if (options.check) options.check(*this);
}

Deployment::~Deployment() {
  engine.reset();
  group.reset();
}

void Deployment::wait_ready() {
  while (!engine->wait_for(EngineState::serving, std::chrono::milliseconds(100))) {
    const EngineState state = engine->state();
    if (state != EngineState::loading && (state != EngineState::lost || !restartable)) break;
    // A first epoch that fails is not tried again: what is wrong is told instead.
    if (const std::optional<Error> error = engine->last_error()) throw *error;
  }
  if (engine->state() != EngineState::serving) throw engine->last_error().value_or(Error(Code::unavailable, "ranks", "ended while loading"));
  load_seconds = std::chrono::duration<double>(Clock::now() - started_).count();
}

int run_on_ranks(const std::function<int(ThisJob& job)>& coordinator) {
  ThisJob job;
  if (!under_mpirun()) return coordinator(job);
  job = join_job();
  if (job.world.rank > 0) {
    release_stop_signals();
    const int code = work_in_job(std::move(job));
    finalize_mpi();
    return code;
  }
  try {
    const int code = coordinator(job);
    finalize_mpi();
    return code;
  } catch (...) {
    if (job.communicator) {  // the others still wait for the first word
      dismiss_job(job, 0);
      job.communicator.reset();
      finalize_mpi();
    }
    throw;
  }
}

}  // namespace tandem
