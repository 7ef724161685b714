#include "runtime/serving/engine.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <variant>

#include "runtime/serving/scheduler.h"
#include "runtime/serving/step_watch.h"

namespace tandem {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr double kLongestRestartWait = 30;
// A step from its issue to its result, a request from submit() to its end.
constexpr const char *kStepCategory = "step", *kRequestCategory = "request";
constexpr TraceName kStepBegin{"step", kStepCategory, TracePhase::async_begin, nullptr, {"step", "rows", "sequences", "epoch"}};
constexpr TraceName kStepEnd{"step", kStepCategory, TracePhase::async_end, nullptr, {"tokens"}};
constexpr TraceName kRequestBegin{"request", kRequestCategory, TracePhase::async_begin, nullptr, {"prompt_tokens"}, "request_id"};
constexpr TraceName kRequestAdmitted{"admitted", kRequestCategory, TracePhase::async_point};
constexpr TraceName kRequestFirstToken{"first token", kRequestCategory, TracePhase::async_point};
constexpr TraceName kRequestEnd{"request", kRequestCategory, TracePhase::async_end, nullptr, {"completion_tokens", "cached_tokens"}, "finish"};
constexpr TraceName kEpochLost{"epoch lost", "epoch", TracePhase::instant, "epoch"};

constexpr int kIndexBits = 20;  // of a key: place in the table of open requests; the rest tells its successive owners apart

struct Submit {
  uint64_t key;
  Request request;
  std::shared_ptr<RequestSink> sink;
  Clock::time_point at;
};
struct Cancel {
  uint64_t key;
  Code why;
};
struct Finish {
  uint64_t key;
  int32_t index;
};
struct Begin {};
struct Drain {};
struct Quit {};
struct Listen {
  std::function<void(EngineState)> listener;
};
struct Ready {
  uint32_t epoch;
  std::vector<RankInfo> ranks;
};
struct Lost {
  uint32_t epoch;
  Error why;
};
using Message = std::variant<Submit, Cancel, Finish, Begin, Drain, Quit, Listen, Ready, Lost, StepResult>;

// Outlives the engine if a late callback holds it. Never holds more than two messages an open request (submit, cancel or finish), one
// result a step in flight, and a few about the group.
struct Inbox {
  std::mutex mutex;
  std::condition_variable arrived;
  std::vector<Message> messages;

  void push(Message message) {
    std::lock_guard lock(mutex);
    messages.push_back(std::move(message));
    if (messages.size() == 1) arrived.notify_one();
  }
};

}  // namespace

struct Engine::Core {
  Core(EngineOptions o, WorkerGroup& g, TraceTrack* t)
      : options(std::move(o)), group(g), trace(t), inbox(std::make_shared<Inbox>()), scheduler(options), watch(options.step_deadline_seconds) {
    options.context = Scheduler::usable_context(options);
    capacity = static_cast<size_t>(options.max_batch) + static_cast<size_t>(std::max(0, options.max_queue));
    if (capacity >= size_t{1} << kIndexBits) bad_input("max_queue", "is too large (max_batch and max_queue together below 2^20)");
    open.resize(capacity);
    for (size_t index = capacity; index-- > 0;) places.push_back(static_cast<uint32_t>(index));
    backoff = options.restart_seconds;
    publish();
    thread = std::thread([this] { run(); });
  }

  // ---- shared, under `mutex`
  EngineOptions options;  // constant after construction
  WorkerGroup& group;     // engine thread only
  TraceTrack* const trace;  // likewise
  std::shared_ptr<Inbox> inbox;
  mutable std::mutex mutex;
  mutable std::condition_variable state_changed;
  EngineState state = EngineState::loading;
  uint32_t epoch = 0;
  bool drain_asked = false;
  std::optional<Error> last_error;
  std::vector<RankInfo> ranks;
  struct Known {
    uint64_t key;
    bool ending = false;  // asked to end already: so the inbox is bounded
  };
  std::unordered_map<std::string, Known> known;  // open requests, by id
  std::vector<uint32_t> places;                  // free ones in `open`
  uint64_t owners = 0;
  size_t capacity = 0;
  // ---- readable any time
  std::atomic<int32_t> running{0}, pages_total{0}, pages_free{0};
  std::atomic<double> seconds_per_completion{0};
  std::atomic<uint64_t> refused{0};
  Metrics metrics;

