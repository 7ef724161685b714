#include "runtime/text/stop_matcher.h"

#include <gmock/gmock.h>

#include <random>

#include "kernels/base/error.h"
#include "tests/runtime/text/fixture_files.h"

namespace tandem {
namespace {

TEST(StopMatcher, HoldsBackWhatMayBecomeAStopString) {
  StopMatcher matcher({"END", "\n\n"});
  EXPECT_EQ(matcher.feed("one E"), "one ");
  EXPECT_EQ(matcher.feed("N"), "");
  EXPECT_EQ(matcher.feed("E\n"), "ENE");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.feed("x"), "\nx");
  EXPECT_EQ(matcher.feed("\n"), "");
  EXPECT_EQ(matcher.feed("\nrest"), "");
  EXPECT_EQ(matcher.matched_index(), 1u);
  EXPECT_EQ(matcher.matched_stop(), "\n\n");
  EXPECT_EQ(matcher.feed("more"), "");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopMatcher, FlushGivesWhatWasHeldBack) {
  StopMatcher matcher({"<|end|>"});
  EXPECT_EQ(matcher.feed("a<|en"), "a");
  EXPECT_EQ(matcher.flush(), "<|en");
  EXPECT_EQ(StopMatcher({}).feed("abc"), "abc");
}

TEST(StopMatcher, TheFirstPositionCounts) {
  StopMatcher late({"cd", "abcd"});
  EXPECT_EQ(late.feed("xabcd"), "x");
  EXPECT_EQ(late.matched_index(), 1u);
  StopMatcher early({"abcd", "bc"});  // abc: only the shorter one is complete
  EXPECT_EQ(early.feed("xabc"), "xa");
  EXPECT_EQ(early.matched_index(), 1u);
}

TEST(StopMatcher, RefusesEmptyStops) { EXPECT_THROW(StopMatcher({"a", ""}), Error); }

TEST(StopMatcher, AgreesWithASearchOfTheWhole) {
  const unsigned seed = 20241;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  auto letters = [&](size_t most) {
    std::string out(1 + random() % most, 'a');
    for (char& c : out) c = "ab\xC3"[random() % 3];
    return out;
  };
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(letters(5));
    StopMatcher matcher(stops);
    std::string all, shown;
    for (size_t piece = random() % 8; piece > 0 && !matcher.matched(); --piece) {
      const std::string text = letters(6);
      all += text;
      shown += matcher.feed(text);
      size_t first = std::string::npos;
      for (const auto& stop : stops) first = std::min(first, all.find(stop));
      ASSERT_EQ(matcher.matched(), first != std::string::npos);
      if (matcher.matched()) {
        ASSERT_EQ(shown, all.substr(0, first));
        ASSERT_EQ(all.compare(first, matcher.matched_stop().size(), matcher.matched_stop()), 0);
      }
      ASSERT_TRUE(all.starts_with(shown));
    }
    if (!matcher.matched()) {
      ASSERT_EQ(shown + matcher.flush(), all);
    }
  }
}

TEST(StopMatcher, TakesLinearTime) {
  StopMatcher matcher({std::string(1 << 16, 'a') + "b"});
  const double start = thread_milliseconds();
  std::string shown;
  for (int i = 0; i < 1 << 18; ++i) shown += matcher.feed("a");
  EXPECT_EQ(shown.size() + matcher.flush().size(), size_t{1} << 18);
  EXPECT_LT(thread_milliseconds() - start, 1000 * TANDEM_SLOW_FACTOR);
}

}  // namespace
}  // namespace tandem
