#include "runtime/serving/scheduler.h"

#include <algorithm>
#include <limits>
#include <string>

#include "kernels/base/error.h"

namespace tandem {
namespace {

constexpr int32_t kMostPassedOver = 8;   // steps that a prompt may be left out of before it goes first
constexpr uint64_t kMostOvertaken = 64;  // admissions that the longest waiting request lets pass

PagePoolOptions pool_options(const EngineOptions& options, bool caching) {
  return {.pages = options.kv_pages, .page_tokens = options.page_tokens, .cache = caching};
}

int32_t window_of(const EngineOptions& options, size_t group) {
  const int32_t window = group < options.kv_windows.size() ? options.kv_windows[group] : 0;
  return window > 0 && window < options.context ? window : 0;
}

bool any_window(const EngineOptions& options) {
  for (size_t group = 0; group < options.kv_pages.size(); ++group) {
    if (window_of(options, group)) return true;
  }
  return false;
}

void at_least(const char* option, int32_t value, int32_t least) {
  if (value < least) bad_input(option, std::to_string(value) + " is too small (at least " + std::to_string(least) + ")");
}

const EngineOptions& checked(const EngineOptions& options) {
  at_least("max_batch", options.max_batch, 1);
  at_least("chunk", options.chunk, 1);
  at_least("decode_chunk", options.decode_chunk, 1);
  at_least("page", options.page_tokens, 1);
  at_least("groups", options.groups, 1);
  at_least("context", options.context, 1);
  if (options.kv_pages.empty() || options.kv_pages.size() > kMaxKvGroups) {
    bad_input("kv_pages", std::to_string(options.kv_pages.size()) + " KV groups (1 to " + std::to_string(kMaxKvGroups) + ")");
  }
  for (const int32_t pages : options.kv_pages) at_least("kv_pages", pages, 1);
  return options;
}

}  // namespace

struct Scheduler::Sequence {
  enum class Phase : uint8_t { waiting, prefill, decode, ending };  // ending: every sample is issued, results are awaited
  struct Table {
    std::vector<int32_t> pages;
    int32_t sent = 0;   // of them the workers know
    int32_t freed = 0;  // leading ones, behind the window, given away
  };
  uint64_t key = 0, arrival = 0;
  Request request;           // its prompt moved to ids
  std::vector<int32_t> ids;  // prompt and committed tokens
  int32_t prompt = 0, limit = 0;
  int32_t cached_tokens = -1;          // prompt tokens reused at the first admission
  uint64_t overtaken_from = 0;         // admissions when it began to wait
  uint64_t blocked_at = ~uint64_t{0};  // version of the pool in which it did not fit

  Phase phase = Phase::waiting;
  SlotId slot = -1;
  bool told = false;  // the workers know of its slot
  uint32_t serial = 0;
  int32_t group = 0, passed_over = 0;
  int32_t issued = 0, committed = 0;  // tokens with keys and values in issued, in committed steps
  int32_t reported = 0;               // of an all_logits request: rows that were given out
  int32_t sampled = 0;                // generated tokens, those in flight included
  uint64_t sampled_in = 0;            // the last step that samples it
  uint64_t digest = 0;
  Table tables[kMaxKvGroups];
  // A leading part of the tables whose pages are the cache's. A twin that computed the same block at the same time keeps its own pages, and
  // its chain ends: holding the other's too would take twice the room.
  std::vector<PagePool::Block> blocks;
  bool chain_ended = false;