  // ---- the engine thread's own
  struct Open {
    uint64_t key = 0;  // 0: not in use
    std::string id;
    std::shared_ptr<RequestSink> sink;
    std::optional<Clock::time_point> deadline, admitted, first_token;
    Clock::time_point submitted, last_token;
  };
  struct Delivery {
    RequestSink* sink;
    std::shared_ptr<RequestSink> keep;  // of a terminal event
    RequestEvent event;
  };
  std::function<void(EngineState)> listener;
  Scheduler scheduler;
  StepWatch watch;
  std::vector<Open> open;
  size_t open_count = 0;
  std::set<std::pair<Clock::time_point, uint64_t>> deadlines;
  std::vector<Delivery> outbox;
  std::vector<Message> batch;
  std::optional<Clock::time_point> restart_at;
  std::optional<Clock::time_point> last_completion;
  Clock::time_point busy_since;
  double backoff = 0;
  bool started = false, lost = true, ready = false;  // lost: no epoch is up or coming up
  bool kill_group = false, quitting = false;
  std::thread thread;

  Open* find(uint64_t key) {
    Open& o = open[key & ((uint64_t{1} << kIndexBits) - 1)];
    return o.key == key ? &o : nullptr;
  }

  void ask_to_end(const std::string& id, auto&& message) {  // any thread; the first to ask decides how it ends
    std::lock_guard lock(mutex);
    const auto found = known.find(id);
    if (found == known.end() || found->second.ending) return;
    found->second.ending = true;
    inbox->push(message(found->second.key));
  }

  void note(const TraceName& name, uint64_t id, Clock::time_point at, const std::array<int32_t, kTraceArguments>& arguments = {},
            std::string_view text = {}) {
    if (!trace) return;
    TraceEvent event{&name, trace_time(at), 0, id, arguments};
    event.set_text(text);
    trace->add(event);
  }
  uint64_t step_id(uint64_t number) const { return uint64_t{epoch} << 40 | number; }

  void set_state(EngineState next) {
    {
      std::lock_guard lock(mutex);
      if (state == next) return;
      state = next;
    }
    state_changed.notify_all();
    if (listener) listener(next);
  }

  void publish() {
    int32_t total = 0, available = 0;
    for (int32_t g = 0; g < scheduler.pool().groups(); ++g) {
      total += scheduler.pool().total(g);
      available += scheduler.pool().available(g);
    }
    running.store(scheduler.running(), std::memory_order_relaxed);
    pages_total.store(total, std::memory_order_relaxed);
    pages_free.store(available, std::memory_order_relaxed);
    const SchedulerCounters& c = scheduler.counters();
    metrics.refused.set(refused.load(std::memory_order_relaxed));
    metrics.steps.set(c.steps);
    metrics.step_rows.set(c.rows);
    metrics.prefill_tokens.set(c.prefill_tokens);
    metrics.preemptions.set(c.preemptions);
    metrics.cached_tokens.set(c.cached_tokens);
    metrics.dropped_tokens.set(c.dropped_ids);
    metrics.cache_evictions.set(scheduler.pool().evictions());
  }

  // ---- requests

