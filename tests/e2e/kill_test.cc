// Ranks that die, stop, or leave, at every stage of their life, under both ways of starting them.
//   serve --ranks: every stream gets its status, health says so, the ranks come back by themselves, nobody is left behind.
//   mpirun serve:  the whole job ends, soon and with an error.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "tests/e2e/serving.h"

namespace tandem::e2e {
namespace {

constexpr double kStatus = 3 * kSlowFactor;   // from the blow to the last stream's status
constexpr double kJobEnd = 4 * kSlowFactor;   // from the blow to the end of a plain mpirun job
constexpr double kOrphans = 1 * kSlowFactor;  // from the coordinator's death to the last worker's
constexpr double kBack = 30 * kSlowFactor;    // until it serves again

enum class Blow { kill, stop, exit };
enum class When { idle, decode, prefill, load };
std::string name(Blow blow) { return blow == Blow::kill ? "kill" : blow == Blow::stop ? "stop" : "exit"; }
std::string name(When when) {
  constexpr const char* kNames[] = {"idle", "decode", "prefill", "load"};
  return kNames[static_cast<int>(when)];
}

bool strike(Blow blow, pid_t pid) {
  switch (blow) {
    case Blow::kill:
      return send_signal(pid, SIGKILL);
    case Blow::stop:
      return send_signal(pid, SIGSTOP);
    case Blow::exit:
      return pid > 1 && make_it_exit(pid);
  }
  return false;
}

struct Case {
  Way way;
  int rank;
  Blow blow;
  When when;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << e2e::name(c.way) << " rank " << c.rank << " " << name(c.blow) << " " << name(c.when);
}
std::string case_name(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return e2e::name(c.way) + "_rank" + std::to_string(c.rank) + "_" + name(c.blow) + "_" + name(c.when);
}

class Kill : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    adopt_orphans();
    const When when = GetParam().when;
    model_ = smollm2();
    if (!model_ && (when == When::prefill || when == When::load)) GTEST_SKIP() << kNoSmolLM2 << ": a tiny model is done too soon";
    if (!model_) model_ = kLlama;
  }
  void TearDown() override { EXPECT_THAT(wait_childless(getpid(), kOrphans), testing::IsEmpty()) << "processes were left behind"; }

  // Streams that are under way as the case wants it.
  std::vector<std::unique_ptr<Stream>> streams(const Serving& server) const {
    std::vector<std::unique_ptr<Stream>> streams;
    const bool tiny = *model_ == kLlama;
    if (GetParam().when == When::decode) {
      for (uint32_t i = 0; i < 3; ++i)
        streams.push_back(std::make_unique<Stream>(server.address, ask_ids(some_ids(5, i), tiny ? 250 : 4000)));
      for (auto& stream : streams) EXPECT_TRUE(stream->wait_tokens(3));
    }
    if (GetParam().when == When::prefill) {
      for (uint32_t i = 0; i < 2; ++i) streams.push_back(std::make_unique<Stream>(server.address, ask_ids(some_ids(4000, i), 8)));
      EXPECT_TRUE(server.wait_load([](const Load& load) { return load.running == 2; }));
      for (auto& stream : streams) EXPECT_FALSE(stream->wait_tokens(1, 0));
    }
    return streams;
  }
  void expect_unavailable(std::vector<std::unique_ptr<Stream>>& streams, const Stopwatch& clock) const {
    for (auto& stream : streams) {
      ASSERT_TRUE(stream->wait_end(std::max(0.0, kStatus - clock.seconds()))) << "a stream has no status after " << clock.seconds() << " s";
      EXPECT_EQ(stream->ended().error, Code::unavailable) << stream->ended().message;
      EXPECT_EQ(stream->ended().ends, 1);
    }
    if (!streams.empty()) RecordProperty("status_ms", static_cast<int>(clock.seconds() * 1000));
  }

