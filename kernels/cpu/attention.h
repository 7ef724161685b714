// Attention over paged keys and values. A page of one layer and KV head is contiguous: keys transposed [head_dim, page_tokens], so
// that one row of keys' scores is vector arithmetic over tokens, then values [page_tokens, head_dim].
//
// A row's keys are taken in splits of a fixed number of tokens. A split gives its own maximum, sum and weighted values; splits are
// then folded in order. Every number is a function of the row's query and its keys alone, so a row has the same bits whether its
// splits ran on one thread or several, alone or in a block of rows.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/program/arithmetic.h"
#include "kernels/program/record.h"

namespace tandem::cpu {

struct AttentionShape {
  int64_t group = 1;  // query heads that share a KV head
  int64_t head_dim = 0, page_tokens = 0, split_pages = 1;
  int64_t window = 0;  // 0: everything up to the row itself
  float scale = 1, soft_cap = 0;
  KvType type = KvType::fp16;
  int64_t split_tokens() const { return split_pages * page_tokens; }
};
int64_t split_pages(int64_t page_tokens);  // pages of one split

// The pages of one sequence, layer and KV head.
struct HeadPages {
  std::byte* memory = nullptr;  // of page 0
  uint64_t page_stride = 0;     // bytes from page to page
  const int32_t* table = nullptr;
  std::byte* page(int64_t index) const { return memory + static_cast<uint64_t>(table[index]) * page_stride; }
};

// Writes float[head_dim] key and value of one position. key may have been rotated.
void append(const AttentionShape& shape, const HeadPages& pages, int64_t position, const float* key, const float* value);

// Query rows of one sequence and KV head: row r, query head g at queries + r * row_stride + g * head_dim, at position + r.
struct QueryBlock {
  const float* queries = nullptr;
  int64_t row_stride = 0, rows = 0, position = 0;
};
constexpr int64_t kMaxQueries = 64;               // of a block, unless a single row has more
int64_t block_rows(const AttentionShape& shape);  // rows that a block should have (at most), for the K/V reads to be shared

// What folding splits in order leaves: maximum, sum and weighted values of each query [rows * group]; stride floats apart.
inline int64_t state_floats(const AttentionShape& shape) { return shape.head_dim + 2; }
uint64_t attention_scratch_bytes(const AttentionShape& shape);  // of one thread

// First split that any row of the block sees, and one past the last.
int64_t first_split(const AttentionShape& shape, const QueryBlock& block);
int64_t end_split(const AttentionShape& shape, const QueryBlock& block);

// One split of every query into states (not folded): float[rows * group, state_floats]. Queries that see nothing of it get sum 0.
void attend_split(const AttentionShape& shape, const HeadPages& pages, const QueryBlock& block, int64_t split, float* states,
                  std::byte* scratch);
void clear_states(const AttentionShape& shape, int64_t queries, float* states);
// into = fold(into, from), both float[queries, state_floats].
void fold_states(const AttentionShape& shape, int64_t queries, const float* from, float* into);
// out: row r, query head g at out + r * row_stride + g * head_dim.
void finish_states(const AttentionShape& shape, int64_t rows, const float* states, float* out, int64_t row_stride);

}  // namespace tandem::cpu
