// How servers and clients begin and end: drain, second signals, ports, a missing mpirun.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>

#include "tests/e2e/serving.h"

namespace tandem::e2e {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr double kSoon = 5 * kSlowFactor;

int error_lines(const std::string& text) { return tandem::error_lines(Ran{.code = 0, .out = "", .err = text}); }

class Stop : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override { adopt_orphans(); }
  void TearDown() override { EXPECT_THAT(wait_childless(getpid(), kSoon), testing::IsEmpty()) << "processes were left behind"; }
  // Long answers need a model that takes its time.
  static std::string slow_model() { return smollm2().value_or(kLlama); }
  static int long_answer() { return smollm2() ? 60 : 250; }
};

TEST_P(Stop, SigtermDrains) {
  Serving server(GetParam(), 2, slow_model(), {"--max-batch", "4"});
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  const pid_t coordinator = server.coordinator();
  std::vector<std::unique_ptr<Stream>> running;
  for (uint32_t i = 0; i < 3; ++i) running.push_back(std::make_unique<Stream>(server.address, ask_ids(some_ids(4, i), long_answer())));
  for (auto& stream : running) ASSERT_TRUE(stream->wait_tokens(1));
  send_signal(coordinator, SIGTERM);
  EXPECT_TRUE(server.health->wait(false, kSoon));
  if (smollm2()) {  // the three still run
    Stream late(server.address, ask_ids({1, 2, 3}, 1));
    ASSERT_TRUE(late.wait_end(kSoon));
    EXPECT_EQ(late.ended().error, Code::unavailable);
    EXPECT_THAT(late.ended().message, HasSubstr("draining"));
    EXPECT_EQ(server.client().state(), "draining");
  }
  for (auto& stream : running) {
    ASSERT_TRUE(stream->wait_end(60 * kSlowFactor));
    EXPECT_FALSE(stream->ended().error) << stream->ended().message;
    EXPECT_EQ(stream->ended().ids.size(), static_cast<size_t>(long_answer()));
  }
  EXPECT_EQ(server.process.wait(10 * kSlowFactor), 0) << server.process.err();
  EXPECT_EQ(error_lines(server.process.err()), 0) << server.process.err();
}

TEST_P(Stop, IdleServerEndsAtOnce) {
  Serving server(GetParam(), 2, kLlama);
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  const Stopwatch clock;
  send_signal(server.coordinator(), SIGINT);
  EXPECT_EQ(server.process.wait(10 * kSlowFactor), 0) << server.process.err();
  EXPECT_LT(clock.seconds(), 3 * kSlowFactor);
}

TEST_P(Stop, DrainCallIsTheSame) {
  Serving server(GetParam(), 2, kLlama);
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  server.client().drain();
  EXPECT_EQ(server.process.wait(10 * kSlowFactor), 0) << server.process.err();
}

TEST_P(Stop, SecondSignalEndsAtOnce) {
  if (!smollm2()) GTEST_SKIP() << kNoSmolLM2 << ": a tiny model's answers are over before a second signal";
  Serving server(GetParam(), 2, slow_model());
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  const pid_t coordinator = server.coordinator();
  Stream stream(server.address, ask_ids({1, 2, 3}, 4000));
  ASSERT_TRUE(stream.wait_tokens(1));
  send_signal(coordinator, SIGTERM);
  ASSERT_TRUE(server.health->wait(false, kSoon));
  const Stopwatch clock;
  send_signal(coordinator, SIGTERM);
  const std::optional<int> code = server.process.wait(kSoon);
  ASSERT_TRUE(code.has_value());
  EXPECT_NE(*code, 0);
  EXPECT_TRUE(stream.wait_end(kSoon));
  EXPECT_EQ(stream.ended().error, Code::unavailable) << stream.ended().message;
}

TEST_P(Stop, DrainHasAnEnd) {
  if (!smollm2()) GTEST_SKIP() << kNoSmolLM2 << ": a tiny model's answers are over too soon";
  Serving server(GetParam(), 2, slow_model(), {"--drain-seconds", "0.5"});
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  const pid_t coordinator = server.coordinator();
  Stream stream(server.address, ask_ids({1, 2, 3}, 4000));
  ASSERT_TRUE(stream.wait_tokens(1));
  send_signal(coordinator, SIGTERM);
  EXPECT_EQ(server.process.wait(10 * kSlowFactor), 0) << server.process.err();
  EXPECT_TRUE(stream.wait_end(kSoon));
  EXPECT_TRUE(stream.ended().error.has_value());
}

INSTANTIATE_TEST_SUITE_P(E2e, Stop, testing::Values(Way::alone, Way::own_mpirun, Way::plain_mpirun),
                         [](const testing::TestParamInfo<Way>& info) { return e2e::name(info.param); });

// ---- beginnings

