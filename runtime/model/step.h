// A step: one pass of a group of sequences through all stages, as a change to what the workers already hold. The scheduler writes it
// once; the same bytes go to every rank. Values only; native byte order (both ends are the same build, checked when a worker joins).
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
};
struct PageGrant { SlotId slot = 0; int32_t group = 0; std::vector<int32_t> pages; };  // appended to the slot's table
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
  // The step whose sampled ids this one consumes (the group's previous step), 0: none of the rows needs one.
  uint64_t ids_from = 0;
  std::vector<SlotId> releases;  // carried out first
  std::vector<Admission> admissions;
  std::vector<PageGrant> grants;
  std::vector<PageCopy> copies;
  std::vector<StepRow> rows;
  uint64_t digest = 0;  // of the scheduler's idea of all slots after this step; 0: not checked
};

std::vector<std::byte> encode(const Step& step);
Step decode_step(std::span<const std::byte> bytes);  // Errors: Code::internal on anything malformed

struct StepToken {
  SlotId slot = 0;
  uint32_t serial = 0;
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;
};
struct StepLogits { SlotId slot = 0; uint32_t serial = 0; int32_t first = 0, rows = 0; std::vector<float> values; };  // [rows, vocab]

struct StepResult {
  uint64_t number = 0;
  uint32_t epoch = 0;
  std::vector<StepToken> tokens;   // of rows with sample, in row order
  std::vector<StepLogits> logits;
  double seconds = 0;              // spent by the last stage
};

std::vector<std::byte> encode(const StepResult& result);
StepResult decode_result(std::span<const std::byte> bytes);

}  // namespace tandem
