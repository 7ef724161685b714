#include "runtime/serving/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "tests/support/simulated_workers.h"

namespace tandem {
namespace {

using testing::ElementsAre;

EngineOptions base() {
  EngineOptions o;
  o.max_batch = 8;
  o.chunk = 512;
  o.page_tokens = 16;
  o.context = 1024;
  o.groups = 1;
  o.kv_pages = {512};
  o.vocab = 1000;
  o.check_digests = true;
  return o;
}

Request prompt_of(int32_t tokens, int32_t max_tokens = 0, int32_t first = 1) {
  Request r;
  for (int32_t i = 0; i < tokens; ++i) r.prompt.push_back((first + i * 7) % 1000);
  r.stopping.max_tokens = max_tokens;
  return r;
}

// A scheduler with simulated workers that answer when told to.
struct Rig {
  explicit Rig(const EngineOptions& o) : options(o), scheduler(o), workers(o) { scheduler.reset(1); }
  void add(uint64_t key, Request r) {
    expected[key] = SimulatedWorkers::alone(r, options.context, options.vocab);
    scheduler.add(key, std::move(r));
  }
  std::vector<Step> issue() {  // all that it gives now
    std::vector<Step> steps;
    while (auto step = scheduler.next()) {
      under_way.push_back(workers.apply(*step));
      for (const uint64_t key : scheduler.admitted()) admitted.push_back(key);
      steps.push_back(std::move(*step));
    }
    return steps;
  }
  std::vector<SequenceEvent> commit() {  // the oldest result
    StepResult result = std::move(under_way.front());
    under_way.pop_front();
    std::vector<SequenceEvent> events;
    for (const SequenceEvent& e : scheduler.commit(result)) {
      if (e.token >= 0) got[e.key].push_back(result.tokens[static_cast<size_t>(e.token)].id);
      if (e.finish != FinishReason::none) ended[e.key] = e;
      events.push_back(e);
    }
    return events;
  }
  void run() {
    while (!issue().empty() || !under_way.empty()) commit();
    for (const auto& [key, event] : ended) {
      if (event.finish != FinishReason::cancelled) {
        EXPECT_EQ(got[key], expected[key]) << key;
      }
    }
    EXPECT_EQ(scheduler.running() + scheduler.waiting(), 0);
  }
  EngineOptions options;
  Scheduler scheduler;
  SimulatedWorkers workers;
  std::deque<StepResult> under_way;
  std::vector<uint64_t> admitted;
  std::map<uint64_t, std::vector<int32_t>> expected, got;
  std::map<uint64_t, SequenceEvent> ended;
};

int32_t tokens_of(const Step& step) {
  int32_t tokens = 0;
  for (const StepRow& row : step.rows) tokens += row.tokens;
  return tokens;
}

TEST(Scheduler, OneGroupRunsOneStepAhead) {
  Rig rig(base());
  rig.add(1, prompt_of(10, 20));
  const auto first = rig.issue();
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(first[0].ids_from, 0u);
  EXPECT_EQ(first[1].ids_from, 1u);
  EXPECT_EQ(first[1].rows[0].tokens, 1);
  for (int i = 0; i < 10; ++i) {
    rig.commit();
    const auto more = rig.issue();
    ASSERT_EQ(more.size(), 1u);
    EXPECT_EQ(more[0].ids_from, more[0].number - 1);
    EXPECT_EQ(rig.scheduler.in_flight(), 2);  // the worker has its next step
  }
  rig.run();
}

TEST(Scheduler, GroupsKeepEveryStageBusy) {
  EngineOptions o = base();
  o.groups = 4;
  Rig rig(o);
  for (uint64_t key = 1; key <= 4; ++key) rig.add(key, prompt_of(5, 50));
  EXPECT_EQ(rig.issue().size(), 5u);
  for (int i = 0; i < 30; ++i) {
    rig.commit();
    const auto steps = rig.issue();
    ASSERT_EQ(steps.size(), 1u);
    EXPECT_EQ(steps[0].group, static_cast<int32_t>((steps[0].number - 1) % 4));  // in turn
    EXPECT_EQ(steps[0].ids_from, steps[0].number - 4);
  }
  rig.run();
}

TEST(Scheduler, ALoneLongPromptFillsThePipeline) {  // chunks need no ids, so one group's chunks may follow each other through the stages
  EngineOptions o = base();
  o.groups = 4;
  o.chunk = 100;
  Rig rig(o);
  rig.add(1, prompt_of(1000, 2));
  const auto steps = rig.issue();
  ASSERT_EQ(steps.size(), 5u);
  for (const Step& s : steps) EXPECT_EQ(tokens_of(s), 100);
  rig.run();
}

TEST(Scheduler, OneSequenceRunsOneStepAheadInAnyPipeline) {
  EngineOptions o = base();
  o.groups = 4;
  Rig rig(o);
  rig.add(1, prompt_of(10, 20));
  EXPECT_EQ(rig.issue().size(), 2u);
  rig.commit();
  EXPECT_EQ(rig.issue().size(), 1u);
  rig.run();
}

TEST(Scheduler, AnUrgentPromptGoesBeforeALongOne) {
  EngineOptions o = base();
  o.chunk = 50;
  Rig rig(o);
  rig.add(1, prompt_of(1000, 1));
  rig.issue();
  rig.add(2, prompt_of(40, 1, 300));
  Request urgent = prompt_of(40, 1, 600);
  urgent.priority = 1;
  rig.add(3, std::move(urgent));
  rig.commit();
  const auto steps = rig.issue();
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_THAT(rig.admitted, ElementsAre(1, 3));
  EXPECT_EQ(steps[0].rows[0].tokens, 40);
  EXPECT_EQ(steps[0].rows[1].tokens, 10);
  rig.run();
}

TEST(Scheduler, NewSequencesJoinTheSmallestGroup) {
  EngineOptions o = base();
  o.groups = 3;
  o.max_batch = 6;
  Rig rig(o);
  for (uint64_t key = 1; key <= 6; ++key) rig.add(key, prompt_of(5, 100));
  for (int i = 0; i < 20; ++i) {
    rig.issue();
    rig.commit();
  }
  std::map<int32_t, size_t> rows;
  for (int i = 0; i < 6; ++i) {
    for (const Step& s : rig.issue()) rows[s.group] = s.rows.size();
    rig.commit();
  }
  EXPECT_THAT(rows, ElementsAre(std::pair(0, 2u), std::pair(1, 2u), std::pair(2, 2u)));
  rig.run();
}

TEST(Scheduler, ChunksAreSmallWhileOthersDecode) {
  EngineOptions o = base();
  o.decode_chunk = 128;
  Rig rig(o);
  rig.add(1, prompt_of(1000, 3));
  auto steps = rig.issue();
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(tokens_of(steps[0]), 512);
  EXPECT_EQ(tokens_of(steps[1]), 488);
  rig.commit();
  rig.commit();
  rig.add(2, prompt_of(600, 3, 500));
  rig.add(3, prompt_of(50, 3, 700));
  steps = rig.issue();
  EXPECT_EQ(steps[0].rows[0].slot, 0);  // decode first
  EXPECT_EQ(tokens_of(steps[0]), 129);
  rig.run();
}

TEST(Scheduler, PromptsShareAChunkByPriorityAndArrival) {
  EngineOptions o = base();
  o.chunk = 100;
  Rig rig(o);
  rig.add(1, prompt_of(60, 1, 1));
  rig.add(2, prompt_of(60, 1, 2));
  Request urgent = prompt_of(60, 1, 3);
  urgent.priority = 1;
  rig.add(3, std::move(urgent));
  const auto steps = rig.issue();
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_THAT(rig.admitted, ElementsAre(3, 1, 2));
  EXPECT_EQ(steps[0].rows[0].tokens, 60);
  EXPECT_EQ(steps[0].rows[1].tokens, 40);
  EXPECT_EQ(steps[1].rows[0].tokens, 20);
  EXPECT_EQ(steps[1].rows[1].tokens, 60);
  rig.run();
}

TEST(Scheduler, NoRowIsRunPastMaxTokens) {
  Rig rig(base());
  rig.add(1, prompt_of(10, 3));
  size_t rows = 0;
  while (true) {
    for (const Step& s : rig.issue()) rows += s.rows.size();
    if (rig.under_way.empty()) break;
    rig.commit();
  }
  EXPECT_EQ(rows, 3u);
  EXPECT_EQ(rig.got[1], rig.expected[1]);
  EXPECT_EQ(rig.ended[1].finish, FinishReason::length);
  EXPECT_EQ(rig.scheduler.counters().dropped_ids, 0u);
}

TEST(Scheduler, ContextEndsASequence) {
  EngineOptions o = base();
  o.context = 40;
  Rig rig(o);
  rig.add(1, prompt_of(30));
  rig.add(2, prompt_of(39));
  rig.run();
  EXPECT_EQ(rig.got[1].size(), 10u);
  EXPECT_EQ(rig.got[2].size(), 1u);
  EXPECT_EQ(rig.ended[1].finish, FinishReason::length);
}

TEST(Scheduler, StopDropsWhatRanPastIt) {
  Rig rig(base());
  Request r = prompt_of(10, 50);
  const auto free_run = SimulatedWorkers::alone(r, 1024, 1000);
  r.stopping.stop_ids = {free_run[4]};
  rig.add(1, r);
  rig.run();
  EXPECT_EQ(rig.ended[1].finish, FinishReason::stop);
  EXPECT_EQ(rig.ended[1].matched_id, free_run[4]);
  EXPECT_EQ(rig.got[1].size(), 5u);  // the stop id included
  EXPECT_EQ(rig.scheduler.counters().dropped_ids, 1u);
}

TEST(Scheduler, MinTokensAndIgnoreEos) {
  Rig rig(base());
  Request r = prompt_of(10, 50);
  r.stopping.stop_ids = {SimulatedWorkers::alone(r, 1024, 1000)[2]};
  Request ignoring = r;
  ignoring.stopping.ignore_eos = true;
  r.stopping.min_tokens = 6;
  rig.add(1, r);
  rig.add(2, ignoring);
  rig.run();
  EXPECT_GE(rig.got[1].size(), 6u);
  EXPECT_EQ(rig.got[2].size(), 50u);
}

TEST(Scheduler, ReleasedSlotIsTakenByTheNextStep) {
  EngineOptions o = base();
  o.max_batch = 1;
  Rig rig(o);
  rig.add(1, prompt_of(10, 50));
  rig.add(2, prompt_of(10, 50, 300));
  rig.issue();
  ASSERT_TRUE(rig.scheduler.cancel(1));
  rig.commit();  // with two steps of the old sequence still in flight
  const auto steps = rig.issue();
  ASSERT_GE(steps.size(), 1u);
  EXPECT_THAT(steps[0].releases, ElementsAre(0));
  ASSERT_EQ(steps[0].admissions.size(), 1u);
  EXPECT_EQ(steps[0].admissions[0].slot, 0);
  rig.run();
  EXPECT_EQ(rig.got[2], rig.expected[2]);
  EXPECT_TRUE(rig.got[1].empty());
}

TEST(Scheduler, PreemptsTheLowestAndLatestAndContinuesItAlike) {
  EngineOptions o = base();
  o.page_tokens = 4;
  o.context = 64;
  o.kv_pages = {24};
  o.prefix_cache = false;
  Rig rig(o);
  for (uint64_t key = 1; key <= 4; ++key) {
    Request r = prompt_of(12, 30, static_cast<int32_t>(key) * 100);
    r.priority = key == 2 ? -1 : 0;
    rig.add(key, std::move(r));
  }
  std::vector<uint64_t> order;
  while (rig.ended.size() < 4) {
    rig.issue();
    for (const SequenceEvent& e : rig.commit()) {
      if (e.finish != FinishReason::none) order.push_back(e.key);
    }
  }
  EXPECT_GT(rig.scheduler.counters().preemptions, 0u);
  EXPECT_EQ(order[0], 1u);
  EXPECT_EQ(order[3], 2u);  // the lowest priority paid, then the latest
  for (uint64_t key = 1; key <= 4; ++key) EXPECT_EQ(rig.got[key], rig.expected[key]);
}

TEST(Scheduler, NobodyIsPreemptedForPagesThatAreAboutToBeFree) {
  EngineOptions o = base();
  o.page_tokens = 4;
  o.context = 32;
  o.kv_pages = {8};
  o.prefix_cache = false;
  Rig rig(o);
  rig.add(1, prompt_of(12, 20));
  rig.add(2, prompt_of(12, 1, 30));  // these two end with the first step, and hold what the first needs for its second
  rig.add(3, prompt_of(7, 1, 50));
  EXPECT_EQ(rig.issue().size(), 1u);
  EXPECT_EQ(rig.scheduler.running(), 3);
  rig.commit();
  EXPECT_EQ(rig.issue().size(), 2u);
  rig.run();
  EXPECT_EQ(rig.scheduler.counters().preemptions, 0u);
}

TEST(Scheduler, AStopIdBeforeMinTokensIsNoStop) {  // whatever the workers drew
  Rig rig(base());
  Request r = prompt_of(10, 20);
  r.stopping.stop_ids = {7};
  r.stopping.min_tokens = 2;
  rig.add(1, r);
  rig.issue();
  StepResult result = rig.under_way.front();
  result.tokens[0].id = 7;
  const auto events = rig.scheduler.commit(result);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].finish, FinishReason::none);
}

