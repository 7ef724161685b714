// A track keeps what one thread records for one that reads, drops what finds it full, and counts that.
#include "kernels/base/trace.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

namespace tandem {
namespace {

constexpr TraceName kWork{"work", "test", TracePhase::span, "number"};

TEST(TraceTrack, GivesEventsInTheirOrder) {
  TraceTrack track;
  TraceEvent event;
  EXPECT_FALSE(track.take(event));
  for (uint64_t round = 0; round < 3; ++round) {  // over the ring's end
    for (uint64_t i = 0; i < TraceTrack::kEvents - 7; ++i) track.add({&kWork, 1, 2, i});
    for (uint64_t i = 0; i < TraceTrack::kEvents - 7; ++i) {
      ASSERT_TRUE(track.take(event));
      ASSERT_EQ(event.id, i);
    }
    EXPECT_TRUE(track.empty());
  }
  EXPECT_EQ(track.dropped(), 0u);
}

TEST(TraceTrack, DropsAndCountsWhatFindsItFull) {
  TraceTrack track;
  for (uint64_t i = 0; i < TraceTrack::kEvents + 5; ++i) track.add({&kWork, 1, 2, i});
  EXPECT_EQ(track.dropped(), 5u);
  TraceEvent event;
  uint64_t taken = 0;
  for (; track.take(event); ++taken) ASSERT_EQ(event.id, taken);  // the oldest stay
  EXPECT_EQ(taken, TraceTrack::kEvents);
  track.add({&kWork, 1, 2, 77});
  ASSERT_TRUE(track.take(event));
  EXPECT_EQ(event.id, 77u);
}

TEST(TraceTrack, TwoThreadsLoseNothingUnsaid) {
  constexpr uint64_t kMany = 200000;
  TraceTrack track;
  std::thread writer([&] {
    for (uint64_t i = 0; i < kMany; ++i) track.add({&kWork, static_cast<int64_t>(i), static_cast<int64_t>(2 * i), i});
  });
  uint64_t taken = 0, last = 0;
  TraceEvent event;
  const auto read = [&] {
    while (track.take(event)) {
      ASSERT_EQ(event.begin, static_cast<int64_t>(event.id));
      ASSERT_EQ(event.end, static_cast<int64_t>(2 * event.id));
      ASSERT_TRUE(taken == 0 || event.id > last);
      last = event.id;
      ++taken;
    }
  };
  while (taken + track.dropped() < kMany / 2) read();
  writer.join();
  read();
  EXPECT_EQ(taken + track.dropped(), kMany);
}

TEST(TraceSpan, LastsUntilTheEndOfItsScope) {
  TraceTrack track;
  const int64_t before = trace_now();
  {
    TraceSpan outer(&track, kWork, 1);
    const TraceSpan inner(&track, kWork, 2);
    outer.arguments({3, 4});
  }
  const int64_t after = trace_now();
  TraceEvent inner, outer;
  ASSERT_TRUE(track.take(inner) && track.take(outer));
  EXPECT_EQ(inner.id, 2u);
  EXPECT_EQ(outer.id, 1u);
  EXPECT_EQ(outer.arguments[0], 3);
  EXPECT_EQ(outer.arguments[1], 4);
  EXPECT_TRUE(before <= outer.begin && outer.begin <= inner.begin && inner.begin <= inner.end && inner.end <= outer.end && outer.end <= after);
}

TEST(TraceSpan, IsNothingWithoutATrack) { const TraceSpan span(nullptr, kWork, 1); }

TEST(TraceEvent, CutsLongText) {
  TraceEvent event;
  event.set_text(std::string(100, 'x'));
  EXPECT_EQ(event.text[sizeof event.text - 1], 'x');
}

}  // namespace
}  // namespace tandem
