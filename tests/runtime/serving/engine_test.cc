#include "runtime/serving/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <time.h>

#include <random>

#include "tests/support/fake_group.h"

#ifndef TANDEM_SLOW_FACTOR
#define TANDEM_SLOW_FACTOR 1
#endif

namespace tandem {
namespace {

using std::chrono::milliseconds;
using Fate = FakeGroupOptions::Fate;

EngineOptions small() {
  EngineOptions o;
  o.max_batch = 4;
  o.chunk = 32;
  o.decode_chunk = 8;
  o.max_queue = 4;
  o.page_tokens = 8;
  o.context = 256;
  o.groups = 2;
  o.kv_pages = {128};
  o.vocab = 500;
  o.restart_seconds = 0.02;
  o.check_digests = true;
  return o;
}

Request request(const std::string& id, int32_t prompt = 20, int32_t max_tokens = 10) {
  Request r;
  r.id = id;
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>()(id)));
  for (int32_t i = 0; i < prompt; ++i) r.prompt.push_back(static_cast<int32_t>(random() % 500));
  r.stopping.max_tokens = max_tokens;
  return r;
}

struct Served {  // an engine with its group, serving
  explicit Served(EngineOptions o = small(), FakeGroupOptions f = {}) : options(o), group(o, std::move(f)), engine(o, group) {
    engine.start();
    EXPECT_TRUE(engine.wait_for(EngineState::serving, limit(20000)));
  }
  ~Served() { EXPECT_EQ(group.violation(), std::nullopt); }
  std::shared_ptr<FakeSink> submit(Request r) {
    auto sink = std::make_shared<FakeSink>();
    engine.submit(std::move(r), sink);
    return sink;
  }
  Code refusal(Request r, std::string* where = nullptr) {
    try {
      submit(std::move(r));
    } catch (const Error& error) {
      if (where) *where = error.where;
      return error.code;
    }
    ADD_FAILURE() << "was accepted";
    return Code::internal;
  }
  EngineOptions options;
  FakeGroup group;
  Engine engine;
};

FakeGroupOptions slow(int ms) { return {.step_time = milliseconds(ms)}; }

TEST(Engine, AnswersAsAlone) {
  Served s;
  std::vector<std::pair<Request, std::shared_ptr<FakeSink>>> all;
  for (int i = 0; i < 8; ++i) {
    Request r = request("r" + std::to_string(i), 1 + 20 * i, i == 3 ? 0 : 5 + 7 * i);
    if (i == 5) r.stopping.stop_ids = {SimulatedWorkers::alone(r, 256, 500)[3]};
    all.emplace_back(r, s.submit(r));
  }
  for (auto& [r, sink] : all) {
    ASSERT_TRUE(sink->wait());
    const RequestEvent last = sink->last();
    EXPECT_EQ(sink->ids(), SimulatedWorkers::alone(r, 256, 500));
    EXPECT_FALSE(last.error);
    EXPECT_EQ(last.finish, r.id == "r5" ? FinishReason::stop : FinishReason::length);
    EXPECT_EQ(last.matched_id, r.id == "r5" ? sink->ids().back() : -1);
    EXPECT_EQ(last.prompt_tokens, static_cast<int32_t>(r.prompt.size()));
    EXPECT_EQ(last.completion_tokens, static_cast<int32_t>(sink->ids().size()));
    EXPECT_GE(last.timings.ttft_seconds, last.timings.queue_seconds);
    EXPECT_EQ(sink->after_end(), 0);
  }
  EXPECT_EQ(s.engine.load().waiting, 0);
  EXPECT_EQ(s.engine.metrics().requests.value(), 8u);
  EXPECT_EQ(s.engine.metrics().finished_length.value(), 7u);
}

TEST(Engine, LogitsOfAWholePrompt) {
  Served s;
  Request r = request("l", 100);
  r.all_logits = true;
  const auto sink = s.submit(r);
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->rows(), 100);
  EXPECT_TRUE(sink->ids().empty());
  EXPECT_EQ(sink->last().finish, FinishReason::length);
}

TEST(Engine, PrefixIsReused) {
  Served s;
  const Request first = request("same", 50, 8);
  ASSERT_TRUE(s.submit(first)->wait());
  Request again = first;
  again.id = "again";
  const auto sink = s.submit(again);
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->last().cached_tokens, 48);
  EXPECT_EQ(sink->ids(), SimulatedWorkers::alone(first, 256, 500));
  EXPECT_EQ(s.engine.metrics().cached_tokens.value(), 48u);
}

