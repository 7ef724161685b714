// A step: one pass of a group of sequences through all stages, as a change to what the workers already hold. The scheduler writes it
// once; the same bytes go to every rank. Values only; native byte order (both ends are the same build, checked when a worker joins).
//
// What a worker does with a step, in this order:
//  1. Steps are carried out in number order, all groups alike, on one stream. Whatever a step takes back may be given out again by the
//     same or any later step, although earlier steps that still use it may be under way on other ranks.
//  2. ids_from != 0: that step of the same group sampled, and its ids are asked of the mailbox now, even when no row needs one. Every step
//     with a sampling row is posted (one item for each sampling row, in row order) and asked for exactly once, by the next step of its
//     group; within a group in order, among groups in any order. At most one post of a group is waiting.
//  3. releases, then admissions, grants, copies.
//  4. rows. A row is a decode row when the slot's known ids (those of its admission, and those that decode rows brought since) are used
//     up: then tokens == 1, the slot had a sampling row in step ids_from, and the mail's item of that slot is the id. Items that no row
//     asks for are dropped: their sequence has ended. So a sequence that has begun to sample does so in every step of its group until it
//     is released. Decode rows come before all others.
//  5. One StepResult a step, also when nothing was sampled, from the leader of the last stage, in number order.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/program/backend.h"

namespace tandem {

using SlotId = int32_t;

struct Admission {            // a sequence takes a slot
  SlotId slot = 0;
  uint32_t serial = 0;        // counts the admissions of this epoch; results carry it, so late ones are told apart
  int32_t cached = 0;         // leading tokens whose keys and values are in the pages already (prefix reuse)
  int32_t prompt_tokens = 0;  // of `ids`, how many are the request's prompt (the rest was generated before a preemption)
  int32_t min_tokens = 0;     // generated tokens before which `stop_ids` may not be drawn
  Sampling sampling;
  std::vector<int32_t> ids;       // everything known: at least one
  std::vector<int32_t> stop_ids;  // forbidden while fewer than min_tokens were generated
  std::vector<int32_t> bias_ids;  // ids whose logits are changed, by what `biases` holds at the same place
  std::vector<float> biases;
  std::vector<int32_t> allowed_ids;  // only these may be drawn; empty: all
};
// Appended to the slot's table of that KV group; the first cached / page_tokens pages of a new slot are shared, all others are its own.
// In a group with a window, pages wholly behind the window of the slot's next row are given to others without being taken back: the
// table keeps its dead entries.
struct PageGrant { SlotId slot = 0; int32_t group = 0; std::vector<int32_t> pages; };
struct PageCopy { int32_t group = 0, from = 0, to = 0; };
// Runs the next `tokens` tokens of a slot: from its known ids, or, for one beyond them, the id that its previous step sampled.
struct StepRow {
  SlotId slot = 0;
  int32_t tokens = 0;
  bool sample = false;      // draw a token from the last row
  bool all_logits = false;  // return the logits of every row of this sequence (logits, perplexity); slow by design
};

struct Step {
  uint64_t number = 0;  // 1, 2, 3, ... within an epoch
  uint32_t epoch = 0;
  int32_t group = 0;    // which of the pp groups in flight
  uint64_t ids_from = 0;  // the previous step of this group if it sampled, else 0
  std::vector<SlotId> releases;  // carried out first
  std::vector<Admission> admissions;
  std::vector<PageGrant> grants;
  std::vector<PageCopy> copies;
  std::vector<StepRow> rows;
  uint64_t digest = 0;  // the sum of slot_digest over all slots held after this step; 0: not checked
};

// What both sides must agree on about a slot: `length` tokens have keys and values after the step, and `pages` pages were granted since
// the admission, over all KV groups.
uint64_t slot_digest(SlotId slot, uint32_t serial, int32_t length, int32_t pages);

// Flat: counts and values, nothing aligned. A steady decode of 64 sequences is under 1 KB.
std::vector<std::byte> encode(const Step& step);
// Errors: Code::internal on anything malformed; allocates no more than a small multiple of bytes.size().
Step decode_step(std::span<const std::byte> bytes);

struct StepToken {
  SlotId slot = 0;
  uint32_t serial = 0;
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;
};
struct StepLogits { SlotId slot = 0; uint32_t serial = 0; int32_t first = 0, rows = 0; std::vector<float> values; };  // [rows, vocab] from
                                                                                                                   // position `first` on

struct StepResult {
  uint64_t number = 0;
  uint32_t epoch = 0;
  std::vector<StepToken> tokens;   // of rows with sample, in row order
  std::vector<StepLogits> logits;
  double seconds = 0;              // spent by the last stage
};

std::vector<std::byte> encode(const StepResult& result);
StepResult decode_result(std::span<const std::byte> bytes);  // Errors: as decode_step

}  // namespace tandem