TEST(Scheduler, RecomputeUsesTheCache) {
  EngineOptions o = base();
  o.page_tokens = 4;
  o.context = 64;
  o.kv_pages = {20};
  Rig rig(o);
  rig.add(1, prompt_of(20, 40, 1));
  rig.add(2, prompt_of(20, 40, 500));
  rig.run();
  EXPECT_GT(rig.scheduler.counters().preemptions, 0u);
  EXPECT_GT(rig.scheduler.counters().cached_tokens, 0u);
  EXPECT_EQ(rig.ended[2].cached_tokens, 0);  // usage speaks of the prompt's reuse, not of recomputing
}

TEST(Scheduler, PrefixIsReusedAcrossRequests) {
  Rig rig(base());
  rig.add(1, prompt_of(100, 30));
  rig.run();
  Request next_turn = prompt_of(100, 5);
  next_turn.prompt.insert(next_turn.prompt.end(), rig.got[1].begin(), rig.got[1].end());
  rig.add(2, std::move(next_turn));
  rig.run();
  EXPECT_EQ(rig.ended[2].cached_tokens, 128);  // generated tokens too: 129 have keys, 8 full pages
  rig.add(3, prompt_of(96, 5));
  rig.run();
  EXPECT_EQ(rig.ended[3].cached_tokens, 80);  // one token at least is computed
  Request salted = prompt_of(100, 5);
  salted.cache_salt = 9;
  rig.add(4, std::move(salted));
  Request shy = prompt_of(100, 5);
  shy.cache_prefix = false;
  rig.add(5, std::move(shy));
  rig.run();
  EXPECT_EQ(rig.ended[4].cached_tokens, 0);
  EXPECT_EQ(rig.ended[5].cached_tokens, 0);
}

