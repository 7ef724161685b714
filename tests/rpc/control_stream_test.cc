// The control stream, with workers as threads and as processes. A worker process is this program again, asked for WorkerProcess.Main.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <thread>

#include "rpc/remote_worker.h"
#include "rpc/worker_service.h"
#include "tests/support/limit.h"

extern char** environ;

namespace tandem {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

const std::string kSecret = "0123456789abcdef0123456789abcdef";

double since(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

StepBytes step(uint64_t number, int32_t id = 0) {
  Step s;
  s.number = number;
  s.epoch = 1;
  s.admissions.push_back({.slot = 0, .serial = 1, .ids = {id}});
  return std::make_shared<const std::vector<std::byte>>(encode(s));
}

// Answers each step with the id that it admits, on the thread that brings the step.
class Echo final : public Worker {
 public:
  explicit Echo(WorkerCallbacks callbacks, size_t logits = 0) : callbacks_(std::move(callbacks)), logits_(logits) {}
  void submit(StepBytes bytes) override {
    const Step s = decode_step(*bytes);
    StepResult result;
    result.number = s.number;
    result.epoch = s.epoch;
    if (!s.admissions.empty()) result.tokens.push_back({.id = s.admissions[0].ids[0]});
    if (logits_ > 0) result.logits.push_back({.rows = 1, .values = std::vector<float>(logits_, 1.5f)});
    callbacks_.progress(s.number);
    callbacks_.result(std::move(result));
  }

 private:
  WorkerCallbacks callbacks_;
  size_t logits_;
};

LoadedWorker echo(const WorkerCallbacks& callbacks, size_t logits = 0) {
  auto worker = std::make_unique<Echo>(callbacks, logits);
  callbacks.ready();
  return {std::move(worker), "cpu", 0, 3};
}

RemoteWorkerOptions dial(const std::string& address, int rank) {
  RemoteWorkerOptions options;
  options.address = address;
  options.secret = kSecret;
  options.epoch = 1;
  options.rank = rank;
  options.build = "b";
  return options;
}

TEST(WorkerProcess, Main) {
  const char* address = std::getenv("TANDEM_TEST_CONTROL");
  if (address == nullptr) GTEST_SKIP() << "runs only as the worker process of the other tests";
  run_remote_worker(
      dial(address, std::atoi(std::getenv("TANDEM_TEST_RANK"))),
      [](const WelcomeTerms&, Rendezvous&, const WorkerCallbacks& callbacks) { return echo(callbacks); }, [](const Error&) { _exit(73); });
  _exit(0);
}

class WorkerProcess {
 public:
  WorkerProcess(const std::string& address, int rank) {
    const std::string control = "TANDEM_TEST_CONTROL=" + address, number = "TANDEM_TEST_RANK=" + std::to_string(rank);
    std::vector<char*> environment;
    for (char** at = environ; *at != nullptr; ++at) environment.push_back(*at);
    environment.push_back(const_cast<char*>(control.c_str()));
    environment.push_back(const_cast<char*>(number.c_str()));
    environment.push_back(nullptr);
    char program[] = "/proc/self/exe", filter[] = "--gtest_filter=WorkerProcess.Main", quiet[] = "--gtest_brief=1";
    char* arguments[] = {program, filter, quiet, nullptr};
    EXPECT_EQ(posix_spawn(&pid_, program, nullptr, nullptr, arguments, environment.data()), 0);
  }
  ~WorkerProcess() {
    signal(SIGKILL);
    wait();
  }
  void signal(int number) const {
    if (pid_ > 0) kill(pid_, number);
  }
  int wait() {  // exit status; -signal
    if (pid_ <= 0) return 0;
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = 0;
};

// A coordinator that keeps what it is told.
struct Coordinator {
  explicit Coordinator(int ranks, ControlOptions options = {}, const std::string& build = "b") : server(options) { expect(ranks, build); }
  void expect(int ranks, const std::string& build = "b", uint32_t epoch = 1) {
    ControlEvents events;
    events.joined = [this](int rank) { note([&] { joined.push_back(rank); }); };
    events.loading = [this](int rank, uint64_t done, uint64_t total) { note([&] { loading.push_back({rank, done, total, !ready.empty()}); }); };
    events.ready = [this](std::vector<RankInfo> infos) { note([&] { ready = std::move(infos); }); };
    events.result = [this](int rank, StepResult result) { note([&] { results.emplace_back(rank, std::move(result)); }); };
    events.progress = [this](int, uint64_t step) { note([&] { progress = std::max(progress, step); }); };
    events.failed = [this](int rank, Error why) {
      note([&] {
        failed.emplace_back(rank, std::move(why));
        failed_at = Clock::now();
      });
    };
    server.expect({epoch, ranks, kSecret, build, "the plan", "the options"}, std::move(events));
  }
  template <class Change>
  void note(Change change) {
    const std::lock_guard lock(mutex);
    change();
    changed.notify_all();
  }
  template <class Condition>
  bool until(Condition condition, double seconds = 20) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::duration<double>(seconds * kSlowFactor), condition);
  }
  bool all_ready() {
    return until([&] { return !ready.empty(); });
  }

  struct Loading {
    int rank;
    uint64_t done, total;
    bool after_ready;
  };

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<int> joined;
  std::vector<Loading> loading;
  std::vector<RankInfo> ready;
  std::vector<std::pair<int, StepResult>> results;
  std::vector<std::pair<int, Error>> failed;
  uint64_t progress = 0;
  Clock::time_point failed_at;
  ControlServer server;  // last: no event after its end
};

std::jthread worker_thread(const RemoteWorkerOptions& options, LoadWorker load, std::optional<Error>* thrown = nullptr) {
  return std::jthread([options, load = std::move(load), thrown] {
    try {
      run_remote_worker(options, load, {});
    } catch (const Error& error) {
      if (thrown != nullptr) *thrown = error;
    }
  });
}

LoadWorker loads_echo(size_t logits = 0) {
  return [logits](const WelcomeTerms&, Rendezvous&, const WorkerCallbacks& callbacks) { return echo(callbacks, logits); };
}

TEST(ControlStream, StepsGoOutAndResultsComeBackInOrder) {
  Coordinator c(2);
  std::string fetched;
  std::vector<WelcomeTerms> welcomes(2);
  std::vector<std::jthread> workers;
  for (int rank = 0; rank < 2; ++rank) {
    workers.push_back(worker_thread(dial(c.server.address(), rank),
                                    [&, rank](const WelcomeTerms& terms, Rendezvous& meet, const WorkerCallbacks& callbacks) {
                                      if (rank == 1) meet.publish("key", std::string("a\0b", 3));
                                      const std::string got = rank == 0 ? meet.fetch("key", limit(10000)) : "";
                                      c.note([&] {
                                        welcomes[static_cast<size_t>(rank)] = terms;
                                        if (rank == 0) fetched = got;
                                      });
                                      return echo(callbacks);
                                    }));
  }
  ASSERT_TRUE(c.all_ready());
  EXPECT_EQ(fetched, std::string("a\0b", 3));
  EXPECT_EQ(c.server.rendezvous().fetch("key", limit(1000)), fetched);
  EXPECT_EQ(welcomes[1].plan, "the plan");
  EXPECT_EQ(welcomes[1].options, "the options");
  EXPECT_EQ(welcomes[1].ranks, 2);
  EXPECT_EQ(c.ready[1].device, "cpu");
  EXPECT_EQ(c.ready[1].last_layer, 3);
  EXPECT_EQ(c.ready[1].pid, getpid());
  constexpr uint64_t kSteps = 500;
  for (uint64_t n = 1; n <= kSteps; ++n) c.server.broadcast(step(n, static_cast<int32_t>(n) * 3));
  ASSERT_TRUE(c.until([&] { return c.results.size() == 2 * kSteps; }));
  uint64_t next[2] = {1, 1};
  for (const auto& [rank, result] : c.results) {
    EXPECT_EQ(result.number, next[rank]++);
    EXPECT_EQ(result.tokens[0].id, static_cast<int32_t>(result.number) * 3);
  }
  EXPECT_TRUE(c.until([&] { return c.progress == kSteps; }));
  EXPECT_TRUE(c.server.shutdown());
  workers.clear();
  EXPECT_TRUE(c.failed.empty());
}

TEST(ControlStream, LargeResultsComeInParts) {
  Coordinator c(1);
  const auto values = static_cast<size_t>((3 << 20) / kSlowFactor);
  const auto worker = worker_thread(dial(c.server.address(), 0), loads_echo(values));
  ASSERT_TRUE(c.all_ready());
  c.server.broadcast(step(1));
  c.server.broadcast(step(2));
  ASSERT_TRUE(c.until([&] { return c.results.size() == 2; }));
  EXPECT_EQ(c.results[1].second.logits[0].values.size(), values);
  EXPECT_EQ(c.results[1].second.logits[0].values.back(), 1.5f);
  c.server.shutdown();
}

TEST(ControlStream, StrangersAreRefused) {
  Coordinator c(2);
  const auto refusal = [&](RemoteWorkerOptions options) {
    try {
      run_remote_worker(options, loads_echo(), {});
    } catch (const Error& error) {
      return error.code;
    }
    return Code::internal;
  };
  RemoteWorkerOptions options = dial(c.server.address(), 0);
  options.secret = "0123456789abcdef0123456789abcdeX";
  EXPECT_EQ(refusal(options), Code::unauthenticated);
  options.secret = "";
  EXPECT_EQ(refusal(options), Code::unauthenticated);
  options = dial(c.server.address(), 0);
  options.epoch = 2;
  EXPECT_EQ(refusal(options), Code::failed_precondition);
  EXPECT_EQ(refusal(dial(c.server.address(), 2)), Code::invalid_argument);
  EXPECT_EQ(refusal(dial(c.server.address(), -1)), Code::invalid_argument);
  const auto worker = worker_thread(dial(c.server.address(), 0), loads_echo());
  ASSERT_TRUE(c.until([&] { return !c.joined.empty(); }));
  EXPECT_EQ(refusal(dial(c.server.address(), 0)), Code::already_exists);
  EXPECT_TRUE(c.failed.empty()) << c.failed[0].second.what();
  c.server.shutdown();
}

TEST(ControlStream, AnotherBuildFailsTheRank) {
  Coordinator c(1, {}, "another build");
  std::optional<Error> thrown;
  worker_thread(dial(c.server.address(), 0), loads_echo(), &thrown).join();
  ASSERT_TRUE(thrown);
  EXPECT_EQ(thrown->code, Code::failed_precondition);
  ASSERT_TRUE(c.until([&] { return c.failed.size() == 1; }));
  EXPECT_EQ(c.failed[0].second.where, "build");
}

TEST(ControlStream, FailureToLoadIsReported) {
  Coordinator c(1);
  std::optional<Error> thrown;
  worker_thread(
      dial(c.server.address(), 0),
      [](const WelcomeTerms&, Rendezvous&, const WorkerCallbacks&) -> LoadedWorker { bad_input("model.gguf", "is cut short"); }, &thrown)
      .join();
  ASSERT_TRUE(c.until([&] { return c.failed.size() == 1; }));
  EXPECT_EQ(c.failed[0].second.code, Code::invalid_argument);
  EXPECT_STREQ(c.failed[0].second.what(), "model.gguf: is cut short");
  EXPECT_EQ(thrown->where, "model.gguf");
}

TEST(ControlStream, FailureAtWorkIsReported) {
  Coordinator c(1);
  std::optional<Error> thrown;
  WorkerCallbacks kept;
  const auto worker = worker_thread(
      dial(c.server.address(), 0),
      [&](const WelcomeTerms&, Rendezvous&, const WorkerCallbacks& callbacks) {
        c.note([&] { kept = callbacks; });
        return echo(callbacks);
      },
      &thrown);
  ASSERT_TRUE(c.all_ready());
  kept.failed(Error(Code::internal, "layer 3", "NaN"));
  ASSERT_TRUE(c.until([&] { return c.failed.size() == 1; }));
  EXPECT_STREQ(c.failed[0].second.what(), "layer 3: NaN");
}

TEST(ControlStream, RankThatNeverJoins) {
  ControlOptions options;
  options.join_seconds = 0.3 * kSlowFactor;
  Coordinator c(2, options);
  const auto worker = worker_thread(dial(c.server.address(), 0), loads_echo());
  ASSERT_TRUE(c.until([&] { return !c.failed.empty(); }));
  EXPECT_EQ(c.failed[0].first, 1);
  EXPECT_THAT(c.failed[0].second.message, HasSubstr("did not join"));
  c.server.shutdown();
}

TEST(ControlStream, LoadingLongIsNoSilence) {
  Coordinator c(1);
  const auto worker = worker_thread(dial(c.server.address(), 0), [](const WelcomeTerms&, Rendezvous&, const WorkerCallbacks& callbacks) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2500));
    return echo(callbacks);
  });
  ASSERT_TRUE(c.all_ready());
  EXPECT_TRUE(c.failed.empty());
  c.server.shutdown();
}