  // The terminal event of a request: its place and id are free before the sink hears of it.
  void close(Open& o, RequestEvent event, Clock::time_point now) {
    const auto since = [&](const std::optional<Clock::time_point>& from, Clock::time_point to) {
      return from ? Seconds(to - *from).count() : 0;
    };
    event.timings.queue_seconds = Seconds(o.admitted.value_or(now) - o.submitted).count();
    event.timings.prefill_seconds = since(o.admitted, o.first_token.value_or(now));
    event.timings.decode_seconds = since(o.first_token, o.last_token);
    event.timings.ttft_seconds = o.first_token ? Seconds(*o.first_token - o.submitted).count() : 0;
    metrics.request.observe(Seconds(now - o.submitted).count());
    note(kRequestEnd, o.key, now, {event.completion_tokens, event.cached_tokens}, event.error ? name(event.error->code) : name(event.finish));
    if (event.error) {
      metrics.failed.add();
    } else {
      switch (event.finish) {
        case FinishReason::stop:
          metrics.finished_stop.add();
          break;
        case FinishReason::length:
          metrics.finished_length.add();
          break;
        case FinishReason::stop_string:
          metrics.finished_stop_string.add();
          break;
        default:
          metrics.cancelled.add();
          break;
      }
    }
    const double interval = Seconds(now - std::max(last_completion.value_or(busy_since), busy_since)).count();
    const double before = seconds_per_completion.load(std::memory_order_relaxed);
    seconds_per_completion.store(before == 0 ? interval : 0.8 * before + 0.2 * interval, std::memory_order_relaxed);
    last_completion = now;

    if (o.deadline) deadlines.erase({*o.deadline, o.key});
    RequestSink* sink = o.sink.get();
    outbox.push_back({sink, std::move(o.sink), std::move(event)});
    const uint32_t place = static_cast<uint32_t>(o.key & ((uint64_t{1} << kIndexBits) - 1));
    {
      std::lock_guard lock(mutex);
      known.erase(o.id);
      places.push_back(place);
    }
    --open_count;
    o = Open{};
  }

  static RequestEvent terminal(const SequenceEvent& ended) {
    RequestEvent event;
    event.finish = ended.finish;
    event.matched_id = ended.matched_id;
    event.prompt_tokens = ended.prompt_tokens;
    event.completion_tokens = ended.completion_tokens;
    event.cached_tokens = ended.cached_tokens;
    return event;
  }

  void end_early(uint64_t key, const Error& why, Clock::time_point now) {
    Open* o = find(key);
    if (!o) return;
    const auto ended = scheduler.cancel(key);
    RequestEvent event = ended ? terminal(*ended) : RequestEvent{};
    if (why.code == Code::cancelled) {
      event.finish = FinishReason::cancelled;
    } else {
      event.finish = FinishReason::none;
      event.error = why;
    }
    close(*o, std::move(event), now);
  }

  void handle(Submit& m, Clock::time_point now) {
    Open& o = open[m.key & ((uint64_t{1} << kIndexBits) - 1)];
    if (open_count++ == 0) busy_since = now;
    o.key = m.key;
    o.id = m.request.id;
    o.sink = std::move(m.sink);
    o.deadline = m.request.deadline;
    o.submitted = m.at;
    if (o.deadline) deadlines.emplace(*o.deadline, o.key);
    metrics.requests.add();
    metrics.prompt_tokens.add(m.request.prompt.size());
    note(kRequestBegin, o.key, m.at, {static_cast<int32_t>(m.request.prompt.size())}, o.id);
    if (!ready) {  // lost between submit() and here
      RequestEvent event;
      event.error = Error(Code::unavailable, "", "the worker group was lost");
      event.prompt_tokens = static_cast<int32_t>(m.request.prompt.size());
      close(o, std::move(event), now);
      return;
    }
    scheduler.add(m.key, std::move(m.request));
  }

  void handle(Cancel& m, Clock::time_point now) {
    end_early(m.key, Error(m.why, "", m.why == Code::aborted ? "aborted by the operator" : "ended early"), now);
  }

  void handle(Finish& m, Clock::time_point now) {
    Open* o = find(m.key);
    if (!o) return;
    if (const auto ended = scheduler.finish(m.key, m.index)) close(*o, terminal(*ended), now);
  }