TEST(Scheduler, AllLogitsComputesTheWholePrompt) {
  Rig rig(base());
  rig.add(1, prompt_of(100, 1));
  rig.run();
  Request r = prompt_of(100);
  r.all_logits = true;
  rig.add(2, std::move(r));
  rig.run();
  EXPECT_EQ(rig.ended[2].cached_tokens, 0);
  EXPECT_EQ(rig.ended[2].finish, FinishReason::length);
  EXPECT_EQ(rig.ended[2].completion_tokens, 0);
}

TEST(Scheduler, ABigRequestIsNotOvertakenForEver) {
  EngineOptions o = base();
  o.page_tokens = 4;
  o.context = 80;
  o.kv_pages = {20};
  o.prefix_cache = false;
  Rig rig(o);
  Request big = prompt_of(70, 5);
  big.priority = -1;
  rig.add(1, prompt_of(8, 5, 5));
  rig.add(2, std::move(big));
  uint64_t key = 3;
  for (int i = 0; i < 3000 && !rig.ended.contains(2); ++i) {
    while (rig.scheduler.waiting() < 4)
      rig.add(key, prompt_of(8, 5, static_cast<int32_t>(key % 900))), ++key;  // a flood of higher priority
    rig.issue();
    rig.commit();
  }
  EXPECT_TRUE(rig.ended.contains(2));
}