  Rank rank() const { return {request.priority, arrival}; }
  int32_t known() const { return static_cast<int32_t>(ids.size()); }
  int32_t generated() const { return known() - prompt; }
  int32_t longest() const { return limit ? prompt + limit - 1 : prompt; }  // tokens that will ever have keys and values
  bool caches() const { return request.cache_prefix && !request.all_logits; }
};

void Scheduler::insert_by_rank(std::vector<Sequence*>& list, Sequence& s) {
  const auto by_rank = [](const Sequence* a, const Sequence* b) { return a->rank() < b->rank(); };
  list.insert(std::upper_bound(list.begin(), list.end(), &s, by_rank), &s);
}

struct Scheduler::Lane {
  std::vector<Sequence*> decoding, prefilling;  // by rank
  int32_t sequences = 0;                        // ending ones included
  int32_t sampling_in_flight = 0;
  uint64_t posted = 0;  // the step whose ids nobody asked for yet
};

struct Scheduler::Flight {
  struct Row {
    SlotId slot;
    uint32_t serial;
    int32_t first, tokens;
    bool sample, all_logits;
  };
  uint64_t number;
  int32_t group;
  bool samples;
  std::vector<Row> rows;
};

int32_t Scheduler::usable_context(const EngineOptions& options) {
  checked(options);
  int64_t context = options.context;
  for (size_t group = 0; group < options.kv_pages.size(); ++group) {
    const int64_t pages = options.kv_pages[group], page = options.page_tokens, window = window_of(options, group);
    // A window may begin and end within a page.
    if (window && pages >= (window - 1 + page - 1) / page + 1) continue;
    context = std::min(context, pages * page);
  }
  return static_cast<int32_t>(context);
}

Scheduler::Scheduler(const EngineOptions& options)
    : options_(checked(options)),
      // Reuse of a prefix needs its pages in every KV group, and those behind a window are gone.
      pool_(pool_options(options, options.prefix_cache && !any_window(options))),
      caching_(options.prefix_cache && !any_window(options)) {
  for (size_t group = 0; group < options.kv_pages.size(); ++group) windows_.push_back(window_of(options, group));
  options_.context = usable_context(options);
  options_.decode_chunk = std::min(options_.decode_chunk, options_.chunk);
  reset(0);
}

Scheduler::~Scheduler() = default;

int32_t Scheduler::in_flight() const { return static_cast<int32_t>(flights_.size()); }

void Scheduler::reset(uint32_t epoch) {
  epoch_ = epoch;
  serial_ = 0;
  number_ = digest_ = 0;
  turn_ = running_ = decoding_ = ending_ = 0;
  waiting_.clear();
  waiting_by_arrival_.clear();
  sequences_.clear();
  slots_.assign(static_cast<size_t>(options_.max_batch), nullptr);
  free_slots_.clear();
  for (SlotId slot = options_.max_batch; slot-- > 0;) free_slots_.push_back(slot);
  releases_.clear();
  lanes_.assign(static_cast<size_t>(options_.groups), Lane{});
  flights_.clear();
  chunks_.clear();
  admitted_.clear();
  events_.clear();
  pool_.clear();
}

void Scheduler::add(uint64_t key, Request request) {
  auto sequence = std::make_unique<Sequence>();
  Sequence& s = *sequence;
  s.key = key;
  s.arrival = ++arrivals_;
  s.request = std::move(request);
  s.ids = std::move(s.request.prompt);
  s.prompt = s.known();
  const int32_t room = options_.context - s.prompt, wanted = s.request.stopping.max_tokens;
  s.limit = s.request.all_logits ? 0 : wanted > 0 ? std::min(wanted, room) : room;
  if (s.ids.empty() || room < (s.request.all_logits ? 0 : 1)) fail(Code::internal, "scheduler", "a request that does not fit the context");
  if (s.request.stopping.ignore_eos) s.request.stopping.stop_ids.clear();
  s.ids.reserve(static_cast<size_t>(s.prompt + std::min(s.limit, 256)));
  if (!sequences_.emplace(key, std::move(sequence)).second) fail(Code::internal, "scheduler", "a key that is in use");
  wait(s);
}

void Scheduler::wait(Sequence& s) {
  s.phase = Sequence::Phase::waiting;
  s.overtaken_from = counters_.admissions;
  s.blocked_at = ~uint64_t{0};
  waiting_.emplace(s.rank(), &s);
  waiting_by_arrival_.emplace(s.arrival, &s);
}

std::optional<SequenceEvent> Scheduler::cancel(uint64_t key) {
  const auto found = sequences_.find(key);
  if (found == sequences_.end()) return std::nullopt;
  return end(*found->second, FinishReason::cancelled);
}

std::optional<SequenceEvent> Scheduler::finish(uint64_t key, int32_t index) {
  const auto found = sequences_.find(key);
  if (found == sequences_.end()) return std::nullopt;
  Sequence& s = *found->second;
  const int32_t completion = std::clamp(index + 1, 0, s.generated());
  SequenceEvent event = end(s, FinishReason::stop_string);
  event.completion_tokens = completion;
  return event;
}

SequenceEvent Scheduler::end(Sequence& s, FinishReason reason) {
  SequenceEvent event{.key = s.key, .finish = reason, .prompt_tokens = s.prompt, .completion_tokens = s.generated()};
  event.cached_tokens = std::max(0, s.cached_tokens);
  if (s.phase == Sequence::Phase::waiting) {
    waiting_.erase({s.rank(), &s});
    waiting_by_arrival_.erase(s.arrival);
  } else {
    release(s);
  }
  sequences_.erase(s.key);
  return event;
}

// ---- slots and pages

void Scheduler::leave_lists(Sequence& s) {
  Lane& lane = lanes_[static_cast<size_t>(s.group)];
  if (s.phase == Sequence::Phase::prefill) std::erase(lane.prefilling, &s);
  if (s.phase == Sequence::Phase::decode) {
    std::erase(lane.decoding, &s);
    --decoding_;
  }
  if (s.phase == Sequence::Phase::ending) --ending_;
}

void Scheduler::release(Sequence& s) {
  leave_lists(s);
  --lanes_[static_cast<size_t>(s.group)].sequences;
  --running_;
  slots_[static_cast<size_t>(s.slot)] = nullptr;
  free_slots_.push_back(s.slot);
  if (s.told) releases_.push_back(s.slot);
  s.told = false;
  digest_ -= s.digest;
  for (int32_t group = 0; group < pool_.groups(); ++group) {
    Sequence::Table& table = s.tables[group];
    for (size_t block = table.pages.size(); block-- > static_cast<size_t>(table.freed);) {
      if (block >= s.blocks.size()) pool_.give(group, table.pages[block]);
    }
    table = {};
  }
  while (!s.blocks.empty()) {
    pool_.drop(s.blocks.back());
    s.blocks.pop_back();
  }
  s.chain_ended = false;
  s.slot = -1;
  s.digest = 0;
}

void Scheduler::preempt(Sequence& s) {
  std::erase_if(chunks_, [&](const Chunk& chunk) { return chunk.sequence == &s; });
  release(s);
  s.issued = s.committed = 0;
  s.sampled = s.generated();
  s.sampled_in = 0;
  s.passed_over = 0;
  ++counters_.preemptions;
  wait(s);
}

Scheduler::Sequence* Scheduler::lowest_running() {
  Sequence* lowest = nullptr;
  for (Sequence* s : slots_) {
    if (s && s->phase != Sequence::Phase::ending && (!lowest || lowest->rank() < s->rank())) lowest = s;
  }
  return lowest;
}

void Scheduler::free_behind_windows(Sequence& s) {
  for (int32_t group = 0; group < pool_.groups(); ++group) {
    if (!windows_[static_cast<size_t>(group)]) continue;
    Sequence::Table& table = s.tables[group];
    const int32_t seen_from = s.issued - windows_[static_cast<size_t>(group)] + 1;  // by the next row
    while (table.freed < table.sent && (table.freed + 1) * options_.page_tokens <= seen_from) {
      pool_.give(group, table.pages[static_cast<size_t>(table.freed++)]);
    }
  }
}

bool Scheduler::grow(Sequence& s, int32_t tokens) {
  const size_t blocks = static_cast<size_t>(blocks_for(tokens));
  for (int32_t group = 0; group < pool_.groups(); ++group) {
    std::vector<int32_t>& pages = s.tables[group].pages;
    while (pages.size() < blocks) {
      if (!pool_.available(group)) return false;
      pages.push_back(pool_.take(group));
    }
  }
  return true;
}

// Pages for the first `tokens` tokens, if need be from sequences that rank lower. gone: it was the lowest itself and is preempted;
// later: pages will be free as soon as results in flight arrive, so nobody has to be recomputed.
Scheduler::Secured Scheduler::secure(Sequence& s, int32_t tokens) {
  while (!grow(s, tokens)) {
    if (ending_) return Secured::later;
    Sequence* victim = lowest_running();
    const bool itself = victim == &s;
    if (itself && running_ == 1) fail(Code::internal, "scheduler", "one sequence alone has not enough pages");
    preempt(*victim);
    if (itself) return Secured::gone;
  }
  return Secured::yes;
}

int32_t Scheduler::tokens_within_reach(const Sequence& s) const {
  int64_t reach = std::numeric_limits<int32_t>::max();
  for (int32_t group = 0; group < pool_.groups(); ++group) {
    const int64_t pages = static_cast<int64_t>(s.tables[group].pages.size()) + pool_.available(group);
    reach = std::min(reach, pages * options_.page_tokens - s.issued);
  }
  return static_cast<int32_t>(reach);
}

void Scheduler::cache_full_pages(Sequence& s) {
  if (!caching_ || !s.caches() || s.chain_ended) return;
  const int32_t page = options_.page_tokens;
  int32_t pages[kMaxKvGroups];
  for (int32_t block = static_cast<int32_t>(s.blocks.size()); (block + 1) * page <= s.committed; ++block) {
    for (int32_t group = 0; group < pool_.groups(); ++group) pages[group] = s.tables[group].pages[static_cast<size_t>(block)];
    const PagePool::Block parent = s.blocks.empty() ? PagePool::kNoBlock : s.blocks.back();
    const auto ids = std::span(s.ids).subspan(static_cast<size_t>(block * page), static_cast<size_t>(page));
    const PagePool::Block cached = pool_.insert(parent, s.request.cache_salt, ids, {pages, static_cast<size_t>(pool_.groups())});
    if (cached == PagePool::kNoBlock) {
      s.chain_ended = true;
      return;
    }
    s.blocks.push_back(cached);
  }
}

// ---- admission

// By rank; but a request that saw kMostOvertaken others admitted since it began to wait goes first.
Scheduler::Sequence* Scheduler::first_waiting() {
  if (waiting_.empty()) return nullptr;
  Sequence* oldest = waiting_by_arrival_.begin()->second;
  if (counters_.admissions - oldest->overtaken_from >= kMostOvertaken) return oldest;
  return waiting_.begin()->second;
}

bool Scheduler::admit(Sequence& s, int32_t group) {
  if (s.blocked_at == pool_.version()) return false;
  const int32_t page = options_.page_tokens;
  if (caching_ && s.caches()) {
    auto parent = PagePool::kNoBlock;
    for (int32_t block = 0; (block + 1) * page < s.known(); ++block) {  // the last token is always computed
      parent =
          pool_.find(parent, s.request.cache_salt, std::span(s.ids).subspan(static_cast<size_t>(block * page), static_cast<size_t>(page)));
      if (parent == PagePool::kNoBlock) break;
      pool_.hold(parent);
      s.blocks.push_back(parent);
    }
  }
  const int32_t reused = static_cast<int32_t>(s.blocks.size());
  // All known tokens and one page to go on with.
  const int32_t wanted = std::min(blocks_for(s.known()) + 1, blocks_for(s.longest()));
  bool fits = true;
  for (int32_t g = 0; g < pool_.groups(); ++g) {
    const int32_t window = windows_[static_cast<size_t>(g)];
    const int32_t needed = window ? std::min({wanted, blocks_for(window + options_.chunk) + 1, pool_.total(g)}) : wanted;
    fits = fits && pool_.available(g) >= needed - reused;
  }
  if (!fits) {
    while (!s.blocks.empty()) {
      pool_.drop(s.blocks.back());
      s.blocks.pop_back();
    }
    s.blocked_at = pool_.version();
    return false;
  }
  waiting_.erase({s.rank(), &s});
  waiting_by_arrival_.erase(s.arrival);
  s.slot = free_slots_.back();
  free_slots_.pop_back();
  slots_[static_cast<size_t>(s.slot)] = &s;
  s.serial = ++serial_;
  s.group = group;
  s.phase = Sequence::Phase::prefill;
  s.issued = s.committed = reused * page;
  for (int32_t g = 0; g < pool_.groups(); ++g) {
    std::vector<int32_t>& pages = s.tables[g].pages;
    for (const PagePool::Block block : s.blocks) pages.push_back(pool_.page(block, g));
    if (windows_[static_cast<size_t>(g)]) continue;  // page by page, as those behind the window come back
    while (static_cast<int32_t>(pages.size()) < blocks_for(s.known())) pages.push_back(pool_.take(g));
  }
  Lane& lane = lanes_[static_cast<size_t>(group)];
  ++lane.sequences;
  ++running_;
  insert_by_rank(lane.prefilling, s);
  if (s.cached_tokens < 0) s.cached_tokens = s.issued;
  counters_.cached_tokens += static_cast<uint64_t>(s.issued);
  ++counters_.admissions;
  return true;
}

// ---- steps

std::optional<Step> Scheduler::next() {
  admitted_.clear();
  if (in_flight() > options_.groups) return std::nullopt;
  Step step;
  for (int32_t i = 0; i < options_.groups; ++i) {
    const int32_t group = (turn_ + i) % options_.groups;
    if (!build(group, step)) continue;
    turn_ = (group + 1) % options_.groups;
    return step;
  }
  return std::nullopt;
}

bool Scheduler::build(int32_t group, Step& step) {
  Lane& lane = lanes_[static_cast<size_t>(group)];
  if (!lane.decoding.empty() && lane.sampling_in_flight >= 2) return false;
  // By rank, so that whoever is preempted was not looked at yet.
  for (size_t i = 0; i < lane.decoding.size();) {
    Sequence& s = *lane.decoding[i];
    free_behind_windows(s);
    switch (secure(s, s.issued + 1)) {
      case Secured::yes:
        ++i;
        break;
      case Secured::gone:
        break;
      case Secured::later:
        return false;
    }
  }
  chunks_.clear();
  if (!choose_chunks(lane, group)) return false;
  emit(lane, group, step);
  return true;
}

// Fills chunks_: prompts by rank, those that are admitted for it among them. False when the step would have no rows.
bool Scheduler::choose_chunks(Lane& lane, int32_t group) {
  int32_t budget = decoding_ ? options_.decode_chunk : options_.chunk;
  const auto take = [&](Sequence& s) {
    free_behind_windows(s);
    int32_t tokens = std::min({budget, s.known() - s.issued, tokens_within_reach(s)});
    if (tokens < 1) {
      if (secure(s, s.issued + 1) != Secured::yes) return;
      tokens = 1;
    }
    grow(s, s.issued + tokens);
    chunks_.push_back({&s, tokens});
    budget -= tokens;
    s.passed_over = 0;
  };
  // Whoever waits and ranks before `next` (null: whoever waits). A new sequence joins the group with the fewest.
  const auto admit_before = [&](const Sequence* next) {
    while (budget > 0 && !free_slots_.empty()) {
      Sequence* first = first_waiting();
      if (!first || (next && !(first->rank() < next->rank()))) return;
      const auto more = [&](const Lane& other) { return other.sequences < lane.sequences; };
      if (std::any_of(lanes_.begin(), lanes_.end(), more) || !admit(*first, group)) return;
      admitted_.push_back(first->key);
      take(*first);
    }
  };
  std::vector<Sequence*> order = lane.prefilling;
  const auto overdue = std::find_if(order.begin(), order.end(), [](const Sequence* s) { return s->passed_over >= kMostPassedOver; });
  const bool one_is_overdue = overdue != order.end();
  if (one_is_overdue) std::rotate(order.begin(), overdue, overdue + 1);
  for (size_t i = 0; i < order.size(); ++i) {
    Sequence& s = *order[i];
    if (i > 0 || !one_is_overdue) admit_before(&s);
    const bool chosen = std::any_of(chunks_.begin(), chunks_.end(), [&](const Chunk& chunk) { return chunk.sequence == &s; });
    if (s.phase != Sequence::Phase::prefill || chosen) continue;  // preempted by one before it, perhaps admitted again
    if (budget > 0) {
      take(s);
    } else {
      ++s.passed_over;
    }
  }
  admit_before(nullptr);
  return !chunks_.empty() || !lane.decoding.empty();
}

void Scheduler::emit(Lane& lane, int32_t group, Step& step) {
  step.number = ++number_;
  step.epoch = epoch_;
  step.group = group;
  step.ids_from = lane.posted;
  step.releases = std::move(releases_);
  releases_.clear();
  Flight flight{.number = step.number, .group = group, .samples = false};
  const size_t rows = lane.decoding.size() + chunks_.size();
  step.rows.reserve(rows);
  flight.rows.reserve(rows);

  const auto add_row = [&](Sequence& s, int32_t tokens, bool sample) {
    const bool logits = s.request.all_logits;
    step.rows.push_back({s.slot, tokens, sample, logits});
    flight.rows.push_back({s.slot, s.serial, s.issued, tokens, sample, logits});
    s.issued += tokens;
    if (sample) {
      ++s.sampled;
      s.sampled_in = step.number;
      flight.samples = true;
    }
    int32_t granted = 0;
    for (int32_t g = 0; g < pool_.groups(); ++g) {
      Sequence::Table& table = s.tables[g];
      const int32_t pages = static_cast<int32_t>(table.pages.size());
      granted += pages;
      if (table.sent == pages) continue;
      step.grants.push_back({s.slot, g, {table.pages.begin() + table.sent, table.pages.end()}});
      table.sent = pages;
    }
    if (options_.check_digests) {
      digest_ -= s.digest;
      s.digest = slot_digest(s.slot, s.serial, s.issued, granted);
      digest_ += s.digest;
    }
  };

  bool some_end = false;
  for (Sequence* s : lane.decoding) {
    if (s->sampled_in != step.ids_from) fail(Code::internal, "scheduler", "a decoding sequence was left out of a step of its group");
    add_row(*s, 1, true);
    some_end |= s->sampled == s->limit;
  }
  counters_.decode_tokens += lane.decoding.size();
  if (some_end) {
    std::erase_if(lane.decoding, [&](Sequence* s) {
      if (s->sampled < s->limit) return false;
      s->phase = Sequence::Phase::ending;
      ++ending_;
      --decoding_;
      return true;
    });
  }
  for (const Chunk& chunk : chunks_) {
    Sequence& s = *chunk.sequence;
    if (!s.told) {
      s.told = true;
      Admission admission{.slot = s.slot, .serial = s.serial, .cached = s.issued, .prompt_tokens = s.prompt};
      admission.min_tokens = s.request.stopping.min_tokens;
      admission.sampling = s.request.sampling;
      for (const TokenBias& bias : s.request.logit_bias) admission.bias_ids.push_back(bias.id), admission.biases.push_back(bias.value);
      admission.allowed_ids = s.request.allowed_ids;
      admission.ids = s.ids;
      if (admission.min_tokens > 0) admission.stop_ids = s.request.stopping.stop_ids;
      step.admissions.push_back(std::move(admission));
    }
    const bool last = s.issued + chunk.tokens == s.known(), sample = last && !s.request.all_logits;
    add_row(s, chunk.tokens, sample);
    counters_.prefill_tokens += static_cast<uint64_t>(chunk.tokens);
    if (!last) continue;
    std::erase(lane.prefilling, &s);
    if (!sample || s.sampled == s.limit) {
      s.phase = Sequence::Phase::ending;
      ++ending_;
    } else {
      s.phase = Sequence::Phase::decode;
      ++decoding_;
      insert_by_rank(lane.decoding, s);
    }
  }
  step.digest = digest_;
  lane.posted = flight.samples ? step.number : 0;
  lane.sampling_in_flight += flight.samples;
  ++counters_.steps;
  counters_.rows += rows;
  flights_.push_back(std::move(flight));
}

// ---- results

std::span<const SequenceEvent> Scheduler::commit(StepResult& result) {
  events_.clear();
  const auto wrong = [&](const std::string& how) { fail(Code::internal, "result of step " + std::to_string(result.number), how); };
  const auto flight = std::find_if(flights_.begin(), flights_.end(), [&](const Flight& f) { return f.number == result.number; });
  if (flight == flights_.end() || result.epoch != epoch_) wrong("no such step is in flight");
  if (std::any_of(flights_.begin(), flight, [&](const Flight& f) { return f.group == flight->group; }))
    wrong("an earlier one of its group is missing");

  size_t tokens = 0, logits = 0;
  for (const Flight::Row& row : flight->rows) {
    const StepToken* token = nullptr;
    if (row.sample) {
      if (tokens == result.tokens.size()) wrong("ids are missing");
      token = &result.tokens[tokens++];
      if (token->slot != row.slot || token->serial != row.serial) wrong("ids are not in the order of the rows");
      if (token->id < 0 || (options_.vocab && token->id >= options_.vocab))
        wrong("id " + std::to_string(token->id) + " is not in the vocabulary");
    }
    if (row.all_logits) {
      if (logits == result.logits.size()) wrong("logits are missing");
      const StepLogits& l = result.logits[logits++];
      if (l.slot != row.slot || l.serial != row.serial || l.first != row.first || l.rows != row.tokens)
        wrong("logits are not those of the rows");
    }
    Sequence* s = slots_[static_cast<size_t>(row.slot)];
    if (!s || s->serial != row.serial) {  // ended or preempted while this was in flight
      counters_.dropped_ids += row.sample;
      continue;
    }
    s->committed = row.first + row.tokens;
    if (token) s->ids.push_back(token->id);
    cache_full_pages(*s);
    if (!token && !row.all_logits) continue;
    SequenceEvent event{.key = s->key};
    FinishReason reason = FinishReason::none;
    if (token) {
      const Stopping& stopping = s->request.stopping;
      const auto& stop_ids = stopping.stop_ids;
      event.token = static_cast<int32_t>(tokens - 1);
      if (s->generated() > stopping.min_tokens && std::find(stop_ids.begin(), stop_ids.end(), token->id) != stop_ids.end()) {
        reason = FinishReason::stop;
      } else if (s->generated() == s->limit) {
        reason = FinishReason::length;
      }
    } else {
      if (s->committed <= s->reported) continue;
      StepLogits& l = result.logits[logits - 1];
      if (const int32_t again = s->reported - l.first; again > 0) {
        l.values.erase(l.values.begin(), l.values.begin() + static_cast<ptrdiff_t>(l.values.size() / static_cast<size_t>(l.rows)) * again);
        l.first += again;
        l.rows -= again;
      }
      s->reported = s->committed;
      event.logits = static_cast<int32_t>(logits - 1);
      if (s->committed == s->prompt) reason = FinishReason::length;
    }
    if (reason != FinishReason::none) {
      SequenceEvent terminal = end(*s, reason);
      terminal.token = event.token;
      terminal.logits = event.logits;
      if (reason == FinishReason::stop) terminal.matched_id = token->id;
      event = terminal;
    }
    events_.push_back(event);
  }
  if (tokens != result.tokens.size() || logits != result.logits.size()) wrong("more ids or logits than were asked for");
  lanes_[static_cast<size_t>(flight->group)].sampling_in_flight -= flight->samples;
  flights_.erase(flight);
  return events_;
}

}  // namespace tandem
