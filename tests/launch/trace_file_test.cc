// A trace file is JSON after its end, and JSON but for its closing bracket before it, whatever is recorded and whoever dies.
#include "launch/trace_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr TraceName kSpan{"span", "test", TracePhase::span, "number", {"a", "b"}};
constexpr TraceName kBegin{"thing", "test", TracePhase::async_begin, nullptr, {}, "called"};
constexpr TraceName kEnd{"thing", "test", TracePhase::async_end, nullptr, {"c"}};

void must_not_warn(const std::string& why) { ADD_FAILURE() << why; }

// As a viewer reads it that knows how a trace may be cut.
json parse_cut(std::string text) {
  const size_t last = text.rfind('}');
  if (last == std::string::npos) return json::parse(text + "]");
  if (text.find(']', last) == std::string::npos) text = text.substr(0, last + 1) + "]";
  return json::parse(text);
}

std::vector<json> named(const json& trace, const std::string& name) {
  std::vector<json> found;
  for (const json& event : trace) {
    if (event["name"] == name) found.push_back(event);
  }
  return found;
}

// Waits for the writing thread.
std::string wait_for(const std::string& path, const std::string& words) {
  for (int i = 0; i < 1000 * kSlowFactor; ++i) {
    if (std::string text = read_whole(path); text.find(words) != std::string::npos) return text;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return "";
}

TEST(TraceFile, IsAnArrayOfEvents) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  {
    const auto file = TraceFile::create(path, must_not_warn);
    file->begin();
    const auto track = file->track(1001, "rank 1: stage 1, cuda:1", 1, "thread");
    track->add({&kSpan, 1234567891, 1234569000, 7, {-3, 4}});
    TraceEvent begin{&kBegin, 5, 0, ~uint64_t{0}};
    begin.set_text("name");
    track->add(begin);
    track->add({&kEnd, 999, 0, ~uint64_t{0}, {INT32_MIN}});
    EXPECT_EQ(file->track(1001, "again", 1, "again"), track);
  }
  const json trace = json::parse(read_whole(path));
  ASSERT_EQ(trace.size(), 3u + 3 + 1);
  EXPECT_EQ(trace[0], (json{{"name", "process_name"}, {"ph", "M"}, {"pid", 1001}, {"tid", 1}, {"args", {{"name", "rank 1: stage 1, cuda:1"}}}}));
  EXPECT_EQ(trace[3], (json{{"name", "span"}, {"cat", "test"}, {"ph", "X"}, {"pid", 1001}, {"tid", 1}, {"ts", 1234567.891}, {"dur", 1.109},
                            {"args", {{"number", 7}, {"a", -3}, {"b", 4}}}}));
  EXPECT_EQ(trace[4], (json{{"name", "thing"}, {"cat", "test"}, {"ph", "b"}, {"pid", 1001}, {"tid", 1}, {"ts", 0.005}, {"id", "18446744073709551615"},
                            {"args", {{"called", "name"}}}}));
  EXPECT_EQ(trace[5]["ph"], "e");
  EXPECT_EQ(trace[5]["ts"], 0.999);
  EXPECT_EQ(trace[5]["args"]["c"], INT32_MIN);
  EXPECT_EQ(trace[6]["name"], "end of trace");
}

TEST(TraceFile, EscapesWhatComesFromOutside) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json", long_name = std::string(39, 'x') + "\u00e4";  // cut within a character
  const std::string names[] = {"a \"quoted\" \\ name", "line\nbreak\ttab\x01", "\u00e4\u20ac", "\xff\xfe", long_name, std::string("cut\0here", 8)};
  {
    const auto file = TraceFile::create(path, must_not_warn);
    file->begin();
    const auto track = file->track(1, names[0], 1, names[1]);
    for (const std::string& name : names) {
      TraceEvent begin{&kBegin, 5, 0, 1};
      begin.set_text(name);
      track->add(begin);
    }
  }
  const json trace = json::parse(read_whole(path));
  EXPECT_EQ(trace[0]["args"]["name"], names[0]);
  EXPECT_EQ(trace[2]["args"]["name"], names[1]);
  const std::vector<json> things = named(trace, "thing");
  ASSERT_EQ(things.size(), 6u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(things[static_cast<size_t>(i)]["args"]["called"], names[i]);
  EXPECT_EQ(things[3]["args"]["called"], "\ufffd\ufffd");
  EXPECT_EQ(things[4]["args"]["called"], std::string(39, 'x') + "\ufffd");
  EXPECT_EQ(things[5]["args"]["called"], "cut");
}

TEST(TraceFile, CanBeReadWhileItIsWritten) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  const auto file = TraceFile::create(path, must_not_warn);
  file->begin();
  EXPECT_EQ(parse_cut(read_whole(path)).size(), 0u);
  const auto track = file->track(1, "process", 1, "thread");
  track->add({&kSpan, 1, 2, 3});
  const std::string text = wait_for(path, "span");
  EXPECT_TRUE(text.ends_with("},\n"));
  EXPECT_EQ(named(parse_cut(text), "span").size(), 1u);
}