TEST(Scheduler, APromptIsNotPassedOverForEver) {
  EngineOptions o = base();
  o.chunk = 16;
  Rig rig(o);
  Request low = prompt_of(64, 1);
  low.priority = -1;
  rig.add(1, std::move(low));
  rig.issue();
  uint64_t key = 2;
  for (int i = 0; i < 400 && !rig.ended.contains(1); ++i) {
    while (rig.scheduler.waiting() + rig.scheduler.running() < 6)
      rig.add(key, prompt_of(64, 1, static_cast<int32_t>(key * 13 % 900))), ++key;
    rig.commit();
    rig.issue();
  }
  EXPECT_TRUE(rig.ended.contains(1));
}

TEST(Scheduler, WindowsGivePagesBack) {
  EngineOptions o = base();
  o.page_tokens = 4;
  o.chunk = 8;
  o.context = 400;
  o.kv_pages = {100, 9};
  o.kv_windows = {0, 16};
  Rig rig(o);
  rig.add(1, prompt_of(100, 250));
  rig.run();
  EXPECT_EQ(rig.got[1].size(), 250u);
  EXPECT_EQ(rig.scheduler.pool().available(1), 9);
  EXPECT_EQ(rig.scheduler.counters().preemptions, 0u);
}

TEST(Scheduler, ContextIsWhatThePagesAllow) {
  EngineOptions o = base();
  o.kv_pages = {10};
  EXPECT_EQ(Scheduler::usable_context(o), 160);
  o.kv_pages = {64, 5};
  o.kv_windows = {0, 64};
  EXPECT_EQ(Scheduler::usable_context(o), 1024);  // 64 tokens touch at most 5 pages of 16
  o.kv_pages = {64, 4};
  EXPECT_EQ(Scheduler::usable_context(o), 64);
  o.kv_windows = {0, 4096};  // wider than the context: none
  EXPECT_EQ(Scheduler::usable_context(o), 64);
}