TEST(Engine, RefusesByName) {
  Served s(small(), slow(20));
  std::string where;
  Request r = request("a");
  r.prompt.clear();
  EXPECT_EQ(s.refusal(r, &where), Code::invalid_argument);
  EXPECT_EQ(where, "prompt");
  r = request("a", 256);
  EXPECT_EQ(s.refusal(r, &where), Code::invalid_argument);
  EXPECT_EQ(where, "prompt");
  const auto kept = s.submit(request("b"));
  EXPECT_EQ(s.refusal(request("b"), &where), Code::already_exists);
  EXPECT_EQ(where, "request_id");
  ASSERT_TRUE(kept->wait());
  ASSERT_TRUE(s.submit(request("b"))->wait());  // free again
}

TEST(Engine, QueueIsBounded) {
  Served s(small(), slow(20));
  std::vector<std::shared_ptr<FakeSink>> accepted;
  int refused = 0;
  for (int i = 0; i < 20; ++i) {
    try {
      accepted.push_back(s.submit(request("q" + std::to_string(i))));
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::resource_exhausted);
      ++refused;
    }
  }
  EXPECT_EQ(accepted.size(), 8u);  // max_batch + max_queue
  EXPECT_EQ(refused, 12);
  EXPECT_GE(s.engine.retry_after(), milliseconds(50));
  EXPECT_LE(s.engine.retry_after(), milliseconds(30000));
  for (auto& sink : accepted) EXPECT_TRUE(sink->wait());
  EXPECT_TRUE(s.submit(request("more"))->wait());
  EXPECT_EQ(s.engine.metrics().refused.value(), 12u);
}

TEST(Engine, CancelFreesPagesWithinAStep) {
  Served s(small(), slow(10));
  const auto sink = s.submit(request("c", 20, 200));
  ASSERT_TRUE(sink->wait_for_tokens(3));
  EXPECT_LT(s.engine.load().kv_pages_free, s.engine.load().kv_pages_total);
  s.engine.cancel("c", Code::cancelled);
  ASSERT_TRUE(sink->wait(limit(1000)));
  EXPECT_EQ(sink->last().finish, FinishReason::cancelled);
  EXPECT_FALSE(sink->last().error);
  EXPECT_EQ(sink->last().completion_tokens, static_cast<int32_t>(sink->ids().size()));
  EXPECT_EQ(s.engine.load().kv_pages_free, s.engine.load().kv_pages_total);
  s.engine.cancel("c", Code::cancelled);  // unknown: ignored
  const auto aborted = s.submit(request("d", 20, 200));
  s.engine.cancel("d", Code::aborted);
  ASSERT_TRUE(aborted->wait(limit(1000)));
  ASSERT_TRUE(aborted->last().error);
  EXPECT_EQ(aborted->last().error->code, Code::aborted);
}

TEST(Engine, StopStringEndsAtItsToken) {
  Served s(small(), slow(2));
  auto sink = std::make_shared<FakeSink>();
  int seen = 0;
  sink->on_event = [&](const RequestEvent& e) {
    seen += static_cast<int>(e.tokens.size());
    if (seen == 5 && !e.tokens.empty()) s.engine.finish("s", 3);  // matched within the fourth
  };
  s.engine.submit(request("s", 20, 200), sink);
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->last().finish, FinishReason::stop_string);
  EXPECT_EQ(sink->last().completion_tokens, 4);
  EXPECT_LT(sink->ids().size(), 20u);
}

TEST(Engine, DeadlinesAreKept) {
  Served s(small(), {.step_time = limit(10)});
  Request r = request("late", 20, 200);
  r.deadline = Clock::now() + limit(60);
  const auto sink = s.submit(r);
  Request dead = request("dead");
  dead.deadline = Clock::now() - milliseconds(1);
  const auto never = s.submit(dead);
  ASSERT_TRUE(sink->wait());
  ASSERT_TRUE(sink->last().error);
  EXPECT_EQ(sink->last().error->code, Code::deadline_exceeded);
  EXPECT_GT(sink->ids().size(), 0u);
  EXPECT_LT(sink->ids().size(), 30u);
  ASSERT_TRUE(never->wait());
  EXPECT_EQ(never->last().error->code, Code::deadline_exceeded);
  EXPECT_TRUE(never->ids().empty());
}

TEST(Engine, DeadlineWhileNothingMoves) {  // by the timed wait, without a step
  FakeGroupOptions f;
  f.fate = [](uint32_t, uint64_t) { return Fate::hangs; };
  Served s(small(), std::move(f));
  Request r = request("late");
  r.deadline = Clock::now() + milliseconds(30);
  const auto sink = s.submit(r);
  ASSERT_TRUE(sink->wait(limit(2000)));
  EXPECT_EQ(sink->last().error->code, Code::deadline_exceeded);
}

