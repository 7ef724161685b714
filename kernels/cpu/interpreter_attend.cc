// How a team divides attention: blocks of query rows when there are many, a row's splits when there are few.
#include <algorithm>

#include "kernels/cpu/interpreter.h"

namespace tandem::cpu {

void Interpreter::run(const Attend& r, const Bound& b, int member) {
  int64_t splits = 0;  // of the row that has most
  for (const SequenceRows& s : step_.sequences) {
    const QueryBlock last{nullptr, 0, 1, s.position + s.rows - 1};
    splits = std::max(splits, end_split(b.attention, last) - first_split(b.attention, last));
  }
  if (splits > 1 && step_.rows <= split_rows(r.shape, bucket_, team_->size()))
    attend_splits(r, b, member);
  else
    attend_blocks(r, b, member);
  team_->barrier();
  if (b.fused_preparation || !b.out.preparation.any()) return;
  const auto [first, last] = part(step_.rows, member, team_->size());
  for (int64_t i = first; i < last; ++i) b.out.prepare(i, 0, b.out.width, features_);
  team_->barrier();
}

// Each member takes tasks (block of rows, KV head) that lie in its part of the whole cost, laid end to end.
void Interpreter::attend_blocks(const Attend& r, const Bound& b, int member) {
  const AttentionShape& shape = b.attention;
  const int64_t kv_heads = r.shape.kv_heads, part_width = shape.group * shape.head_dim, block = block_rows(shape);
  float* states = buffer<float>(Buffer::attention_states, member * block_state_bytes(shape));
  std::byte* scratch = buffer<std::byte>(Buffer::attention_scratch, member * attention_scratch_stride(shape));
  const auto each = [&](const auto& task) {
    int64_t before = 0;
    for (const SequenceRows& s : step_.sequences) {
      for (int64_t row = 0; row < s.rows; row += block) {
        QueryBlock queries{nullptr, b.in.width, std::min<int64_t>(block, s.rows - row), s.position + row};
        const int64_t seen = (end_split(shape, queries) - first_split(shape, queries)) * shape.split_tokens();
        const int64_t cost = queries.rows * shape.group * std::min(seen, queries.position + queries.rows) + 64;
        for (int64_t head = 0; head < kv_heads; ++head, before += cost) task(s, queries, s.row + row, head, before);
      }
    }
    return before;
  };
  const int64_t total = team_->size() == 1 ? 1 : each([](const auto&...) {});
  const auto [low, high] = part(total, member, team_->size());
  each([&, low = low, high = high](const SequenceRows& s, QueryBlock queries, int64_t row, int64_t head, int64_t before) {
    if (team_->size() > 1 && (before < low || before >= high)) return;
    queries.queries = b.in.row(row) + head * part_width;
    const HeadPages pages = head_pages(r.kv, shape, head, s);
    const int64_t count = queries.rows * shape.group;
    float* folded = states + count * state_floats(shape);
    clear_states(shape, count, folded);
    for (int64_t split = first_split(shape, queries); split < end_split(shape, queries); ++split) {
      attend_split(shape, pages, queries, split, states, scratch);
      fold_states(shape, count, states, folded);
    }
    finish_states(shape, queries.rows, folded, b.out.row(row) + head * part_width, b.out.width);
    if (!b.fused_preparation) return;
    for (int64_t i = 0; i < queries.rows; ++i) b.out.prepare(row + i, head * part_width, (head + 1) * part_width, features_);
  });
}

// Tasks (row, KV head, split), each into a place of its own; then (row, KV head) folds its splits in order.
void Interpreter::attend_splits(const Attend& r, const Bound& b, int member) {
  const AttentionShape& shape = b.attention;
  const int64_t kv_heads = r.shape.kv_heads, part_width = shape.group * shape.head_dim;
  const int64_t state = shape.group * state_floats(shape), places = most_splits(shape, bucket_) + 1;  // the first is for the fold
  std::byte* scratch = buffer<std::byte>(Buffer::attention_scratch, member * attention_scratch_stride(shape));
  const auto each = [&](const auto& task) {
    for (const SequenceRows& s : step_.sequences) {
      for (int64_t row = s.row; row < s.row + s.rows; ++row) {
        for (int64_t head = 0; head < kv_heads; ++head) {
          const QueryBlock query{b.in.row(row) + head * part_width, b.in.width, 1, s.position + row - s.row};
          task(s, query, row, head, buffer<float>(Buffer::attention_states) + (row * kv_heads + head) * places * state);
        }
      }
    }
  };
  int64_t total = 0, at = 0;
  each([&](const SequenceRows&, const QueryBlock& query, int64_t, int64_t, float*) {
    total += end_split(shape, query) - first_split(shape, query);
  });
  const auto [low, high] = part(total, member, team_->size());
  each([&, low = low, high = high](const SequenceRows& s, const QueryBlock& query, int64_t, int64_t head, float* states) {
    for (int64_t split = first_split(shape, query); split < end_split(shape, query); ++split, ++at) {
      if (at >= low && at < high)
        attend_split(shape, head_pages(r.kv, shape, head, s), query, split, states + (1 + split) * state, scratch);
    }
  });
  team_->barrier();
  int64_t index = 0;
  const auto [first, last] = part(step_.rows * kv_heads, member, team_->size());
  each([&, first = first, last = last](const SequenceRows&, const QueryBlock& query, int64_t row, int64_t head, float* states) {
    if (index++ < first || index > last) return;
    clear_states(shape, shape.group, states);
    for (int64_t split = first_split(shape, query); split < end_split(shape, query); ++split) {
      fold_states(shape, shape.group, states + (1 + split) * state, states);
    }
    finish_states(shape, 1, states, b.out.row(row) + head * part_width, b.out.width);
    if (b.fused_preparation) b.out.prepare(row, head * part_width, (head + 1) * part_width, features_);
  });
}

}  // namespace tandem::cpu
