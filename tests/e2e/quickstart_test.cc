// launch/quickstart.sh, as the README gives it, over a tree that is built already.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/e2e/serving.h"

namespace tandem::e2e {
namespace {

TEST(SlowQuickstart, AnswersWithAModel) {
  if (!smollm2()) GTEST_SKIP() << kNoSmolLM2;
  const std::filesystem::path source = std::filesystem::path(TANDEM_FIXTURES) / "../..";
  const std::filesystem::path built = source / "build/cpu";
  if (!std::filesystem::exists(built) || !std::filesystem::equivalent(built, std::filesystem::path(TANDEM_BINARY).parent_path())) {
    GTEST_SKIP() << "the tests are not those of build/cpu, which the script builds";
  }
  adopt_orphans();
  {
    Process script({(source / "launch/quickstart.sh").string(), "--no-install"}, {"QUESTION=What is the capital of France?"});
    const Stopwatch clock;
    ASSERT_EQ(script.wait(180 * kSlowFactor), 0) << script.err();
    RecordProperty("seconds", static_cast<int>(clock.seconds()));
    EXPECT_THAT(script.out(), testing::HasSubstr("Paris"));
    EXPECT_THAT(script.err(), testing::HasSubstr("listening on 127.0.0.1:"));
  }
  EXPECT_THAT(wait_childless(getpid(), 5 * kSlowFactor), testing::IsEmpty()) << "processes were left behind";
}

}  // namespace
}  // namespace tandem::e2e