  void handle(StepResult& result, Clock::time_point now) {
    if (lost || result.epoch != epoch) return;
    const std::span<const SequenceEvent> events = scheduler.commit(result);
    note(kStepEnd, step_id(result.number), now, {static_cast<int32_t>(result.tokens.size())});
    metrics.step.observe(watch.committed(result.number, now));
    backoff = options.restart_seconds;
    for (const SequenceEvent& e : events) {
      Open* o = find(e.key);
      if (!o) continue;
      RequestEvent event = e.finish == FinishReason::none ? RequestEvent{} : terminal(e);
      if (e.token >= 0) {
        if (!o->first_token) {
          o->first_token = now;
          note(kRequestFirstToken, o->key, now);
          metrics.ttft.observe(Seconds(now - o->submitted).count());
        } else {
          metrics.itl.observe(Seconds(now - o->last_token).count());
        }
        o->last_token = now;
        metrics.generated_tokens.add();
        event.tokens.push_back(std::move(result.tokens[static_cast<size_t>(e.token)]));
      }
      if (e.logits >= 0) event.logits.push_back(std::move(result.logits[static_cast<size_t>(e.logits)]));
      if (e.finish == FinishReason::none) {
        outbox.push_back({o->sink.get(), nullptr, std::move(event)});
      } else {
        close(*o, std::move(event), now);
      }
    }
  }

  void expire(Clock::time_point now) {
    while (!deadlines.empty() && deadlines.begin()->first <= now) {
      end_early(deadlines.begin()->second, Error(Code::deadline_exceeded, "deadline", "passed before the answer was complete"), now);
    }
  }

  void deliver() {
    for (Delivery& delivery : outbox) {
      try {
        delivery.sink->push(std::move(delivery.event));
      } catch (...) {  // a sink that cannot take an event has lost its reader; the request goes on until it is cancelled
      }
    }
    outbox.clear();
  }

  // ---- epochs

  void begin_epoch() {
    restart_at.reset();
    started = true;
    lost = ready = false;
    uint32_t next;
    {
      std::lock_guard lock(mutex);
      next = ++epoch;
      ranks.clear();
    }
    scheduler.reset(next);
    watch.reset();
    metrics.epochs.add();
    set_state(EngineState::loading);
    GroupEvents events;
    events.ready = [box = inbox](uint32_t e, std::vector<RankInfo> r) { box->push(Ready{e, std::move(r)}); };
    events.result = [box = inbox](StepResult result) { box->push(std::move(result)); };
    events.lost = [box = inbox](uint32_t e, Error why) { box->push(Lost{e, std::move(why)}); };
    try {
      group.start(next, std::move(events));
    } catch (const Error& error) {
      lose(error, true, Clock::now());
    } catch (const std::exception& error) {
      lose(Error(Code::internal, "worker group", error.what()), true, Clock::now());
    }
  }

  // The epoch is over. `by_us`: the group does not know yet.
  void lose(const Error& why, bool by_us, Clock::time_point now) {
    if (lost) return;
    lost = true;
    ready = false;
    kill_group = by_us;
    metrics.epochs_lost.add();
    note(kEpochLost, epoch, now);
    {
      std::lock_guard lock(mutex);
      last_error = why;
    }
    const bool draining = current_state() == EngineState::draining;
    if (!draining) set_state(EngineState::lost);  // refuses from here on
    scheduler_lost(why, now);
    watch.reset();
    if (draining || !group.restartable()) return;
    restart_at = now + std::chrono::duration_cast<Clock::duration>(Seconds(backoff));
    backoff = std::min(kLongestRestartWait, std::max(backoff, 0.01) * 2);
  }

  void scheduler_lost(const Error& why, Clock::time_point now) {
    const Error error(Code::unavailable, why.where, why.message);
    for (Open& o : open) {
      if (o.key) end_early(o.key, error, now);
    }
    scheduler.reset(epoch);
  }

  EngineState current_state() const {
    std::lock_guard lock(mutex);
    return state;
  }