  // The process of a rank that may not have said hello yet: ranks of one host are started in order.
  pid_t early_worker(const Serving& server, int rank, size_t ranks) const {
    for (const Stopwatch clock; clock.seconds() < 10 * kSlowFactor;) {
      std::vector<pid_t> workers = server.workers();
      std::sort(workers.begin(), workers.end());
      if (workers.size() == ranks) return workers[static_cast<size_t>(rank)];
    }
    ADD_FAILURE() << "no workers appeared";
    return -1;
  }

  std::optional<std::string> model_;
};

class RankOfServe : public Kill {};

TEST_P(RankOfServe, ComesBack) {
  const Case c = GetParam();
  Serving server(Way::own_mpirun, 2, *model_, {"--context", *model_ == kLlama ? "256" : "4096", "--max-batch", "4"});
  ASSERT_NE(server.address, "") << server.process.err();
  if (c.when != When::load) {
    ASSERT_TRUE(server.wait_serving()) << server.process.err();
  }
  const std::vector<pid_t> before = c.when == When::load ? std::vector<pid_t>{} : server.ranks();
  auto streams = this->streams(server);
  server.health->forget();

  const pid_t victim = c.when == When::load ? early_worker(server, c.rank, 2) : before.at(static_cast<size_t>(c.rank));
  std::vector<ProcessHandle> old;
  for (const pid_t pid : server.workers()) old.emplace_back(pid);
  const Stopwatch clock;
  if (!strike(c.blow, victim)) {
    if (c.blow == Blow::exit) GTEST_SKIP() << "this machine does not let a test make another process exit";
    FAIL() << "the victim is gone";
  }
  expect_unavailable(streams, clock);
  if (c.when == When::load) {
    // It may have finished loading before the blow landed; then that epoch is over all the same.
    for (const ProcessHandle& process : old) EXPECT_TRUE(process.wait_gone(kBack));
    EXPECT_TRUE(server.wait_serving(kBack)) << server.process.err();
  } else {
    EXPECT_TRUE(server.health->wait(false, std::max(0.0, kStatus - clock.seconds())));
    RecordProperty("not_serving_ms", static_cast<int>(clock.seconds() * 1000));
    for (const ProcessHandle& process : old) EXPECT_TRUE(process.wait_gone(kStatus)) << process.pid();
    EXPECT_TRUE(server.health->wait(true, kBack)) << server.process.err();
  }
  RecordProperty("serving_ms", static_cast<int>(clock.seconds() * 1000));
  // Fenced: none of the old processes is a rank now, and the new ones answer.
  const std::vector<pid_t> after = server.ranks();
  EXPECT_EQ(after.size(), 2u);
  for (const pid_t pid : after) EXPECT_THAT(before, testing::Not(testing::Contains(pid)));
  Stream stream(server.address, ask_ids({1, 2, 3}, 4));
  ASSERT_TRUE(stream.wait_end(kBack));
  EXPECT_FALSE(stream.ended().error) << stream.ended().message;
  EXPECT_TRUE(server.wait_idle());

  server.process.signal(SIGTERM);
  EXPECT_EQ(server.process.wait(10 * kSlowFactor), 0) << server.process.err();
}

class RankOfMpirun : public Kill {};

TEST_P(RankOfMpirun, EndsTheJob) {
  const Case c = GetParam();
  Serving server(Way::plain_mpirun, 2, *model_, {"--context", *model_ == kLlama ? "256" : "4096", "--max-batch", "4"});
  ASSERT_NE(server.address, "") << server.process.err();
  if (c.when != When::load) {
    ASSERT_TRUE(server.wait_serving()) << server.process.err();
  }
  auto streams = this->streams(server);
  const pid_t victim = c.when == When::load ? early_worker(server, c.rank, 2) : server.ranks().at(static_cast<size_t>(c.rank));
  std::vector<ProcessHandle> ranks;
  for (const pid_t pid : server.workers()) ranks.emplace_back(pid);
  EXPECT_EQ(ranks.size(), 2u);
  const Stopwatch clock;
  if (!strike(c.blow, victim)) {
    if (c.blow == Blow::exit) GTEST_SKIP() << "this machine does not let a test make another process exit";
    FAIL() << "the victim is gone";
  }
  const std::optional<int> code = server.process.wait(kJobEnd);
  ASSERT_TRUE(code.has_value()) << "the job still runs after " << clock.seconds() << " s";
  RecordProperty("job_end_ms", static_cast<int>(clock.seconds() * 1000));
  EXPECT_NE(*code, 0);
  for (const ProcessHandle& rank : ranks) EXPECT_TRUE(rank.wait_gone(kOrphans)) << rank.pid();
  for (auto& stream : streams) {
    ASSERT_TRUE(stream->wait_end(kStatus));
    EXPECT_EQ(stream->ended().error, Code::unavailable) << stream->ended().message;
  }
}