TEST(Engine, LostEpochEndsRequestsAndStartsTheNext) {
  FakeGroupOptions f = slow(1);
  f.fate = [](uint32_t epoch, uint64_t step) { return epoch == 1 && step == 12 ? Fate::fails : Fate::fine; };
  Served s(small(), std::move(f));
  std::vector<std::shared_ptr<FakeSink>> sinks;
  for (int i = 0; i < 6; ++i) sinks.push_back(s.submit(request("x" + std::to_string(i), 20, 200)));
  for (auto& sink : sinks) {
    ASSERT_TRUE(sink->wait());
    ASSERT_TRUE(sink->last().error);
    EXPECT_EQ(sink->last().error->code, Code::unavailable);
    EXPECT_THAT(sink->last().error->what(), testing::HasSubstr("rank 1"));
  }
  ASSERT_TRUE(s.engine.wait_for(EngineState::serving, limit(5000)));
  EXPECT_EQ(s.engine.epoch(), 2u);
  EXPECT_EQ(s.group.starts, 2);
  EXPECT_EQ(s.group.kills, 0);
  ASSERT_TRUE(s.engine.last_error());
  const auto sink = s.submit(request("x0", 20, 30));
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->ids(), SimulatedWorkers::alone(request("x0", 20, 30), 256, 500));
}

TEST(Engine, HungGroupIsKilled) {
  EngineOptions o = small();
  o.step_deadline_seconds = 0.2 * kSlowFactor;
  FakeGroupOptions f;
  f.fate = [](uint32_t epoch, uint64_t step) { return epoch == 1 && step == 8 ? Fate::hangs : Fate::fine; };
  Served s(o, std::move(f));
  const auto sink = s.submit(request("h", 20, 100));
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->last().error->code, Code::unavailable);
  ASSERT_TRUE(s.engine.wait_for(EngineState::serving, limit(5000)));
  EXPECT_EQ(s.group.kills, 1);
  EXPECT_EQ(s.engine.epoch(), 2u);
}

TEST(Engine, NonsenseEndsTheEpoch) {
  FakeGroupOptions f;
  f.fate = [](uint32_t epoch, uint64_t step) { return epoch == 1 && step == 5 ? Fate::lies : Fate::fine; };
  Served s(small(), std::move(f));
  const auto sink = s.submit(request("n", 20, 100));
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->last().error->code, Code::unavailable);
  EXPECT_EQ(s.engine.last_error()->code, Code::internal);
  ASSERT_TRUE(s.engine.wait_for(EngineState::serving, limit(5000)));
  EXPECT_EQ(s.group.kills, 1);
}

TEST(Engine, RetriesLoadingUntilItWorks) {
  EngineOptions o = small();
  FakeGroupOptions f;
  f.loads = [](uint32_t epoch) { return epoch >= 4; };
  FakeGroup group(o, std::move(f));
  std::vector<EngineState> states;
  std::mutex mutex;
  std::condition_variable changed;
  Engine engine(o, group);
  engine.on_state([&](EngineState s) {
    std::lock_guard lock(mutex);
    states.push_back(s);
    changed.notify_all();
  });
  EXPECT_THROW(engine.submit(request("early"), std::make_shared<FakeSink>()), Error);
  engine.start();
  using enum EngineState;
  std::unique_lock lock(mutex);
  ASSERT_TRUE(changed.wait_for(lock, limit(10000), [&] { return !states.empty() && states.back() == serving; }));
  EXPECT_EQ(engine.epoch(), 4u);
  EXPECT_EQ(engine.ranks().size(), 1u);
  EXPECT_THAT(states, testing::ElementsAre(loading, lost, loading, lost, loading, lost, loading, serving));
}

TEST(Engine, StaysLostWhenItCannotRestart) {
  FakeGroupOptions f;
  f.restartable = false;
  f.fate = [](uint32_t, uint64_t step) { return step == 3 ? Fate::fails : Fate::fine; };
  Served s(small(), std::move(f));
  ASSERT_TRUE(s.submit(request("z", 20, 100))->wait());
  ASSERT_TRUE(s.engine.wait_for(EngineState::lost, limit(1000)));
  EXPECT_EQ(s.refusal(request("y")), Code::unavailable);
  s.engine.drain();
  EXPECT_TRUE(s.engine.wait_for(EngineState::stopped, limit(1000)));
}

TEST(Engine, DrainFinishesWhatWasAccepted) {
  Served s(small(), slow(2));
  std::vector<std::shared_ptr<FakeSink>> sinks;
  for (int i = 0; i < 8; ++i) sinks.push_back(s.submit(request("d" + std::to_string(i))));
  s.engine.drain();
  EXPECT_EQ(s.refusal(request("new")), Code::unavailable);
  EXPECT_TRUE(s.engine.wait_for(EngineState::stopped, limit(20000)));
  for (auto& sink : sinks) {
    ASSERT_TRUE(sink->ended());
    EXPECT_EQ(sink->last().finish, FinishReason::length);
  }
  EXPECT_EQ(s.group.stops, 1);
}