  void handle(Begin&, Clock::time_point) {
    if (!started && !quitting) begin_epoch();
  }
  void handle(Drain&, Clock::time_point) {
    const EngineState s = current_state();
    if (s != EngineState::stopped) set_state(EngineState::draining);
  }
  void handle(Quit&, Clock::time_point) { quitting = true; }
  void handle(Listen& m, Clock::time_point) {
    listener = std::move(m.listener);
    if (listener) listener(current_state());
  }
  void handle(Ready& m, Clock::time_point) {
    if (m.epoch != epoch || lost) return;
    {
      std::lock_guard lock(mutex);
      ranks = std::move(m.ranks);
    }
    ready = true;
    if (current_state() == EngineState::loading) set_state(EngineState::serving);
  }
  void handle(Lost& m, Clock::time_point now) {
    if (m.epoch == epoch) lose(m.why, false, now);
  }

  // ---- the loop

  void issue(Clock::time_point now) {
    if (lost) return;
    while (auto step = scheduler.next()) {
      int32_t rows = 0;
      for (const StepRow& row : step->rows) rows += row.tokens;
      for (const uint64_t key : scheduler.admitted()) {
        Open* o = find(key);
        if (!o || o->admitted) continue;
        o->admitted = now;
        note(kRequestAdmitted, o->key, now);
        metrics.queue.observe(Seconds(now - o->submitted).count());
      }
      watch.issued(step->number, rows, now);
      if (trace) {
        const auto number = static_cast<int32_t>(step->number), sequences = static_cast<int32_t>(step->rows.size());
        note(kStepBegin, step_id(step->number), Clock::now(), {number, rows, sequences, static_cast<int32_t>(step->epoch)});
      }
      group.submit(std::make_shared<const std::vector<std::byte>>(encode(*step)));
    }
  }

  void stop_group() {
    if (started) group.stop();
    started = false;
    lost = true;
    restart_at.reset();
  }

  void wait_for_messages() {
    std::optional<Clock::time_point> until = restart_at;
    const auto no_later = [&](Clock::time_point at) { until = until ? std::min(*until, at) : at; };
    if (!deadlines.empty()) no_later(deadlines.begin()->first);
    if (!watch.idle()) no_later(Clock::now() + StepWatch::kLookEvery);
    std::unique_lock lock(inbox->mutex);
    const auto something = [&] { return !inbox->messages.empty(); };
    if (until) {
      inbox->arrived.wait_until(lock, *until, something);
    } else {
      inbox->arrived.wait(lock, something);
    }
    batch.swap(inbox->messages);
  }

  void guarded(Clock::time_point now, auto&& work) {
    try {
      work();
    } catch (const Error& error) {
      lose(error, true, now);
    } catch (const std::exception& error) {
      lose(Error(Code::internal, "engine", error.what()), true, now);
    }
  }

  void run() {
    while (!quitting) {
      wait_for_messages();
      const Clock::time_point now = Clock::now();
      for (Message& message : batch) {
        guarded(now, [&] { std::visit([&](auto& m) { handle(m, now); }, message); });
      }
      batch.clear();
      expire(now);
      if (watch.hung(now)) {
        lose(Error(Code::unavailable, "step deadline",
                   "no result for " + std::to_string(static_cast<int>(watch.allowed())) + " s: a rank hangs"),
             true, now);
      }
      guarded(now, [&] { issue(now); });
      publish();
      deliver();
      if (kill_group) {
        kill_group = false;
        group.kill();
      }
      if (restart_at && *restart_at <= Clock::now()) begin_epoch();
      if (open_count == 0 && current_state() == EngineState::draining) {
        stop_group();
        set_state(EngineState::stopped);
      }
    }
    const Clock::time_point now = Clock::now();
    set_state(EngineState::stopped);
    wait_free_messages(now);
    scheduler_lost(Error(Code::unavailable, "", "the server stops"), now);
    deliver();
    stop_group();
    publish();
  }

  // Requests that were accepted and not looked at yet.
  void wait_free_messages(Clock::time_point now) {
    std::vector<Message> left;
    {
      std::lock_guard lock(inbox->mutex);
      left.swap(inbox->messages);
    }
    for (Message& message : left) {
      if (auto* submit = std::get_if<Submit>(&message)) handle(*submit, now);
    }
  }
};

