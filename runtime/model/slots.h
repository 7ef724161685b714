// What a worker remembers of the sequences it holds: ids, page tables, sampling. A pure function of one epoch's steps (and of the ids
// that were sampled). Owned by the rank's thread.
#pragma once
#include <vector>

#include "runtime/model/ngram_history.h"
#include "runtime/model/step.h"

namespace tandem {

struct Slot {
  bool used = false;
  uint32_t serial = 0;
  int32_t length = 0;          // tokens whose keys and values are in the cache (or will be after the step under way)
  int32_t prompt_tokens = 0, min_tokens = 0;
  int32_t admitted = 0;        // tokens known at admission: later ones were drawn here
  Sampling sampling;
  std::vector<int32_t> ids;    // known ones; capacity is reserved for the whole context at admission
  std::vector<int32_t> stop_ids;
  std::vector<int32_t> pages[kMaxKvGroups];
  std::vector<TokenCount> counts;  // distinct ids: those with a bias, and while a penalty is on those seen
  std::vector<uint32_t> allowed;   // a bit an id; empty: all
  int32_t allowed_count = 0;
  NgramHistory history;            // while no_repeat_ngram is on
  std::vector<int32_t> forbidden;  // scratch of forbidden_now()
  int32_t generated = 0;       // tokens drawn, those before a preemption included
};

bool has_penalty(const Sampling& sampling);
bool follows_ids(const Sampling& sampling);  // draws depend on the ids seen: a penalty or no_repeat_ngram

// The ids that this slot's next draw may not give: stop ids before min_tokens, and what would repeat an n-gram, unless nothing else is
// left. Valid until the next call.
std::span<const int32_t> forbidden_now(Slot& slot, int64_t vocab);

class Slots {
 public:
  Slots(int32_t context, int32_t page_tokens) : context_(context), page_tokens_(page_tokens) {}
  Slot& operator[](SlotId id);              // Errors: Code::internal when nothing was admitted there
  void apply(const Step& step);             // releases, admissions, grants, in that order
  void append(SlotId id, uint32_t serial, int32_t token);  // a drawn token that this rank needs to know; ignored when the slot has a new owner
  void count(SlotId id, uint32_t serial, int32_t token);  // for draws that follow ids; ignored likewise
  uint64_t digest() const;                  // the sum of slot_digest over all slots held: what Step::digest says

 private:
  std::vector<Slot> slots_;
  int32_t context_, page_tokens_;
};

}  // namespace tandem