TEST(Engine, DestructionEndsEverything) {
  std::vector<std::shared_ptr<FakeSink>> sinks;
  {
    Served s(small(), slow(5));
    for (int i = 0; i < 8; ++i) sinks.push_back(s.submit(request("e" + std::to_string(i), 20, 200)));
  }
  for (auto& sink : sinks) {
    ASSERT_TRUE(sink->ended());
    EXPECT_EQ(sink->last().error->code, Code::unavailable);
  }
}

TEST(Engine, ManyThreadsAtOnce) {  // submits, cancels, stop strings and lost epochs from everywhere; one terminal event each
  FakeGroupOptions f;
  f.step_time = std::chrono::microseconds(50);
  f.fate = [](uint32_t, uint64_t step) { return step == 400 ? Fate::fails : Fate::fine; };
  Served s(small(), std::move(f));
  std::atomic<int> accepted{0}, ended{0}, exact{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(static_cast<uint32_t>(c));
      for (int i = 0; i < 200 / TANDEM_SLOW_FACTOR; ++i) {
        const Request r = request(std::to_string(c) + "." + std::to_string(i), 1 + static_cast<int32_t>(random() % 60),
                                  1 + static_cast<int32_t>(random() % 40));
        auto sink = std::make_shared<FakeSink>();
        try {
          s.engine.submit(r, sink);
        } catch (const Error& error) {
          EXPECT_TRUE(error.code == Code::resource_exhausted || error.code == Code::unavailable) << error.what();
          std::this_thread::sleep_for(milliseconds(1));
          continue;
        }
        ++accepted;
        if (random() % 4 == 0) s.engine.cancel(r.id, Code::cancelled);
        if (random() % 4 == 0) s.engine.finish(r.id, 0);
        s.engine.load();
        if (!sink->wait()) return;
        ++ended;
        EXPECT_EQ(sink->after_end(), 0);
        const auto alone = SimulatedWorkers::alone(r, 256, 500), ids = sink->ids();
        if (sink->last().finish == FinishReason::length) {
          EXPECT_EQ(ids, alone);
          ++exact;
        } else {
          ASSERT_LE(ids.size(), alone.size());
          EXPECT_TRUE(std::equal(ids.begin(), ids.end(), alone.begin()));
        }
      }
    });
  }
  for (auto& client : clients) client.join();
  EXPECT_EQ(accepted, ended);
  EXPECT_GT(exact, 0);
  EXPECT_EQ(s.engine.load().running, 0);
  EXPECT_EQ(s.engine.load().waiting, 0);
  EXPECT_EQ(s.engine.load().kv_pages_free, s.engine.load().kv_pages_total);
}

// Reads the engine thread's processor time: submit() runs on it.
class MeasuredGroup : public FakeGroup {
 public:
  using FakeGroup::FakeGroup;
  void submit(StepBytes step) override {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    const double now = static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
    if (first_ == 0) first_ = now;
    last = now;
    FakeGroup::submit(std::move(step));
  }
  double seconds() const { return last - first_; }
  std::atomic<double> last{0};

 private:
  double first_ = 0;
};

TEST(Engine, CostOfAToken) {
  EngineOptions o = small();
  o.max_batch = 32;
  o.max_queue = 32;
  o.groups = 1;
  o.page_tokens = 64;
  o.context = 4096;
  o.kv_pages = {32 * 64};
  o.check_digests = false;
  FakeGroupOptions f;
  f.thorough = false;
  MeasuredGroup group(o, std::move(f));
  Engine engine(o, group);
  engine.start();
  ASSERT_TRUE(engine.wait_for(EngineState::serving, limit(20000)));
  std::vector<std::shared_ptr<FakeSink>> sinks;
  for (int i = 0; i < 32; ++i) {
    sinks.push_back(std::make_shared<FakeSink>());
    engine.submit(request("t" + std::to_string(i), 32, 2000 / TANDEM_SLOW_FACTOR), sinks.back());
  }
  size_t tokens = 0;
  for (auto& sink : sinks) {
    ASSERT_TRUE(sink->wait(limit(120000)));
    tokens += sink->ids().size();
  }
  const double cost = group.seconds() / static_cast<double>(tokens);
  std::printf("engine: %.2f us of processor time a token at 32 streams, %.0f bytes a step, %zu tokens\n", cost * 1e6,
              static_cast<double>(group.bytes) / group.steps, tokens);
  EXPECT_LT(cost, 5e-6 * TANDEM_SLOW_FACTOR);
  EXPECT_EQ(group.violation(), std::nullopt);
}

}  // namespace
}  // namespace tandem
