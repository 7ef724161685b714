// --trace: what a whole program writes of its ranks, as threads, as processes, ended in order and killed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/e2e/serving.h"

namespace tandem::e2e {
namespace {

using nlohmann::json;

constexpr int kTokens = 20;

struct Row {
  std::string process;
  std::vector<json> spans;  // in the order of their beginnings, the outer one first
};

double begin_of(const json& e) { return e["ts"]; }
double end_of(const json& e) { return e["ts"].get<double>() + e["dur"].get<double>(); }
uint64_t step_of(const json& e) { return e["args"]["step"]; }

class Picture {
 public:
  explicit Picture(const json& trace) {
    for (const json& e : trace) {
      Row& row = rows_[e["pid"]];
      if (e["name"] == "process_name") row.process = e["args"]["name"];
      if (e["ph"] == "X") row.spans.push_back(e);
      if (e["ph"] == "b" || e["ph"] == "e" || e["ph"] == "n") async[e["cat"].get<std::string>() + " " + e["id"].get<std::string>()].push_back(e);
    }
    for (auto& [pid, row] : rows_) {
      std::stable_sort(row.spans.begin(), row.spans.end(), [](const json& a, const json& b) {
        return begin_of(a) != begin_of(b) ? begin_of(a) < begin_of(b) : end_of(a) > end_of(b);
      });
    }
  }
  const Row* row(const std::string& prefix) const {
    for (const auto& [pid, row] : rows_) {
      if (row.process.starts_with(prefix)) return &row;
    }
    return nullptr;
  }
  std::map<std::string, std::vector<json>> async;

 private:
  std::map<int, Row> rows_;
};

std::vector<json> named(const Row& row, const std::string& name) {
  std::vector<json> found;
  std::copy_if(row.spans.begin(), row.spans.end(), std::back_inserter(found), [&](const json& e) { return e["name"] == name; });
  return found;
}

void expect_nesting(const Row& row) {
  std::vector<double> ends;
  for (const json& e : row.spans) {
    constexpr double kRounding = 0.0005;
    EXPECT_GE(e["dur"].get<double>(), 0);
    while (!ends.empty() && ends.back() <= begin_of(e) + kRounding) ends.pop_back();
    if (!ends.empty()) { EXPECT_LE(end_of(e), ends.back() + kRounding) << e << " reaches beyond what it began in"; }
    ends.push_back(end_of(e));
  }
}

// A greedy answer of kTokens tokens on two stages, from start to end.
void expect_whole_picture(const json& trace, int prompt_tokens) {
  const Picture picture(trace);
  const Row* ranks[] = {picture.row("rank 0: stage 0, cpu"), picture.row("rank 1: stage 1, cpu")};
  ASSERT_TRUE(ranks[0] && ranks[1] && picture.row("coordinator")) << trace;

  const std::vector<json> steps[] = {named(*ranks[0], "step"), named(*ranks[1], "step")};
  ASSERT_EQ(steps[0].size(), steps[1].size());
  int decoding = 0, prefilled = 0;
  for (size_t i = 0; i < steps[0].size(); ++i) {
    for (const auto& of_rank : steps) {
      EXPECT_EQ(step_of(of_rank[i]), i + 1);  // each step, in order
      EXPECT_EQ(of_rank[i]["args"], steps[0][i]["args"]);
      if (i > 0) { EXPECT_LE(end_of(of_rank[i - 1]), begin_of(of_rank[i])); }
    }
    const json& about = steps[0][i]["args"];
    EXPECT_EQ(about["rows"].get<int>(), about["decode_rows"].get<int>() + about["prefill_rows"].get<int>());
    EXPECT_LE(about["sequences"], 1);
    decoding += about["decode_rows"].get<int>();
    prefilled += about["prefill_rows"].get<int>();
  }
  EXPECT_EQ(prefilled, prompt_tokens);
  EXPECT_GE(decoding, kTokens - 1);  // the prompt's last step draws the first
  EXPECT_LE(decoding, kTokens + 2);  // run ahead of the end

  const auto busy = static_cast<size_t>(std::count_if(steps[0].begin(), steps[0].end(), [](const json& e) { return e["args"]["rows"] > 0; }));
  for (const Row* row : ranks) {
    expect_nesting(*row);
    EXPECT_EQ(named(*row, "forward").size(), busy);
  }
  const std::vector<json> sends = named(*ranks[0], "send hidden rows"), receives = named(*ranks[1], "receive hidden rows"), samples = named(*ranks[1], "sample");
  ASSERT_EQ(sends.size(), busy);
  ASSERT_EQ(receives.size(), busy);
  for (size_t i = 0; i < busy; ++i) {
    EXPECT_EQ(step_of(sends[i]), step_of(receives[i]));
    EXPECT_LE(begin_of(sends[i]), end_of(receives[i]));  // one clock
  }
  EXPECT_GE(samples.size(), static_cast<size_t>(kTokens));
  EXPECT_EQ(named(*ranks[1], "wait for drawn ids").size(), samples.size());
  EXPECT_EQ(named(*ranks[1], "post mail").size(), samples.size());
  EXPECT_GE(named(*ranks[0], "take mail").size(), static_cast<size_t>(kTokens - 1));

  int requests = 0, issued = 0;
  for (const auto& [id, events] : picture.async) {
    if (id.starts_with("step ")) {
      ++issued;
      ASSERT_EQ(events[0]["ph"], "b") << id;
      const uint64_t number = step_of(events[0]);
      ASSERT_TRUE(number >= 1 && number <= steps[0].size()) << id;
      EXPECT_LE(begin_of(events[0]), begin_of(steps[0][number - 1]));
      if (events.size() > 1) { EXPECT_GE(begin_of(events[1]), begin_of(steps[1][number - 1])); }
      continue;
    }
    ++requests;
    ASSERT_EQ(events.size(), 4u) << id;
    EXPECT_EQ(events[0]["ph"], "b");
    EXPECT_EQ(events[0]["args"]["prompt_tokens"], prompt_tokens);
    EXPECT_EQ(events[1]["name"], "admitted");
    EXPECT_EQ(events[2]["name"], "first token");
    EXPECT_EQ(events[3]["ph"], "e");
    EXPECT_EQ(events[3]["args"]["completion_tokens"], kTokens);
    EXPECT_EQ(events[3]["args"]["finish"], "length");
    for (int i = 1; i < 4; ++i) EXPECT_LE(begin_of(events[static_cast<size_t>(i - 1)]), begin_of(events[static_cast<size_t>(i)]));
  }
  EXPECT_EQ(requests, 1);
  EXPECT_EQ(issued, static_cast<int>(steps[0].size()));
}

json parse_cut(std::string text) { return json::parse(text.substr(0, text.rfind('}') + 1) + "]"); }

void expect_generate(const std::vector<std::string>& launcher, const std::vector<std::string>& more) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  std::vector<std::string> words = launcher;
  words.insert(words.end(), {TANDEM_BINARY, "generate", kLlama, "--prompt-ids", "5,6,7,8,9", "--max-tokens", std::to_string(kTokens), "--ignore-eos", "--chunk", "2",
                             "--temperature", "0", "--trace", path});
  words.insert(words.end(), more.begin(), more.end());
  Process process(words);
  ASSERT_EQ(process.wait(60 * kSlowFactor), 0) << process.err();
  EXPECT_EQ(process.err(), "");
  expect_whole_picture(json::parse(read_whole(path)), 5);
}

TEST(Trace, OfThreads) { expect_generate({}, {"--pp", "2"}); }
TEST(Trace, OfAnMpiJob) { expect_generate(mpirun_words(2), {"--pp", "2"}); }

void expect_an_answer(Serving& serving) {
  ASSERT_TRUE(serving.wait_serving());
  Stream stream(serving.address, ask_ids({5, 6, 7, 8, 9}, kTokens));
  EXPECT_FALSE(stream.ended().error) << stream.ended().message;
}

TEST(Trace, OfAServerWithProcesses) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  Serving serving(Way::own_mpirun, 2, kLlama, {"--trace", path});
  ASSERT_NO_FATAL_FAILURE(expect_an_answer(serving));
  serving.process.signal(SIGTERM);
  ASSERT_EQ(serving.process.wait(40 * kSlowFactor), 0);
  expect_whole_picture(json::parse(read_whole(path)), 5);
}

