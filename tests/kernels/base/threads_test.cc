#include "kernels/base/threads.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/base/error.h"

namespace tandem {
namespace {

TEST(Team, EveryMemberWorksOnce) {
  for (const int size : {1, 2, 3, 7}) {
    Team team(size);
    EXPECT_EQ(team.size(), size);
    std::vector<int> calls(static_cast<size_t>(size), 0);
    for (int round = 0; round < 100; ++round) team.run([&](int member) { ++calls[static_cast<size_t>(member)]; });
    for (const int count : calls) EXPECT_EQ(count, 100);
  }
}

TEST(Team, TheCallerIsMemberZero) {
  Team team(2);
  std::vector<std::thread::id> ids(2);
  team.run([&](int member) { ids[static_cast<size_t>(member)] = std::this_thread::get_id(); });
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  EXPECT_NE(ids[1], ids[0]);
}

TEST(Team, TheBarrierShowsWhatOthersWrote) {
  for (const int size : {1, 2, 3, 5}) {
    Team team(size);
    std::vector<int64_t> written(static_cast<size_t>(size), 0);
    std::vector<int> wrong(static_cast<size_t>(size), 0);
    team.run([&](int member) {
      for (int64_t round = 1; round <= 300; ++round) {
        written[static_cast<size_t>(member)] = round * (member + 1);
        team.barrier();
        for (int other = 0; other < size; ++other)
          wrong[static_cast<size_t>(member)] += written[static_cast<size_t>(other)] != round * (other + 1);
        team.barrier();
      }
    });
    for (const int count : wrong) EXPECT_EQ(count, 0);
  }
}

TEST(Team, RethrowsTheLowestMembersException) {
  Team team(4);
  for (int round = 0; round < 20; ++round) {
    try {
      team.run([&](int member) {
        if (member >= 2) throw std::runtime_error("member " + std::to_string(member));
      });
      FAIL() << "nothing was thrown";
    } catch (const std::runtime_error& e) {
      EXPECT_EQ(e.what(), std::string("member 2"));
    }
    int done = 0;
    std::mutex mutex;
    team.run([&](int) {
      team.barrier();
      std::lock_guard lock(mutex);
      ++done;
    });
    EXPECT_EQ(done, 4);
  }
}

// A collective that fails in member 0 must not leave the others in the barrier.
TEST(Team, MembersInABarrierAreLetGoWhenOneThrows) {
  Team team(3);
  for (int round = 0; round < 50; ++round) {
    EXPECT_THROW(team.run([&](int member) {
      team.barrier();
      if (member == 0) fail(Code::unavailable, "peer", "gone");
      team.barrier();
      team.barrier();
    }),
                 Error);
    int after = 0;
    team.run([&](int member) {
      team.barrier();
      if (member == 0) after = 1;
      team.barrier();
    });
    EXPECT_EQ(after, 1);
  }
}

TEST(Team, SleepingMembersCostNothing) {
  Team team(3);
  team.run([](int) {});
  const auto used = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const double before = used();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(used() - before, 0.02);
}

TEST(Team, RefusesSizesThatAreNone) {
  EXPECT_THROW(Team(0), Error);
  EXPECT_THROW(Team(65), Error);
  EXPECT_GE(allowed_cores(), 1);
}

TEST(Part, CoversEverythingOnce) {
  for (const int64_t total : {0, 1, 5, 64, 1000003}) {
    for (const int count : {1, 2, 3, 64}) {
      int64_t at = 0;
      for (int i = 0; i < count; ++i) {
        const auto [begin, end] = part(total, i, count);
        EXPECT_EQ(begin, at);
        EXPECT_LE(end - begin, total / count + 1);
        at = end;
      }
      EXPECT_EQ(at, total);
    }
  }
}

}  // namespace
}  // namespace tandem
