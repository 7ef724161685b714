#include "runtime/serving/step_watch.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

using std::chrono::milliseconds;

struct Watched {
  StepWatch watch{2.0};
  StepWatch::Time now{};
  bool hung_after(int ms) {  // looking as often as it should
    bool hung = false;
    for (int i = 0; i < ms; i += 250) hung |= watch.hung(now += milliseconds(250));
    return hung;
  }
};

TEST(StepWatch, AStepMayTakeTheLeastDeadline) {
  Watched w;
  w.watch.issued(1, 1, w.now);
  EXPECT_DOUBLE_EQ(w.watch.committed(1, w.now += milliseconds(10)), 0.01);
  w.watch.issued(2, 1, w.now);
  EXPECT_FALSE(w.hung_after(2000));
  EXPECT_TRUE(w.hung_after(500));
}

TEST(StepWatch, NothingInFlightNeverHangs) {
  Watched w;
  EXPECT_FALSE(w.hung_after(100000));
  w.watch.issued(1, 1, w.now);  // the wait before does not count
  EXPECT_FALSE(w.hung_after(2000));
}

TEST(StepWatch, SlowModelsGetTwentyTimesTheirAverage) {
  Watched w;
  for (uint64_t step = 1; step <= 5; ++step) {
    w.watch.issued(step, 4, w.now);
    w.watch.committed(step, w.now += milliseconds(1000));
  }
  w.watch.issued(6, 4, w.now);
  EXPECT_FALSE(w.hung_after(19500));
  EXPECT_TRUE(w.hung_after(1000));
  w.watch.committed(6, w.now);
  w.watch.issued(7, 400, w.now);  // a chunk: a hundred times the rows
  EXPECT_FALSE(w.hung_after(1000000));
}

TEST(StepWatch, TheFirstChunkOfAnEpochIsNotJudgedByNothing) {
  Watched w;
  w.watch.issued(1, 512, w.now);
  EXPECT_FALSE(w.hung_after(120000));
  EXPECT_TRUE(w.hung_after(15000));
}

TEST(StepWatch, ASuspendedMachineIsNoHungRank) {
  Watched w;
  w.watch.issued(1, 1, w.now);
  w.watch.committed(1, w.now += milliseconds(10));
  w.watch.issued(2, 1, w.now);
  EXPECT_FALSE(w.watch.hung(w.now += std::chrono::hours(8)));
  EXPECT_FALSE(w.hung_after(1000));
  EXPECT_TRUE(w.hung_after(1000));
}

TEST(StepWatch, ResultsOfOtherGroupsAreProgress) {
  Watched w;
  w.watch.issued(1, 1, w.now);
  w.watch.issued(2, 1, w.now);
  w.watch.issued(3, 1, w.now);
  EXPECT_FALSE(w.hung_after(1500));
  w.watch.committed(2, w.now);
  EXPECT_FALSE(w.hung_after(1500));
  EXPECT_FALSE(w.watch.idle());
  w.watch.reset();
  EXPECT_TRUE(w.watch.idle());
}

}  // namespace
}  // namespace tandem
