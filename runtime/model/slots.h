// What a worker remembers of the sequences it holds: ids, page tables, sampling. A pure function of one epoch's steps (and of the ids
// that were sampled). Owned by the rank's thread.
#pragma once
#include <vector>

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
  std::vector<TokenCount> counts;  // distinct ids, only while a penalty is on
  int32_t generated = 0;       // tokens drawn, those before a preemption included
};

bool has_penalty(const Sampling& sampling);  // draws depend on the ids seen

class Slots {
 public:
  Slots(int32_t context, int32_t page_tokens) : context_(context), page_tokens_(page_tokens) {}
  Slot& operator[](SlotId id);              // Errors: Code::internal when nothing was admitted there
  void apply(const Step& step);             // releases, admissions, grants, in that order
  void append(SlotId id, uint32_t serial, int32_t token);  // a drawn token that this rank needs to know; ignored when the slot has a new owner
  void count(SlotId id, uint32_t serial, int32_t token);  // for penalties; ignored likewise
  uint64_t digest() const;                  // the sum of slot_digest over all slots held: what Step::digest says

 private:
  std::vector<Slot> slots_;
  int32_t context_, page_tokens_;
};

}  // namespace tandem