std::vector<Case> cases(Way way, std::vector<When> times) {
  std::vector<Case> all;
  for (const When when : times) {
    for (const Blow blow : {Blow::kill, Blow::stop, Blow::exit}) {
      for (const int rank : {0, 1}) {
        all.push_back({way, rank, blow, when});
      }
    }
  }
  return all;
}
const std::vector<When> kUsual = {When::decode}, kRest = {When::idle, When::prefill, When::load};
INSTANTIATE_TEST_SUITE_P(E2e, RankOfServe, testing::ValuesIn(cases(Way::own_mpirun, kUsual)), case_name);
INSTANTIATE_TEST_SUITE_P(Slow, RankOfServe, testing::ValuesIn(cases(Way::own_mpirun, kRest)), case_name);
INSTANTIATE_TEST_SUITE_P(E2e, RankOfMpirun, testing::ValuesIn(cases(Way::plain_mpirun, kUsual)), case_name);
INSTANTIATE_TEST_SUITE_P(Slow, RankOfMpirun, testing::ValuesIn(cases(Way::plain_mpirun, kRest)), case_name);

// ---- those above the ranks

class Above : public testing::Test {
 protected:
  void SetUp() override { adopt_orphans(); }
  void TearDown() override { EXPECT_THAT(wait_childless(getpid(), kOrphans), testing::IsEmpty()) << "processes were left behind"; }
};

TEST_F(Above, CoordinatorKilledTakesItsWorkersAlong) {
  Serving server(Way::own_mpirun, 2, kLlama);
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  std::vector<ProcessHandle> below;
  for (const pid_t pid : descendants(server.process.pid())) below.emplace_back(pid);
  EXPECT_GE(below.size(), 3u);  // mpirun and two ranks
  Stream stream(server.address, ask_ids({1, 2, 3}, 250));
  EXPECT_TRUE(stream.wait_tokens(1));
  const Stopwatch clock;
  server.process.signal(SIGKILL);
  for (const ProcessHandle& process : below)
    EXPECT_TRUE(process.wait_gone(std::max(0.0, kOrphans - clock.seconds()))) << command_of(process.pid());
  RecordProperty("gone_ms", static_cast<int>(clock.seconds() * 1000));
  EXPECT_TRUE(stream.wait_end(kStatus));
  EXPECT_EQ(server.process.wait(1), 128 + SIGKILL);
}

TEST_F(Above, ItsMpirunKilledIsAnEpochLost) {
  Serving server(Way::own_mpirun, 2, kLlama);
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  pid_t mpirun = -1;
  for (const pid_t pid : descendants(server.process.pid())) {
    if (command_of(pid).starts_with("mpirun ")) mpirun = pid;
  }
  ASSERT_GT(mpirun, 0);
  std::vector<ProcessHandle> ranks;
  for (const pid_t pid : server.ranks()) ranks.emplace_back(pid);
  send_signal(mpirun, SIGKILL);
  EXPECT_TRUE(server.health->wait(false, kStatus));
  for (const ProcessHandle& rank : ranks) EXPECT_TRUE(rank.wait_gone(kOrphans));
  EXPECT_TRUE(server.health->wait(true, kBack));
}