TEST(ControlStream, LoadingIsToldTenTimesASecondAndAtItsEnd) {
  constexpr uint64_t kParts = 600;  // a millisecond each
  Coordinator c(2);
  std::atomic<double> took[2] = {0, 0};
  std::vector<std::jthread> workers;
  for (int rank = 0; rank < 2; ++rank) {
    workers.push_back(worker_thread(dial(c.server.address(), rank), [&, rank](const WelcomeTerms&, Rendezvous&, const WorkerCallbacks& callbacks) {
      const auto began = Clock::now();
      for (uint64_t part = 1; part <= kParts; ++part) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        callbacks.loading(part << 30, kParts << 30);
      }
      took[rank] = since(began);
      return echo(callbacks);
    }));
  }
  ASSERT_TRUE(c.all_ready());
  for (int rank = 0; rank < 2; ++rank) {
    uint64_t last = 0;
    int words = 0;
    for (const auto& word : c.loading) {
      if (word.rank != rank) continue;
      EXPECT_GT(word.done, last);
      EXPECT_EQ(word.total, kParts << 30);
      EXPECT_FALSE(word.after_ready);
      last = word.done;
      ++words;
    }
    EXPECT_EQ(last, kParts << 30);
    EXPECT_GE(words, 3);
    EXPECT_LE(words, 10 * took[rank] + 2);
  }
  c.server.shutdown();
}