TEST(TraceFile, SaysHowManyEventsWereDropped) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  uint64_t dropped = 0;
  {
    const auto file = TraceFile::create(path, must_not_warn);
    file->begin();
    const auto track = file->track(1, "process", 1, "thread");
    for (uint64_t i = 0; i < 6 * TraceTrack::kEvents; ++i) track->add({&kSpan, 1, 2, i});
    dropped = track->dropped();
  }
  EXPECT_GT(dropped, 0u);
  const json trace = json::parse(read_whole(path));
  uint64_t said = 0;
  for (const json& event : named(trace, "dropped events")) said += event["args"]["dropped"].get<uint64_t>();
  EXPECT_EQ(said, dropped);
  EXPECT_EQ(named(trace, "span").size() + said, 6 * TraceTrack::kEvents);
}

TEST(TraceFile, IsSharedByTheRanks) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  constexpr int kParts = 4;
  constexpr uint64_t kEach = 20000;
  {
    const auto file = TraceFile::create(path, must_not_warn);
    file->begin();
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < kParts; ++rank) {
      ranks.emplace_back([&, rank] {
        const auto part = TraceFile::join(file->path());
        ASSERT_NE(part, nullptr);
        const auto track = part->track(rank_process(rank), "rank " + std::to_string(rank), 1, "thread");
        for (uint64_t i = 0; i < kEach; ++i) {
          track->add({&kSpan, 1, 2, i});
          while (i % 4000 == 0 && !track->empty()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        EXPECT_EQ(track->dropped(), 0u);
      });
    }
    for (std::thread& rank : ranks) rank.join();
  }
  const json trace = json::parse(read_whole(path));
  std::map<int, uint64_t> next;
  for (const json& event : named(trace, "span")) ASSERT_EQ(event["args"]["number"], next[event["pid"]]++);
  EXPECT_EQ(next.size(), static_cast<size_t>(kParts));
  for (const auto& [rank, count] : next) EXPECT_EQ(count, kEach);
}

TEST(TraceFile, CutsTheHalfLineOfAProcessThatDied) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  {
    const auto file = TraceFile::create(path, must_not_warn);
    file->begin();
    const auto track = file->track(1, "process", 1, "thread");
    track->add({&kSpan, 1, 2, 1});
    ASSERT_NE(wait_for(path, "span"), "");
    std::ofstream(path, std::ios::app) << "{\"name\":\"half";
    track->add({&kSpan, 1, 2, 2});
  }
  const std::string text = read_whole(path);
  EXPECT_THAT(text, testing::Not(HasSubstr("half")));
  EXPECT_EQ(named(json::parse(text), "span").size(), 2u);
}

TEST(TraceFile, AcceptsNothingAfterItsEnd) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  auto file = TraceFile::create(path, must_not_warn);
  file->begin();
  const auto late = TraceFile::join(path);
  const auto track = late->track(1001, "rank 1", 1, "thread");
  ASSERT_NE(wait_for(path, "rank 1"), "");
  file.reset();
  const std::string closed = read_whole(path);
  track->add({&kSpan, 1, 2, 1});
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  EXPECT_EQ(read_whole(path), closed);
  EXPECT_TRUE(json::accept(closed));
}

TEST(TraceFile, LeavesNothingWhenItIsNotBegun) {
  const TemporaryFolder folder;
  TraceFile::create(folder / "new.json", must_not_warn);
  EXPECT_FALSE(std::filesystem::exists(folder / "new.json"));
  std::ofstream(folder / "old.json") << "old";
  TraceFile::create(folder / "old.json", must_not_warn);
  EXPECT_EQ(read_whole(folder / "old.json"), "old");
  TraceFile::create(folder / "old.json", must_not_warn)->begin();
  EXPECT_EQ(json::parse(read_whole(folder / "old.json")).size(), 1u);
  EXPECT_EQ(TraceFile::join(folder / "none.json"), nullptr);
}

TEST(TraceFile, RefusesWhatIsNoFile) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  for (const std::string& path : {folder.path(), folder / "no/trace.json", folder / "pipe", std::string("/dev/null"), std::string()}) {
    try {
      TraceFile::create(path, must_not_warn);
      ADD_FAILURE() << path;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument);
      EXPECT_THAT(error.what(), testing::StartsWith("--trace: cannot write " + path + ": "));
    }
  }
}

// A limit on the size of files stands for a full disk.
TEST(TraceFile, OfAFullDiskWarnsOnceAndStaysReadable) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  std::vector<std::string> warnings;
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{}, small{};
  getrlimit(RLIMIT_FSIZE, &limit);
  small = limit;
  small.rlim_cur = 40000;
  setrlimit(RLIMIT_FSIZE, &small);
  {
    const auto file = TraceFile::create(path, [&](const std::string& why) { warnings.push_back(why); });
    file->begin();
    const auto track = file->track(1, "process", 1, "thread");
    track->add({&kSpan, 1, 2, 0});
    wait_for(path, "span");
    for (int round = 0; round < 3; ++round) {
      for (uint64_t i = 0; i < 2 * TraceTrack::kEvents; ++i) track->add({&kSpan, 1, 2, 1 + i});
      std::this_thread::sleep_for(std::chrono::milliseconds(80));
    }
  }
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, before);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_THAT(warnings[0], HasSubstr(path + " cannot be written any more: File too large"));
  EXPECT_EQ(named(parse_cut(read_whole(path)), "span").size(), 1u);
}

}  // namespace
}  // namespace tandem