TEST(Scheduler, BadOptionsAreNamed) {
  for (const auto& [field, change] : std::vector<std::pair<const char*, void (*)(EngineOptions&)>>{
           {"max_batch", [](EngineOptions& o) { o.max_batch = 0; }},
           {"chunk", [](EngineOptions& o) { o.chunk = -1; }},
           {"page", [](EngineOptions& o) { o.page_tokens = 0; }},
           {"groups", [](EngineOptions& o) { o.groups = 0; }},
           {"kv_pages", [](EngineOptions& o) { o.kv_pages.clear(); }},
           {"kv_pages", [](EngineOptions& o) { o.kv_pages = {0}; }},
       }) {
    EngineOptions o = base();
    change(o);
    try {
      Scheduler scheduler(o);
      ADD_FAILURE() << field;
    } catch (const Error& error) {
      EXPECT_EQ(error.where, field);
    }
  }
}

TEST(Scheduler, WrongResultsAreBugs) {
  const std::vector<void (*)(StepResult&)> lies = {
      [](StepResult& r) { r.number = 99; },          [](StepResult& r) { r.epoch = 9; },
      [](StepResult& r) { r.number = 2; },  // the second before the first
      [](StepResult& r) { r.tokens.clear(); },       [](StepResult& r) { r.tokens.push_back(r.tokens[0]); },
      [](StepResult& r) { r.tokens[0].slot = 3; },   [](StepResult& r) { r.tokens[0].serial = 3; },
      [](StepResult& r) { r.tokens[0].id = -1; },    [](StepResult& r) { r.tokens[0].id = 1000; },
      [](StepResult& r) { r.logits.push_back({}); },
  };
  for (size_t i = 0; i < lies.size(); ++i) {
    Rig rig(base());
    rig.add(1, prompt_of(10, 20));
    rig.issue();
    StepResult result = rig.under_way.front();
    lies[i](result);
    EXPECT_THROW(rig.scheduler.commit(result), Error) << i;
  }
}

TEST(Scheduler, StepsAreSmallInSteadyDecode) {
  EngineOptions o = base();
  o.max_batch = 64;
  o.kv_pages = {4096};
  Rig rig(o);
  for (uint64_t key = 1; key <= 64; ++key) rig.add(key, prompt_of(10, 200, static_cast<int32_t>(key)));
  for (int i = 0; i < 20; ++i) {
    rig.issue();
    rig.commit();
  }
  size_t most = 0;
  for (int i = 0; i < 100; ++i) {
    for (const Step& s : rig.issue()) {
      ASSERT_EQ(s.rows.size(), 64u);
      most = std::max(most, encode(s).size());
    }
    rig.commit();
  }
  EXPECT_LT(most, 4096u);
}

}  // namespace
}  // namespace tandem
