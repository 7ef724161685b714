// The buffers between a program's records: which there are, how large for a bucket, when they live, and where they lie in the one
// block that an executable is given. Activations are fp32. Pure functions.
#pragma once
#include <array>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/cpu/attention.h"
#include "kernels/program/backend.h"

namespace tandem::cpu {

enum class Buffer : uint8_t {
  x,                      // [rows, hidden] residual stream
  pending,                // [rows, hidden]
  word_rows,              // [rows or heads, width] on the other side of a projection of embeddings
  word_rows_prepared,     //
  normalized,             // [rows, hidden]
  normalized_prepared,    // rounded or int8
  queries,                // [rows, heads * head_dim]
  keys,                   // [rows, kv_heads * head_dim]
  values,                 // [rows, kv_heads * head_dim]
  attended,               // [rows, heads * head_dim]
  attended_prepared,      //
  gated,                  // [rows, ffn]
  up,                     // [rows, ffn]
  gated_prepared,         //
  angles,                 // [ropes][rows, rotary]
  attention_scratch,      // [members]
  attention_states,       // [members] of a block, or [split_rows, heads, splits + 1]
  router_logits,          // [rows, experts]
  routing,                // [rows, top_k] experts, then weights
  grouping,               // [members] lists
  expert_rows,            // [pairs, hidden]
  expert_rows_prepared,   //
  expert_gated,           // [pairs, expert ffn]
  expert_up,              // [pairs, expert ffn]
  expert_gated_prepared,  //
  expert_results,         // [pairs, hidden]
  head_rows,              // [heads, hidden]
  head_rows_prepared,     //
  logits_part,            // [heads, part], then all members' [heads, vocab] when there are several
  logits,                 // [heads, vocab]
  sampling,               // [members]
  count,
};
constexpr size_t kBuffers = static_cast<size_t>(Buffer::count);

struct Workspace {
  ArenaPlan plan;
  std::vector<ArenaBuffer> buffers;  // by Buffer
  std::vector<const Rope*> ropes;    // distinct ones of the program
};
Workspace plan_workspace(const Program& program, const Bucket& bucket, const Arithmetic& arithmetic, int members);

AttentionShape attention_shape(const Attend& record, const Bucket& bucket, KvType type);
// Steps of so few rows divide a row's splits among the members; larger ones divide blocks of rows.
int64_t split_rows(const HeadShape& shape, const Bucket& bucket, int members);
int64_t most_splits(const AttentionShape& shape, const Bucket& bucket);
uint64_t attention_scratch_stride(const AttentionShape& shape);  // of one member, 64-byte aligned
uint64_t block_state_bytes(const AttentionShape& shape);         // of one member: a block's states of one split, and those folded
uint64_t grouping_bytes(const Moe& record, int64_t rows);        // of one member
bool same_rope(const Rope& a, const Rope& b);

}  // namespace tandem::cpu