TEST_F(Above, PlainMpirunKilledLeavesNoRank) {
  Serving server(Way::plain_mpirun, 2, kLlama);
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  std::vector<ProcessHandle> ranks;
  for (const pid_t pid : server.ranks()) ranks.emplace_back(pid);
  const Stopwatch clock;
  server.process.signal(SIGKILL);
  for (const ProcessHandle& rank : ranks) EXPECT_TRUE(rank.wait_gone(kJobEnd)) << rank.pid();
  RecordProperty("gone_ms", static_cast<int>(clock.seconds() * 1000));
}

// Before rank 0 listens: at once, while the ranks find each other, and while it reads the tokenizer and plans.
class SlowStart : public Above, public testing::WithParamInterface<int> {};

TEST_P(SlowStart, RankZeroStoppedEndsTheJob) {
  std::vector<std::string> words = mpirun_words(2);
  words.insert(words.end(), {TANDEM_BINARY, "serve", smollm2().value_or(kLlama), "--listen", "127.0.0.1:0"});
  Process job(words);
  std::vector<pid_t> ranks;
  for (const Stopwatch clock; ranks.size() < 2 && clock.seconds() < 10 * kSlowFactor;) {
    ranks.clear();
    for (const pid_t pid : descendants(job.pid())) {
      if (command_of(pid).starts_with(TANDEM_BINARY)) ranks.push_back(pid);
    }
  }
  ASSERT_EQ(ranks.size(), 2u);
  std::this_thread::sleep_for(std::chrono::milliseconds(static_cast<int>(GetParam() * kSlowFactor)));
  std::sort(ranks.begin(), ranks.end());
  std::vector<ProcessHandle> handles(ranks.begin(), ranks.end());
  ASSERT_TRUE(send_signal(ranks[0], SIGSTOP));
  const Stopwatch clock;
  const std::optional<int> code = job.wait(40 * kSlowFactor);
  ASSERT_TRUE(code.has_value()) << job.err();
  RecordProperty("job_end_ms", static_cast<int>(clock.seconds() * 1000));
  EXPECT_NE(*code, 0);
  for (const ProcessHandle& rank : handles) EXPECT_TRUE(rank.wait_gone(kOrphans)) << rank.pid();
  std::printf("[ figures  ] the job ended after %.1f s\n", clock.seconds());
}
INSTANTIATE_TEST_SUITE_P(AfterMilliseconds, SlowStart, testing::Values(0, 300, 400, 500), testing::PrintToStringParamName());

TEST_F(Above, CoordinatorStoppedLosesItsRanksAndGetsNewOnes) {
  Serving server(Way::own_mpirun, 2, kLlama);
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  std::vector<ProcessHandle> ranks;
  for (const pid_t pid : server.ranks()) ranks.emplace_back(pid);
  server.process.signal(SIGSTOP);
  for (const ProcessHandle& rank : ranks) EXPECT_TRUE(rank.wait_gone(8 * kSlowFactor)) << "a rank outlived its lease";
  server.process.signal(SIGCONT);
  EXPECT_TRUE(server.health->wait(false, kStatus));
  EXPECT_TRUE(server.health->wait(true, kBack));
  Stream stream(server.address, ask_ids({1, 2, 3}, 4));
  ASSERT_TRUE(stream.wait_end(kBack));
  EXPECT_FALSE(stream.ended().error) << stream.ended().message;
}

TEST_F(Above, FiveEpochsInARow) {
  Serving server(Way::own_mpirun, 3, kLlama, {"--tp", "3"});
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  for (int round = 0; round < 5; ++round) {
    const std::vector<pid_t> ranks = server.ranks();
    ASSERT_EQ(ranks.size(), 3u);
    ASSERT_TRUE(strike(Blow::kill, ranks[static_cast<size_t>(round % 3)]));
    ASSERT_TRUE(server.health->wait(false, kStatus));
    ASSERT_TRUE(server.health->wait(true, kBack)) << "round " << round;
    Stream stream(server.address, ask_ids({1, 2, 3}, 4));
    ASSERT_TRUE(stream.wait_end(kBack));
    EXPECT_FALSE(stream.ended().error) << stream.ended().message;
  }
  EXPECT_EQ(server.client().topology().epoch, 6u);
}

}  // namespace
}  // namespace tandem::e2e
