// A worker group over the control stream, its ranks threads of this process: what is seen while they load.
#include "launch/control_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "launch/topology.h"
#include "rpc/remote_worker.h"

namespace tandem {
namespace {

using testing::HasSubstr;

class Idle final : public Worker {
  void submit(StepBytes) override {}
};

// Ranks that load for `seconds`, the higher rank's total being larger; from `fails_at` of them on, rank 0 fails.
class Threads final : public Launcher {
 public:
  explicit Threads(double seconds, double fails_at = 2) : seconds_(seconds), fails_at_(fails_at) {}
  void start(const EpochAddress& address, std::function<void(Error)>) override {
    for (int rank = 0; rank < address.ranks; ++rank) {
      RemoteWorkerOptions options;
      options.address = address.control;
      options.secret = address.secret;
      options.epoch = address.epoch;
      options.rank = rank;
      options.build = build_id();
      ranks_.emplace_back([this, options] {
        try {
          run_remote_worker(options, [&](const WelcomeTerms&, Rendezvous&, const WorkerCallbacks& callbacks) { return load(options.rank, callbacks); }, {});
        } catch (const Error&) {
        }
      });
    }
  }
  void wait(double) override { ranks_.clear(); }
  void kill() override {}
  bool can_restart() const override { return false; }

 private:
  LoadedWorker load(int rank, const WorkerCallbacks& callbacks) const {
    constexpr uint64_t kParts = 50;
    for (uint64_t part = 1; part <= kParts; ++part) {
      std::this_thread::sleep_for(std::chrono::duration<double>(seconds_ / kParts));
      if (rank == 0 && static_cast<double>(part) > fails_at_ * kParts) bad_input("model.gguf", "is cut short");
      callbacks.loading(part << 20, kParts << 20);
    }
    auto worker = std::make_unique<Idle>();
    callbacks.ready();
    return {std::move(worker), "cpu", rank, rank};
  }
  const double seconds_, fails_at_;
  std::vector<std::jthread> ranks_;
};

struct Told {
  std::mutex mutex;
  std::condition_variable changed;
  bool ready = false;
  std::optional<Error> lost;
  GroupEvents events() {
    GroupEvents events;
    events.ready = [this](uint32_t, std::vector<RankInfo>) { note([&] { ready = true; }); };
    events.result = [](StepResult) {};
    events.lost = [this](uint32_t, Error why) { note([&] { lost = std::move(why); }); };
    return events;
  }
  template <class Change>
  void note(Change change) {
    const std::lock_guard lock(mutex);
    change();
    changed.notify_all();
  }
  bool over() {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::duration<double>(30 * kSlowFactor), [this] { return ready || lost; });
  }
};

std::unique_ptr<WorkerGroup> group_of(int ranks, std::unique_ptr<Launcher> launcher) {
  ControlGroupSettings settings;
  settings.ranks = ranks;
  return make_control_group(std::move(settings), std::move(launcher));
}

TEST(ControlGroup, LoadingRanksAreSeen) {
  testing::internal::CaptureStderr();
  Told told;
  const auto group = group_of(2, std::make_unique<Threads>(1.6));
  group->start(1, told.events());
  EXPECT_TRUE(told.over());
  EXPECT_TRUE(told.ready);
  group->stop();
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, testing::ContainsRegex("loading  rank 0 .* %.* of 50 MiB"));
  EXPECT_THAT(said, testing::ContainsRegex("loading  rank 1 .* %.* of 50 MiB"));
}

TEST(ControlGroup, NothingIsSaidWhenLoadingIsShort) {
  testing::internal::CaptureStderr();
  Told told;
  const auto group = group_of(2, std::make_unique<Threads>(0.05));
  group->start(1, told.events());
  EXPECT_TRUE(told.over());
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  group->stop();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(ControlGroup, NothingIsSaidOfLoadingAfterALoss) {
  testing::internal::CaptureStderr();
  Told told;
  const auto group = group_of(2, std::make_unique<Threads>(0.4 * kSlowFactor, 0.2));
  group->start(1, told.events());
  EXPECT_TRUE(told.over());
  ASSERT_TRUE(told.lost);
  EXPECT_THAT(told.lost->what(), HasSubstr("model.gguf: is cut short"));
  const std::string until_then = testing::internal::GetCapturedStderr();
  testing::internal::CaptureStderr();
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  group->stop();
}

}  // namespace
}  // namespace tandem
