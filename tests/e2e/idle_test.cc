// What a server costs when nobody asks: ranks that wait must sleep, in MPI or out of it.
#include <gtest/gtest.h>

#include "tests/e2e/serving.h"

namespace tandem::e2e {
namespace {

class Idle : public testing::TestWithParam<Way> {};

TEST_P(Idle, TakesNoCore) {
  Serving server(GetParam(), 2, kLlama);
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  for (int i = 0; i < 2; ++i) {  // used before: what a first answer starts must go back to sleep
    Stream stream(server.address, ask_ids({1, 2, 3}, 20));
    EXPECT_FALSE(stream.ended().error) << stream.ended().message;
  }
  ASSERT_TRUE(server.wait_idle());
  server.health.reset();
  std::vector<pid_t> all = descendants(server.process.pid());
  all.push_back(server.process.pid());
  const auto used = [&] {
    double seconds = 0;
    for (const pid_t pid : all) seconds += cpu_seconds(pid);
    return seconds;
  };
  const double before = used();
  const Stopwatch clock;
  EXPECT_EQ(server.process.wait(5), std::nullopt);  // idle time is what is measured: nothing else to wait for
  const double share = (used() - before) / clock.seconds();
  RecordProperty("percent_of_a_core", std::to_string(100 * share));
  EXPECT_LT(share, 0.02 * kSlowFactor) << "of one core, in " << all.size() << " processes";
}

INSTANTIATE_TEST_SUITE_P(E2e, Idle, testing::Values(Way::alone, Way::own_mpirun, Way::plain_mpirun),
                         [](const testing::TestParamInfo<Way>& info) { return name(info.param); });

}  // namespace
}  // namespace tandem::e2e
