#include "launch/control_group.h"

#include <atomic>

#include "launch/addresses.h"
#include "launch/progress.h"
#include "launch/topology.h"
#include "rpc/worker_service.h"

namespace tandem {
namespace {

class ControlGroup final : public WorkerGroup {
 public:
  ControlGroup(ControlGroupSettings settings, std::unique_ptr<Launcher> launcher)
      : settings_(std::move(settings)), launcher_(std::move(launcher)), control_(options_of(settings_)) {}
  ~ControlGroup() override { kill(); }

  void start(uint32_t epoch, GroupEvents events) override {
    launcher_->kill();
    auto state = std::make_shared<Epoch>(settings_.ranks);
    state->number = epoch;
    state->events = std::move(events);
    epoch_ = state;
    const std::string secret = random_secret();
    ControlEvents told;
    told.joined = [](int) {};
    told.loading = [state](int rank, uint64_t done, uint64_t total) { state->loading.update(rank, done, total); };
    told.ready = [state](std::vector<RankInfo> ranks) {
      state->loading.finish();
      if (!state->over) state->events.ready(state->number, std::move(ranks));
    };
    told.result = [state](int, StepResult result) {
      if (!state->over) state->events.result(std::move(result));
    };
    told.progress = [](int, uint64_t) {};
    told.failed = [state](int rank, Error why) { state->lose(Error(why.code, "rank " + std::to_string(rank), why.what())); };
    control_.expect({epoch, settings_.ranks, secret, build_id(), settings_.plan, settings_.options}, std::move(told));
    launcher_->start({epoch, dial_addresses(control_.address()), secret, settings_.ranks}, [state](Error why) { state->lose(std::move(why)); });
  }

  void submit(StepBytes step) override { control_.broadcast(std::move(step)); }

  void stop() override {
    if (epoch_) epoch_->end();
    control_.shutdown();
    launcher_->wait(2);
    launcher_->kill();
  }
  void kill() override {
    if (epoch_) epoch_->end();
    launcher_->kill();
  }
  bool restartable() const override { return launcher_->can_restart(); }

 private:
  struct Epoch {
    explicit Epoch(int ranks) : loading("loading", ranks) {}
    uint32_t number = 0;
    GroupEvents events;
    std::atomic<bool> over{false};
    Progress loading;
    void lose(Error why) {
      if (over.exchange(true)) return;
      loading.finish();  // what is said about the loss comes below the bars
      events.lost(number, std::move(why));
    }
    void end() {
      over = true;
      loading.finish();
    }
  };
  static ControlOptions options_of(const ControlGroupSettings& settings) {
    ControlOptions options;
    options.listen = settings.listen;
    options.lease_seconds = settings.lease_seconds * kSlowFactor;
    options.straggle_seconds = settings.straggle_seconds * kSlowFactor;
    return options;
  }

  ControlGroupSettings settings_;
  std::unique_ptr<Launcher> launcher_;
  ControlServer control_;
  std::shared_ptr<Epoch> epoch_;
};

}  // namespace

std::unique_ptr<WorkerGroup> make_control_group(ControlGroupSettings settings, std::unique_ptr<Launcher> launcher) {
  return std::make_unique<ControlGroup>(std::move(settings), std::move(launcher));
}

}  // namespace tandem
