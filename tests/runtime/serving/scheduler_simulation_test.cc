// The scheduler against an adversary: late results, reordered among groups, cancels, stop strings, priorities, too few pages, lost
// epochs. The simulated workers check every step; the ids must be those of a lone run.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>

#include "runtime/serving/scheduler.h"
#include "tests/support/simulated_workers.h"

#ifndef TANDEM_SLOW_FACTOR
#define TANDEM_SLOW_FACTOR 1
#endif

namespace tandem {
namespace {

class Adversary {
 public:
  explicit Adversary(uint64_t seed) : random_(seed) {
    options_.groups = 1 + pick(4);
    options_.max_batch = 1 + pick(12);
    options_.chunk = one_of({1, 3, 8, 16, 64});
    options_.decode_chunk = one_of({1, 4, 128});
    options_.page_tokens = one_of({1, 2, 4, 7, 16});
    options_.context = 8 + pick(120);
    options_.vocab = 20 + pick(200);
    options_.prefix_cache = pick(4) > 0;
    options_.check_digests = true;
    tight_ = pick(4) == 0;
    const int32_t least = (options_.context + options_.page_tokens - 1) / options_.page_tokens;
    const int32_t kv_groups = 1 + (pick(4) == 0);
    for (int32_t g = 0; g < kv_groups; ++g) {
      const int32_t window = tight_ ? 2 + pick(20) : pick(3) == 0 ? 2 + pick(options_.context) : 0;
      options_.kv_windows.push_back(window);
      const int32_t enough =
          window && window < options_.context ? std::min(least, (window + options_.page_tokens - 2) / options_.page_tokens + 1) : least;
      options_.kv_pages.push_back(enough + (tight_ ? pick(enough) : pick(3) ? pick(least) : least * options_.max_batch));
    }
    EXPECT_EQ(Scheduler::usable_context(options_), options_.context);
    requests_left_ = 5 + pick(30);
    haste_ = one_of({12, 60, 2000});
    common_.resize(static_cast<size_t>(options_.context));
    for (int32_t& id : common_) id = pick(options_.vocab);
  }

  void run() {
    scheduler_.emplace(options_);
    begin_epoch();
    while (requests_left_ > 0 || !open_.empty()) {
      switch (pick(haste_)) {
        case 0:
        case 1:
          add();
          break;
        case 2:
          cancel();
          break;
        case 3:
          stop_string();
          break;
        case 4:
          if (pick(60) == 0) lose_epoch();
          break;
        default:
          if (pick(10) == 0) add();
          work();
          break;
      }
    }
    while (!network_.empty() || !results_.empty()) work();
    EXPECT_EQ(scheduler_->running(), 0);
    EXPECT_EQ(scheduler_->waiting(), 0);
    EXPECT_EQ(scheduler_->in_flight(), 0);
    EXPECT_EQ(scheduler_->free_slots(), options_.max_batch);
    for (int32_t g = 0; g < scheduler_->pool().groups(); ++g) EXPECT_EQ(scheduler_->pool().available(g), scheduler_->pool().total(g));
    EXPECT_EQ(terminal_, added_);
  }

  const SchedulerCounters& counters() const { return scheduler_->counters(); }
  int32_t completed() const { return completed_; }
  bool windowed() const { return windowed_; }
  int32_t epochs() const { return static_cast<int32_t>(epoch_); }

 private:
  struct Open {
    std::vector<int32_t> expected, got;
    Request request;
    int32_t logit_rows = 0;
  };

  int32_t pick(int32_t n) { return static_cast<int32_t>(random_() % static_cast<uint64_t>(n)); }
  int32_t one_of(std::initializer_list<int32_t> values) { return *(values.begin() + pick(static_cast<int32_t>(values.size()))); }

  void begin_epoch() {
    scheduler_->reset(++epoch_);
    workers_.emplace(options_);
    network_.clear();
    results_.clear();
  }