TEST(ControlStream, EpochsReplaceEachOther) {
  Coordinator c(1);
  std::optional<Error> first;
  auto old = worker_thread(dial(c.server.address(), 0), loads_echo(), &first);
  ASSERT_TRUE(c.all_ready());
  c.ready.clear();
  c.expect(1, "b", 2);
  old.join();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->code, Code::unavailable);
  RemoteWorkerOptions options = dial(c.server.address(), 0);
  options.epoch = 2;
  const auto next = worker_thread(options, loads_echo());
  ASSERT_TRUE(c.all_ready());
  c.server.broadcast(step(1, 8));
  ASSERT_TRUE(c.until([&] { return c.results.size() == 1; }));
  EXPECT_TRUE(c.failed.empty());
  c.server.shutdown();
}

TEST(ControlStream, KilledWorkerIsSeenAtOnce) {
  Coordinator c(2);
  WorkerProcess zero(c.server.address(), 0), one(c.server.address(), 1);
  ASSERT_TRUE(c.all_ready());
  const auto began = Clock::now();
  one.signal(SIGKILL);
  ASSERT_TRUE(c.until([&] { return !c.failed.empty(); }));
  EXPECT_EQ(c.failed[0].first, 1);
  const double seconds = std::chrono::duration<double>(c.failed_at - began).count();
  std::printf("[ figures  ] a killed worker was seen after %.1f ms\n", 1e3 * seconds);
  EXPECT_LT(seconds, 0.5 * kSlowFactor);
  EXPECT_TRUE(c.server.shutdown());
  EXPECT_EQ(zero.wait(), 0);
}

