// Attention over paged caches: decoding (one row a sequence, keys taken in splits by many blocks) and prompts (blocks of rows). Rope and
// the append of new keys and values happen on the way. Everything is enqueued on the launch's stream; nothing allocates or waits.
#pragma once
#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/plan/workspace.h"
#include "kernels/cuda/step_view.h"
#include "kernels/program/record.h"

namespace tandem::cuda {

struct RopeOnDevice {                     // as Rope
  const float* inverse_frequency = nullptr;  // device float[rotary / 2]
  int32_t rotary = 0;
  float scale = 1;
};

struct AttentionCall {
  StepView step;
  CacheLayer cache;
  HeadShape shape;
  RopeOnDevice rope;
  float scale = 1;
  int64_t window = 0;
  float soft_cap = 0;
  // element[rows, qkv_stride]: a row is heads * head_dim queries, kv_heads * head_dim keys, as many values; before rope. A prompt's
  // queries are rotated in place.
  void* qkv = nullptr;
  int64_t qkv_stride = 0;
  void* out = nullptr;                    // element[rows, heads * head_dim]
  Element element = Element::bf16;        // of qkv and out
  int32_t most_sequences = 0, most_rows = 0, most_context = 0;  // of this launch (a graph's bucket, or the step at hand)
  int32_t singles = 0;                    // attend_any: sequences of one row are among the first so many
  std::byte* scratch = nullptr;           // attention_scratch_bytes(); zero-filled once, counters are left zero
};

// Every sequence of the step has one row. Rope, append and attention in one launch.
void attend_decode(const Launch& how, const AttentionCall& call);
// Sequences of any number of rows, in any mixture: first rope and append for all rows, then attention.
void attend_any(const Launch& how, const AttentionCall& call);

}  // namespace tandem::cuda