  void add() {
    if (requests_left_ == 0) return;
    --requests_left_;
    Request r;
    r.id = std::to_string(++key_);
    r.all_logits = pick(10) == 0;
    const int32_t most = options_.context - (r.all_logits ? 0 : 1);
    const int32_t length = 1 + pick(pick(2) || tight_ ? most : std::min(most, 20));
    const int32_t shared = pick(2) ? pick(length + 1) : 0;
    for (int32_t i = 0; i < length; ++i) r.prompt.push_back(i < shared ? common_[static_cast<size_t>(i)] : pick(options_.vocab));
    r.priority = pick(3) ? 0 : pick(5) - 2;
    r.cache_prefix = pick(5) > 0;
    r.cache_salt = pick(5) ? 0 : static_cast<uint64_t>(pick(2));
    if (pick(2)) r.stopping.max_tokens = 1 + pick(40);
    for (int32_t i = pick(4); i > 0; --i) r.stopping.stop_ids.push_back(pick(options_.vocab));
    if (pick(4) == 0) r.stopping.min_tokens = pick(8);
    if (r.stopping.max_tokens) r.stopping.min_tokens = std::min(r.stopping.min_tokens, r.stopping.max_tokens);
    r.stopping.ignore_eos = pick(6) == 0;
    if (pick(3) == 0) r.sampling = {.temperature = 1, .seed = random_()};
    validate(r, options_);
    Open& open = open_[key_];
    open.expected = SimulatedWorkers::alone(r, options_.context, options_.vocab);
    open.request = r;
    ++added_;
    scheduler_->add(key_, std::move(r));
  }

  std::optional<uint64_t> any_open() {
    if (open_.empty()) return std::nullopt;
    return std::next(open_.begin(), pick(static_cast<int32_t>(open_.size())))->first;
  }

  void closed(const SequenceEvent& event, uint64_t key) {
    const Open& open = open_.at(key);
    EXPECT_EQ(event.key, key);
    EXPECT_EQ(event.prompt_tokens, static_cast<int32_t>(open.request.prompt.size()));
    EXPECT_LT(event.cached_tokens, event.prompt_tokens);
    if (event.finish != FinishReason::stop_string) {
      EXPECT_EQ(event.completion_tokens, static_cast<int32_t>(open.got.size()));
    }
    open_.erase(key);
    ++terminal_;
  }

  void cancel() {
    const auto key = any_open();
    if (!key) return;
    const auto event = scheduler_->cancel(*key);
    ASSERT_TRUE(event);
    EXPECT_EQ(event->finish, FinishReason::cancelled);
    closed(*event, *key);
    EXPECT_FALSE(scheduler_->cancel(*key));
  }

  void stop_string() {
    const auto key = any_open();
    if (!key || open_[*key].got.empty()) return;
    const int32_t index = pick(static_cast<int32_t>(open_[*key].got.size()));
    const auto event = scheduler_->finish(*key, index);
    ASSERT_TRUE(event);
    EXPECT_EQ(event->completion_tokens, index + 1);
    closed(*event, *key);
  }

  void lose_epoch() {
    terminal_ += static_cast<int32_t>(open_.size());
    open_.clear();
    begin_epoch();
  }

  void work() {
    const bool issued = pick(3) == 0 && issue();
    if (!network_.empty() && pick(2)) run_a_step();
    if (!results_.empty() && pick(3) == 0) deliver();
    if (issued || !network_.empty() || !results_.empty()) return;
    // Nothing is under way: whoever is open must be able to go on.
    const bool stuck = !issue() && !open_.empty();
    EXPECT_FALSE(stuck);
    if (stuck) throw std::logic_error("stuck");
  }

  bool issue() {
    auto step = scheduler_->next();
    if (!step) return false;
    EXPECT_LE(scheduler_->in_flight(), options_.groups + 1);
    network_.push_back(decode_step(encode(*step)));
    return true;
  }

  void run_a_step() {
    const int32_t group = network_.front().group;
    std::deque<StepResult>& queue = results_[group];
    queue.push_back(workers_->apply(network_.front()));
    network_.pop_front();
    for (const int32_t w : options_.kv_windows) windowed_ |= w > 0 && w < options_.context;
  }