Engine::Engine(EngineOptions options, WorkerGroup& group, TraceTrack* trace) : core_(std::make_unique<Core>(std::move(options), group, trace)) {}

Engine::~Engine() {
  core_->inbox->push(Quit{});
  core_->thread.join();
}

void Engine::start() { core_->inbox->push(Begin{}); }

void Engine::submit(Request request, std::shared_ptr<RequestSink> sink) {
  validate(request, core_->options);
  const Clock::time_point now = Clock::now();
  std::lock_guard lock(core_->mutex);
  switch (core_->drain_asked && core_->state != EngineState::stopped ? EngineState::draining : core_->state) {
    case EngineState::serving:
      break;
    case EngineState::loading:
      fail(Code::unavailable, "", "the model is loading");
    case EngineState::draining:
      fail(Code::unavailable, "", "the server is draining");
    case EngineState::stopped:
      fail(Code::unavailable, "", "the server has stopped");
    case EngineState::lost:
      fail(Code::unavailable, "",
           core_->last_error ? std::string("the worker group was lost: ") + core_->last_error->what() : "the worker group was lost");
  }
  if (core_->known.contains(request.id)) fail(Code::already_exists, "request_id", "'" + request.id + "' is in flight already");
  if (core_->places.empty()) {
    core_->refused.fetch_add(1, std::memory_order_relaxed);
    fail(Code::resource_exhausted, "max_queue", "the queue is full (" + std::to_string(core_->options.max_queue) + " requests wait)");
  }
  const uint64_t key = ++core_->owners << kIndexBits | core_->places.back();
  core_->places.pop_back();
  core_->known.emplace(request.id, Core::Known{key});
  core_->inbox->push(Submit{key, std::move(request), std::move(sink), now});
}

void Engine::cancel(const std::string& request_id, Code why) {
  core_->ask_to_end(request_id, [&](uint64_t key) { return Cancel{key, why}; });
}

void Engine::finish(const std::string& request_id, int32_t index) {
  core_->ask_to_end(request_id, [&](uint64_t key) { return Finish{key, index}; });
}

void Engine::drain() {
  std::lock_guard lock(core_->mutex);
  core_->drain_asked = true;
  core_->inbox->push(Drain{});
}

EngineState Engine::state() const { return core_->current_state(); }

bool Engine::wait_for(EngineState state, std::chrono::milliseconds timeout) const {
  std::unique_lock lock(core_->mutex);
  return core_->state_changed.wait_for(lock, timeout, [&] { return core_->state == state; });
}

std::optional<Error> Engine::last_error() const {
  std::lock_guard lock(core_->mutex);
  return core_->last_error;
}

std::chrono::milliseconds Engine::retry_after() const {
  const Load now = load();
  const double drained = core_->seconds_per_completion.load(std::memory_order_relaxed) * (now.waiting + 1) / 2;
  const double seconds = state() == EngineState::serving ? std::clamp(drained, 0.05, 30.0) : 1.0;
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

const EngineOptions& Engine::options() const { return core_->options; }
const Metrics& Engine::metrics() const { return core_->metrics; }

Load Engine::load() const {
  size_t open;
  {
    std::lock_guard lock(core_->mutex);
    open = core_->known.size();
  }
  Load load;
  load.running = core_->running.load(std::memory_order_relaxed);
  load.waiting = std::max(0, static_cast<int32_t>(open) - load.running);
  load.kv_pages_total = core_->pages_total.load(std::memory_order_relaxed);
  load.kv_pages_free = core_->pages_free.load(std::memory_order_relaxed);
  return load;
}

uint32_t Engine::epoch() const {
  std::lock_guard lock(core_->mutex);
  return core_->epoch;
}

std::vector<RankInfo> Engine::ranks() const {
  std::lock_guard lock(core_->mutex);
  return core_->ranks;
}

void Engine::on_state(std::function<void(EngineState)> listener) { core_->inbox->push(Listen{std::move(listener)}); }

}  // namespace tandem