// Killed in the midst: everything but the last moment is there.
TEST(Trace, OfAKilledServer) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  Serving serving(Way::own_mpirun, 2, kLlama, {"--trace", path});
  ASSERT_NO_FATAL_FAILURE(expect_an_answer(serving));
  std::this_thread::sleep_for(std::chrono::duration<double>(1 * kSlowFactor));
  serving.process.signal(SIGKILL);
  ASSERT_EQ(serving.process.wait(10 * kSlowFactor), 128 + SIGKILL);
  expect_whole_picture(parse_cut(read_whole(path)), 5);
}

// The next epoch's ranks go on in the same rows.
TEST(Trace, OfRanksThatWereStartedAgain) {
  const TemporaryFolder folder;
  const std::string path = folder / "trace.json";
  Serving serving(Way::own_mpirun, 2, kLlama, {"--trace", path});
  for (int epoch = 1; epoch <= 2; ++epoch) {
    ASSERT_NO_FATAL_FAILURE(expect_an_answer(serving));
    if (epoch == 2) break;
    std::this_thread::sleep_for(std::chrono::duration<double>(1 * kSlowFactor));
    ASSERT_TRUE(send_signal(serving.workers().at(1), SIGKILL));
    ASSERT_TRUE(serving.health->wait(false, 20 * kSlowFactor));
  }
  serving.process.signal(SIGTERM);
  ASSERT_EQ(serving.process.wait(40 * kSlowFactor), 0);
  const json trace = json::parse(read_whole(path));
  const Picture picture(trace);
  for (const char* rank : {"rank 0", "rank 1"}) {
    std::map<int, int> steps;  // by epoch
    for (const json& step : named(*picture.row(rank), "step")) ++steps[step["args"]["epoch"]];
    EXPECT_EQ(steps.size(), 2u) << rank;
    for (const auto& [epoch, count] : steps) EXPECT_GE(count, kTokens) << rank << " epoch " << epoch;
  }
  EXPECT_EQ(std::count_if(trace.begin(), trace.end(), [](const json& e) { return e["name"] == "epoch lost"; }), 1);
}

}  // namespace
}  // namespace tandem::e2e