TEST(Begin, PortZeroSaysWhichAndIsLoopback) {
  Serving server(Way::alone, 1, kLlama);
  ASSERT_THAT(server.address, StartsWith("127.0.0.1:"));
  EXPECT_NE(server.address, "127.0.0.1:0");
  EXPECT_TRUE(server.wait_serving());
  EXPECT_EQ(server.process.out(), "");
}

TEST(Begin, PortInUse) {
  Serving first(Way::alone, 1, kLlama);
  ASSERT_NE(first.address, "");
  for (const Way way : {Way::alone, Way::own_mpirun, Way::plain_mpirun}) {
    SCOPED_TRACE(name(way));
    adopt_orphans();
    {
      Serving second(way, 2, kLlama, {"--listen", first.address});
      const auto code = second.process.wait(20 * kSlowFactor);
      ASSERT_TRUE(code.has_value());
      EXPECT_EQ(*code, 1);
      EXPECT_EQ(error_lines(second.process.err()), 1) << second.process.err();
      EXPECT_THAT(second.process.err(), AllOf(HasSubstr("error: --listen: "), HasSubstr("in use")));
    }
  }
  EXPECT_TRUE(first.wait_serving());
}

TEST(Begin, OpenAddressMustBeSaidAloud) {
  Process server({TANDEM_BINARY, "serve", kLlama, "--listen", "0.0.0.0:0"});
  EXPECT_EQ(server.wait(20 * kSlowFactor), 2);
  EXPECT_THAT(server.err(), AllOf(StartsWith("error: --listen: "), HasSubstr("--insecure")));
  Process willing({TANDEM_BINARY, "serve", kLlama, "--listen", "0.0.0.0:0", "--insecure"});
  EXPECT_TRUE(willing.line("listening on ", 20 * kSlowFactor).has_value()) << willing.err();
}

TEST(Begin, MissingMpirun) {
  Process server({TANDEM_BINARY, "serve", kLlama, "--ranks", "2", "--listen", "127.0.0.1:0"}, {"PATH=/nonexistent"});
  EXPECT_EQ(server.wait(20 * kSlowFactor), 1);
  EXPECT_EQ(error_lines(server.err()), 1) << server.err();
  EXPECT_THAT(server.err(), AllOf(HasSubstr("error: mpirun: "), HasSubstr("openmpi-bin")));
}

TEST(Begin, ModelThatIsNotThere) {
  for (const Way way : {Way::alone, Way::own_mpirun, Way::plain_mpirun}) {
    SCOPED_TRACE(name(way));
    Serving server(way, 2, "/nonexistent/model");
    EXPECT_EQ(server.process.wait(20 * kSlowFactor), 2) << server.process.err();
    EXPECT_EQ(error_lines(server.process.err()), 1) << server.process.err();
  }
}

TEST(Begin, RanksMustBeThoseOfTheJob) {
  Serving server(Way::plain_mpirun, 2, kLlama, {"--ranks", "3"});
  EXPECT_EQ(server.process.wait(20 * kSlowFactor), 2);
  EXPECT_THAT(server.process.err(), HasSubstr("error: --ranks: is 3"));
  EXPECT_EQ(error_lines(server.process.err()), 1) << server.process.err();
}

TEST(Begin, WrongOptionIsSaidOnce) {
  Serving server(Way::plain_mpirun, 2, kLlama, {"--no-such-option"});
  EXPECT_EQ(server.process.wait(20 * kSlowFactor), 2);
  EXPECT_EQ(error_lines(server.process.err()), 1) << server.process.err();
}

// ---- clients

TEST(ClientSignals, SigintCancelsTheAnswer) {
  if (!smollm2()) GTEST_SKIP() << kNoSmolLM2 << ": a tiny model's answer is over before the signal";
  Serving server(Way::own_mpirun, 2, *smollm2());
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  Process client(
      {TANDEM_BINARY, "client", server.address, "--prompt-ids", "1,2,3", "--max-tokens", "4000", "--ignore-eos", "--temperature", "0"});
  ASSERT_TRUE(server.wait_load([](const Load& load) { return load.running == 1; }));
  client.signal(SIGINT);
  EXPECT_EQ(client.wait(kSoon), 1);
  EXPECT_THAT(client.err(), StartsWith("error: CANCELLED"));
  EXPECT_TRUE(server.wait_idle()) << "the model goes on for nobody";
}

TEST(ClientSignals, KilledClientFreesItsPlace) {
  if (!smollm2()) GTEST_SKIP() << kNoSmolLM2 << ": a tiny model's answer is over before the signal";
  Serving server(Way::own_mpirun, 2, *smollm2());
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  Process client(
      {TANDEM_BINARY, "client", server.address, "--prompt-ids", "1,2,3", "--max-tokens", "4000", "--ignore-eos", "--temperature", "0"});
  ASSERT_TRUE(server.wait_load([](const Load& load) { return load.running == 1; }));
  client.signal(SIGKILL);
  EXPECT_TRUE(server.wait_idle(kSoon));
}

}  // namespace
}  // namespace tandem::e2e
