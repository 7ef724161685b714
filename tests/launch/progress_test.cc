// Progress lines, and silence of short work.
#include "launch/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace tandem {
namespace {

using testing::HasSubstr;

TEST(ProgressLine, BytesShareAndTimeLeft) {
  const std::string line = progress_line("loading  rank 0", 1u << 30, 2u << 30, 12, 10, "");
  EXPECT_EQ(line, "loading  rank 0  [#####-----]   50 %  1.0 GiB of 2.0 GiB  12 s left");
  EXPECT_THAT(progress_line("x", 1, 4, 300, 0, "tokens"), HasSubstr("25 %  1 tokens of 4 tokens  15 min 00 s left"));
  EXPECT_THAT(progress_line("x", 5, 4, 3, 4, "tokens"), HasSubstr("[####]  100 %"));
  EXPECT_THAT(progress_line("x", 0, 0, 3, 4, "tokens"), HasSubstr("[----]    0 %"));
}

TEST(Progress, ShortWorkIsSilent) {
  testing::internal::CaptureStderr();
  {
    Progress progress("loading", 2);
    progress.update(0, 1, 2);
    progress.update(7, 1, 2);  // no such lane: ignored
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(Progress, FinishedLanesAreNotTold) {
  testing::internal::CaptureStderr();
  Progress progress("loading", 1);
  progress.update(0, 4, 4);
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(Progress, LongWorkIsToldOnceAWhile) {
  testing::internal::CaptureStderr();
  std::function<void(uint64_t, uint64_t)> lane;
  {
    Progress progress("loading", 2);
    lane = progress.lane(1);
    std::thread other([&progress] { progress.update(0, 1 << 20, 4 << 20); });
    lane(2 << 20, 4 << 20);
    other.join();
    std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  }
  lane(4 << 20, 4 << 20);  // outlives the Progress
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("loading  rank 0   25 %  1.0 MiB of 4.0 MiB"));
  EXPECT_THAT(said, HasSubstr("loading  rank 1   50 %"));
  EXPECT_EQ(said.find('\x1b'), std::string::npos);  // no terminal, no bars
}

}  // namespace
}  // namespace tandem