  void deliver() {
    const auto queue = std::next(results_.begin(), pick(static_cast<int32_t>(results_.size())));
    StepResult result = decode_result(encode(queue->second.front()));
    queue->second.pop_front();
    if (queue->second.empty()) results_.erase(queue);
    for (const SequenceEvent& event : scheduler_->commit(result)) {
      ASSERT_TRUE(open_.contains(event.key)) << "an event after the terminal one";
      Open& open = open_[event.key];
      if (event.token >= 0) {
        open.got.push_back(result.tokens[static_cast<size_t>(event.token)].id);
        ASSERT_LE(open.got.size(), open.expected.size());
        ASSERT_EQ(open.got.back(), open.expected[open.got.size() - 1]);
      }
      if (event.logits >= 0) {
        const StepLogits& logits = result.logits[static_cast<size_t>(event.logits)];
        EXPECT_EQ(logits.first, open.logit_rows);
        EXPECT_EQ(logits.values.size(), static_cast<size_t>(logits.rows) * static_cast<size_t>(options_.vocab));
        open.logit_rows = logits.first + logits.rows;
      }
      if (event.finish == FinishReason::none) continue;
      EXPECT_EQ(open.got.size(), open.expected.size());
      if (open.request.all_logits) {
        EXPECT_EQ(open.logit_rows, static_cast<int32_t>(open.request.prompt.size()));
      }
      if (event.finish == FinishReason::stop) {
        EXPECT_EQ(event.matched_id, open.got.back());
      }
      ++completed_;
      closed(event, event.key);
    }
  }

  std::mt19937_64 random_;
  EngineOptions options_;
  std::optional<Scheduler> scheduler_;
  std::optional<SimulatedWorkers> workers_;
  std::vector<int32_t> common_;
  std::map<uint64_t, Open> open_;
  std::deque<Step> network_;
  std::map<int32_t, std::deque<StepResult>> results_;  // per group
  uint64_t key_ = 0;
  uint32_t epoch_ = 0;
  int32_t requests_left_ = 0, added_ = 0, terminal_ = 0;
  int32_t haste_ = 0;  // one action in so many is an interference
  int32_t completed_ = 0;
  bool windowed_ = false, tight_ = false;  // tight: little windows, long prompts, few pages
};

TEST(SchedulerSimulation, AThousandSeeds) {
  SchedulerCounters sum;
  int32_t windowed = 0, lost = 0, completed = 0;
  for (uint64_t seed = 1; seed <= 1000 / TANDEM_SLOW_FACTOR; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Adversary adversary(seed);
    try {
      adversary.run();
    } catch (const std::exception& error) {
      FAIL() << error.what();
    }
    if (HasFailure()) return;
    const SchedulerCounters& c = adversary.counters();
    sum.steps += c.steps;
    sum.decode_tokens += c.decode_tokens;
    sum.preemptions += c.preemptions;
    sum.cached_tokens += c.cached_tokens;
    sum.dropped_ids += c.dropped_ids;
    windowed += adversary.windowed();
    completed += adversary.completed();
    lost += adversary.epochs() - 1;
  }
  std::printf(
      "%llu steps, %llu decoded, %llu preemptions, %llu cached tokens, %llu dropped ids, %d completed, %d with windows, %d lost epochs\n",
      (unsigned long long)sum.steps, (unsigned long long)sum.decode_tokens, (unsigned long long)sum.preemptions,
      (unsigned long long)sum.cached_tokens, (unsigned long long)sum.dropped_ids, completed, windowed, lost);
  EXPECT_GT(sum.preemptions, 100u / TANDEM_SLOW_FACTOR);
  EXPECT_GT(sum.cached_tokens, 1000u / TANDEM_SLOW_FACTOR);
  EXPECT_GT(sum.dropped_ids, 100u / TANDEM_SLOW_FACTOR);
  EXPECT_GT(completed, 5000 / TANDEM_SLOW_FACTOR);
  EXPECT_GT(windowed, 0);
  EXPECT_GT(lost, 0);
}

}  // namespace
}  // namespace tandem