TEST(ControlStream, StoppedWorkerIsSeenWithinItsLease) {
  Coordinator c(1);
  WorkerProcess worker(c.server.address(), 0);
  ASSERT_TRUE(c.all_ready());
  const auto began = Clock::now();
  worker.signal(SIGSTOP);
  ASSERT_TRUE(c.until([&] { return !c.failed.empty(); }));
  const double seconds = std::chrono::duration<double>(c.failed_at - began).count();
  std::printf("[ figures  ] a stopped worker was seen after %.0f ms\n", 1e3 * seconds);
  EXPECT_THAT(c.failed[0].second.where, "heartbeat");
  EXPECT_GT(seconds, 0.7);
  EXPECT_LT(seconds, 2 * kSlowFactor);
}

TEST(ControlStream, WorkerEndsWithItsCoordinator) {
  auto c = std::make_unique<Coordinator>(1);
  WorkerProcess worker(c->server.address(), 0);
  ASSERT_TRUE(c->all_ready());
  const auto began = Clock::now();
  c.reset();
  EXPECT_EQ(worker.wait(), 73);
  EXPECT_LT(since(began), 2 * kSlowFactor);
}

TEST(ControlStream, WorkerFencesItselfWhenTheCoordinatorIsSilent) {
  ControlOptions mute;
  mute.heartbeat_seconds = 100;
  Coordinator c(1, mute);
  RemoteWorkerOptions options = dial(c.server.address(), 0);
  options.lease_seconds = 0.5 * kSlowFactor;
  std::optional<Error> thrown;
  const auto began = Clock::now();
  worker_thread(options, loads_echo(), &thrown).join();
  ASSERT_TRUE(thrown);
  EXPECT_EQ(thrown->where, "heartbeat");
  EXPECT_LT(since(began), 3 * kSlowFactor);
}

// Figures, not verdicts: the machine may be busy with other things.
TEST(ControlStream, RoundTrip) {
  for (const int ranks : {1, 4}) {
    Coordinator c(ranks);
    std::vector<std::unique_ptr<WorkerProcess>> workers;
    for (int rank = 0; rank < ranks; ++rank) workers.push_back(std::make_unique<WorkerProcess>(c.server.address(), rank));
    ASSERT_TRUE(c.all_ready());
    std::vector<double> trips;
    for (uint64_t n = 1; n <= 1000 / kSlowFactor; ++n) {
      const auto began = Clock::now();
      c.server.broadcast(step(n));
      ASSERT_TRUE(c.until([&] { return c.results.size() == n * static_cast<size_t>(ranks); }));
      trips.push_back(since(began) * 1e6);
    }
    std::sort(trips.begin(), trips.end());
    std::printf("[ figures  ] round trip to %d worker processes: p50 %.0f us, p90 %.0f us, p99 %.0f us\n", ranks, trips[trips.size() / 2],
                trips[trips.size() * 9 / 10], trips[trips.size() * 99 / 100]);
    EXPECT_TRUE(c.server.shutdown());
  }
}

}  // namespace
}  // namespace tandem
