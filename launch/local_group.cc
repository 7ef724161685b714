#include "launch/local_group.h"

#include <unistd.h>

#include <atomic>
#include <mutex>

#include "kernels/cuda/plan/cuda.h"
#include "launch/devices.h"
#include "sharding/comm/comms.h"
#include "sharding/comm/nccl.h"

namespace tandem {
namespace {

class LocalGroup final : public WorkerGroup {
 public:
  explicit LocalGroup(GroupSettings settings) : settings_(std::move(settings)) {}
  ~LocalGroup() override { stop(); }

  void start(uint32_t epoch, GroupEvents events) override {
    stop();
    const int ranks = settings_.plan->mesh.size();
    auto state = std::make_shared<Epoch>();
    state->number = epoch;
    state->events = std::move(events);
    state->loading = ranks;
    std::vector<std::unique_ptr<Communicator>> communicators;
    if (ranks > 1) communicators = make_inproc(ranks);
    for (int rank = 0; rank < ranks; ++rank) {
      std::shared_ptr<std::unique_ptr<Communicator>> mine;
      if (ranks > 1) mine = std::make_shared<std::unique_ptr<Communicator>>(std::move(communicators[static_cast<size_t>(rank)]));
      WorkerCallbacks callbacks;
      callbacks.ready = [this, state] {
        if (--state->loading == 0) state->events.ready(state->number, ranks_of());
      };
      callbacks.result = [state](StepResult result) { state->events.result(std::move(result)); };
      callbacks.failed = [state](Error error) {
        if (!state->over.exchange(true)) state->events.lost(state->number, std::move(error));
      };
      std::function<std::unique_ptr<Communicator>()> communicator;
      if (mine) communicator = [mine] { return std::move(*mine); };
      workers_.push_back(make_local_worker(worker_settings(settings_, rank, communicator), std::move(callbacks)));
    }
  }

  void submit(StepBytes step) override {
    for (auto& worker : workers_) worker->submit(step);
  }
  void stop() override { workers_.clear(); }
  bool restartable() const override { return true; }

 private:
  struct Epoch {
    uint32_t number = 0;
    GroupEvents events;
    std::atomic<int> loading{0};
    std::atomic<bool> over{false};
  };

  std::vector<RankInfo> ranks_of() const {
    std::vector<RankInfo> ranks;
    const Plan& plan = *settings_.plan;
    for (int rank = 0; rank < plan.mesh.size(); ++rank) {
      const PlanStage& stage = plan.stages[static_cast<size_t>(plan.mesh.stage(rank))];
      ranks.push_back({rank, static_cast<int>(getpid()), "", plan.devices[static_cast<size_t>(rank)].id, stage.first_layer, stage.last_layer});
    }
    return ranks;
  }

  GroupSettings settings_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

// The stage's group on device memory; NCCL where devices cannot reach one another. Null when the rank is alone in its stage.
std::unique_ptr<PeerGroup> device_peers(const GroupSettings& settings, int rank, Communicator& communicator, Backend& backend,
                                        std::unique_ptr<PeerGroup>& otherwise) {
  const Plan& plan = *settings.plan;
  const std::vector<int> members = plan.mesh.stage_ranks(plan.mesh.stage(rank));
  if (members.size() < 2) return nullptr;
  auto& device = dynamic_cast<DeviceCommunicator&>(communicator);
  device.prepare(members);
  otherwise = make_peer_group(communicator, plan.mesh);
  const uint64_t longest = static_cast<uint64_t>(plan.workload.chunk + plan.workload.batch) * static_cast<uint64_t>(settings.blueprint->model->shape.hidden) * sizeof(float);
  const auto to_all = [&](std::string_view mine) { return exchange(communicator, members, mine); };
  return cuda::make_cuda_peers(backend, plan.mesh.member(rank), static_cast<int>(members.size()), longest, device.abort_word(), otherwise.get(), to_all);
}

std::shared_ptr<TraceTrack> trace_of(const GroupSettings& settings, int rank) {
  const Plan& plan = *settings.plan;
  const std::string& device = plan.devices.at(static_cast<size_t>(rank)).id;
  const std::string called = is_gpu(device) && gpu_index(device) >= 0 ? "cuda:" + std::to_string(gpu_index(device)) : device;
  const std::string name = "rank " + std::to_string(rank) + ": stage " + std::to_string(plan.mesh.stage(rank)) + ", " + called;
  return settings.trace->track(rank_process(rank), name, 1, "steps");
}

}  // namespace

WorkerSettings worker_settings(const GroupSettings& settings, int rank, std::function<std::unique_ptr<Communicator>()> communicator) {
  WorkerSettings worker;
  worker.blueprint = settings.blueprint;
  worker.plan = settings.plan;
  worker.rank = rank;
  worker.all_logits = settings.all_logits;
  worker.check_digests = settings.check_digests;
  worker.backend = [threads = settings.threads, device = settings.plan->devices.at(static_cast<size_t>(rank)).id] { return make_backend(device, threads); };
  if (communicator) {
    const std::chrono::milliseconds wait(static_cast<int64_t>(settings.wait_seconds * 1000));
    const std::string& device = settings.plan->devices.at(static_cast<size_t>(rank)).id;
    if (is_gpu(device)) {
      worker.communicator = [communicator, wait, index = gpu_index(device)](Backend& backend) -> std::unique_ptr<Communicator> {
        auto made = make_nccl(communicator(), index, backend.stream(), wait);
        backend.watch([watched = made.get()] { watched->check(); });
        return made;
      };
      worker.peers = [settings, rank, otherwise = std::make_shared<std::unique_ptr<PeerGroup>>()](Communicator& communicator, Backend& backend) {
        return device_peers(settings, rank, communicator, backend, *otherwise);
      };
    } else {
      worker.communicator = [communicator, wait](Backend&) { return make_guarded(communicator(), wait); };
    }
  }
  if (settings.progress) worker.progress = settings.progress(rank);
  if (settings.trace) worker.trace = trace_of(settings, rank);
  return worker;
}

std::unique_ptr<WorkerGroup> make_local_group(GroupSettings settings) { return std::make_unique<LocalGroup>(std::move(settings)); }

}  // namespace tandem
