// The buffers between a program's records on a GPU: which there are, how large for a bucket, when they live, and where they lie in the
// one block that an executable is given. Pure functions, compiled with and without CUDA.
#pragma once
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/cuda/plan/layout.h"

namespace tandem::cuda {

// Steps of at most so many rows go through fused kernels; larger ones through matrix products on widened weights.
constexpr int64_t kFewRows = 64;
constexpr uint64_t kGemmWorkspaceBytes = uint64_t{32} << 20;
constexpr uint64_t kWidenedBytes = uint64_t{24} << 20;  // of a slice of a weight, so that it stays in the L2 cache
constexpr int32_t kSplitTokens = 128;                   // keys of one split of an attention row
constexpr int64_t kRowTile = 64;                        // large products are made of whole tiles of rows: buffers hold them

enum class Buffer : uint8_t {
  x,                  // f32 [rows, hidden] residual stream
  pending,            // f32 [rows, hidden] a partial result
  normalized,         // [rows, hidden]
  qkv,                // [rows, queries + keys + values]
  attended,           // [rows, heads * head_dim]
  gate_up,            // [rows, 2 * ffn]
  gated,              // [rows, ffn]
  widened,            // a slice of a weight in the activations' type
  gemm,               // of the matrix library
  linear_scratch,     // counters and partial sums of split products; persistent
  attention_scratch,  // counters and splits; persistent
  router_logits,      // f32 [rows, experts]
  expert_lists,       // int32: begin, row_of, pair_of; f32 weights
  expert_rows,        // [pairs, hidden]
  expert_gate_up,     // [pairs, 2 * ffn]
  expert_gated,       // [pairs, ffn]
  expert_results,     // f32 [pairs, hidden]
  head_rows,          // [heads, hidden]
  word_rows,          // f32 [rows, width of the embeddings] where that is not the hidden one
  words,              // [rows or heads, that width]
  logits_part,        // f32 [heads, part], then all members' [heads, vocab]
  logits,             // f32 [heads, vocab]; lives on for sampling
  sampling,           // scratch; persistent
  drawn,              // Sampled [sequences]; persistent
  last_ids,           // int32 [sequences] by slot; persistent
  inputs,             // what a step is; persistent
  sample_inputs,      // how tokens are drawn; persistent
  constants,          // rope frequencies, experts' addresses; persistent
  count,
};
constexpr size_t kBuffers = static_cast<size_t>(Buffer::count);

struct Workspace {
  ArenaPlan plan;
  std::vector<ArenaBuffer> buffers;  // by Buffer
};
Workspace plan_workspace(const Program& program, const Bucket& bucket, const Arithmetic& arithmetic);

// ---- parts of buffers
// A step's input: everything that one copy brings, for at most so many rows, sequences, heads and page table entries.
struct InputLayout {
  uint64_t counts = 0, sequences = 0, positions = 0, sequence_of = 0, ids = 0, heads = 0, pages = 0, bytes = 0;
};
InputLayout input_layout(int64_t rows, int64_t sequences, int64_t heads, int64_t page_entries);
int64_t most_page_entries(const Bucket& bucket);

struct ExpertListLayout { uint64_t begin = 0, row_of = 0, pair_of = 0, weight = 0, bytes = 0; };
ExpertListLayout expert_list_layout(int64_t rows, int64_t local_experts, int64_t top_k);

// Scratch of the kernels.
uint64_t linear_scratch_bytes(int64_t most_rows_of_a_weight);
uint64_t attention_scratch_bytes(const HeadShape& shape, int32_t most_sequences, int32_t most_context);
uint64_t sample_scratch_bytes(int32_t most_rows, int64_t vocab);
uint64_t sample_input_bytes(const Bucket& bucket, int64_t vocab);  // what all rows need, and the ids that one row has seen

}  // namespace tandem::cuda
