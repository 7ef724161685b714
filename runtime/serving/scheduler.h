// Decides what runs next: continuous batching of sequences in `groups` groups, chunked prefill, paged KV with prefix reuse, preemption
// by recompute. Plain decisions: no clock, no device, no lock, one thread. What a sequence's tokens are never depends on them.
//
// Running ahead. next() gives a step without waiting for results: at most groups + 1 steps are in flight, so that with `groups` stages
// each is busy and the first one has its next step queued already; and of one group at most two that sample, the second being issued ahead
// of the ids it consumes (the workers take them from the mailbox). Ids that were run past a stop are dropped: results carry serials.
// One step holds a row for every decoding sequence of its group, then prompt chunks by (priority, arrival), within a budget of tokens.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/model/step.h"
#include "runtime/serving/engine_options.h"
#include "runtime/serving/page_pool.h"
#include "runtime/serving/request.h"

namespace tandem {

// What became of a sequence. Terminal: finish != none; the counts are then filled.
struct SequenceEvent {
  uint64_t key = 0;
  int32_t token = -1, logits = -1;  // index into the result's tokens, logits; -1: none
  FinishReason finish = FinishReason::none;
  int32_t matched_id = -1;
  int32_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
};

struct SchedulerCounters {
  uint64_t steps = 0, rows = 0, prefill_tokens = 0, decode_tokens = 0;  // issued
  uint64_t admissions = 0, preemptions = 0, cached_tokens = 0, dropped_ids = 0;
};

class Scheduler {
 public:
  explicit Scheduler(const EngineOptions& options);  // Errors: invalid_argument naming the option
  ~Scheduler();
  // The longest sequence that the pages allow, at most options.context.
  static int32_t usable_context(const EngineOptions& options);

  void reset(uint32_t epoch);               // a new epoch: everything is forgotten, also what was added
  void add(uint64_t key, Request request);  // validated, with a key not in use
  // Ends a sequence from outside; its pages and slot are free at once. Nothing for an unknown key.
  std::optional<SequenceEvent> cancel(uint64_t key);
  std::optional<SequenceEvent> finish(uint64_t key, int32_t index);  // stop string: generated token `index` is the last that counts

  std::optional<Step> next();  // to be called until it gives nothing: after add, cancel, finish and commit
  std::span<const uint64_t> admitted() const { return admitted_; }  // keys that the last step gave a slot
  // In number order within a group. Events are valid until the next call. Logits of rows that were reported before a preemption are cut
  // out of the result. Errors: internal, when the result is not what its step asked for.
  std::span<const SequenceEvent> commit(StepResult& result);

  int32_t running() const { return running_; }
  int32_t waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t in_flight() const;
  int32_t free_slots() const { return static_cast<int32_t>(free_slots_.size()); }
  const PagePool& pool() const { return pool_; }
  const SchedulerCounters& counters() const { return counters_; }

 private:
  struct Sequence;
  struct Lane;    // a group of sequences in flight
  struct Flight;  // a step in flight
  struct Chunk {
    Sequence* sequence;
    int32_t tokens;
  };
  enum class Secured : uint8_t { yes, gone, later };
  struct Rank {  // who comes first
    int32_t priority;
    uint64_t arrival;
    bool operator<(const Rank& other) const { return priority != other.priority ? priority > other.priority : arrival < other.arrival; }
  };

  static void insert_by_rank(std::vector<Sequence*>& list, Sequence& sequence);
  bool build(int32_t group, Step& step);
  bool choose_chunks(Lane& lane, int32_t group);
  void emit(Lane& lane, int32_t group, Step& step);
  Sequence* first_waiting();
  bool admit(Sequence& sequence, int32_t group);
  Secured secure(Sequence& sequence, int32_t tokens);
  bool grow(Sequence& sequence, int32_t tokens);
  int32_t blocks_for(int32_t tokens) const { return (tokens + options_.page_tokens - 1) / options_.page_tokens; }
  int32_t tokens_within_reach(const Sequence& sequence) const;
  void free_behind_windows(Sequence& sequence);
  Sequence* lowest_running();
  void preempt(Sequence& sequence);
  void wait(Sequence& sequence);
  void release(Sequence& sequence);
  void cache_full_pages(Sequence& sequence);
  void leave_lists(Sequence& sequence);
  SequenceEvent end(Sequence& sequence, FinishReason reason);

  EngineOptions options_;
  PagePool pool_;
  bool caching_;
  std::vector<int32_t> windows_;  // per KV group, 0: none
  uint32_t epoch_ = 0, serial_ = 0;
  uint64_t number_ = 0, arrivals_ = 0, digest_ = 0;
  int32_t turn_ = 0, running_ = 0, decoding_ = 0, ending_ = 0;

  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;  // by key
  std::set<std::pair<Rank, Sequence*>> waiting_;
  std::map<uint64_t, Sequence*> waiting_by_arrival_;
  std::vector<Sequence*> slots_;
  std::vector<SlotId> free_slots_, releases_;
  std::vector<Lane> lanes_;
  std::vector<Flight> flights_;  // oldest first
  std::vector<Chunk> chunks_;    // of the step being built
  std::vector<uint64_t> admitted_;
  std::vector<SequenceEvent> events_;
  SchedulerCounters counters_;
};

}  // namespace tandem
