// How a team divides a mixture of experts: rows for the router, then expert after expert laid end to end, each read once.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/cpu/activation.h"
#include "kernels/cpu/interpreter.h"
#include "kernels/cpu/moe.h"

namespace tandem::cpu {

void Interpreter::run(const Moe& r, const Bound& b, int member) {
  const int32_t rows = step_.rows, top_k = r.top_k, local = static_cast<int32_t>(r.gate.size());
  const int members = team_->size();
  auto* chosen = buffer<int32_t>(Buffer::routing);
  auto* weights = reinterpret_cast<float*>(chosen + static_cast<int64_t>(bucket_.rows) * top_k);

  const auto [row_begin, row_end] = part(rows, member, members);
  float* logits = buffer<float>(Buffer::router_logits);
  multiply(b.products[0], b.in, row_begin, row_end - row_begin, 0, b.products[0].weight->tiles(), logits + row_begin * r.experts, r.experts,
           true);
  for (int64_t i = row_begin; i < row_end; ++i) {
    route(logits + i * r.experts, r.experts, top_k, r.normalize, chosen + i * top_k, weights + i * top_k);
  }
  team_->barrier();

  Grouping lists;  // each member makes its own: cheaper than waiting for one
  lists.first = buffer<int32_t>(Buffer::grouping, member * grouping_bytes(r, bucket_.rows));
  lists.row = lists.first + local + 1;
  lists.pair_of = lists.row + static_cast<int64_t>(bucket_.rows) * top_k;
  group(chosen, rows, top_k, r.expert_begin, local, lists);
  const int32_t pairs = lists.first[local];

  const bool in_place = rows == 1;
  const Value& input = in_place ? b.in : b.out;
  if (!in_place) {
    const auto [first, last] = part(pairs, member, members);
    for (int64_t i = first; i < last; ++i) b.out.copy_row(i, b.in, lists.row[i]);
    team_->barrier();
  }

  // A unit costs its bytes, and its arithmetic for every row that takes the expert.
  const auto cost = [&](int32_t e) { return int64_t{8} + lists.first[e + 1] - lists.first[e]; };
  int64_t all = 0;
  for (int32_t e = 0; e < local; ++e) all += lists.first[e + 1] > lists.first[e] ? cost(e) : 0;
  const auto each = [&](int64_t width, int64_t unit, const auto& task) {
    const int64_t units = (width + unit - 1) / unit;
    int64_t before = 0;
    for (int32_t e = 0; e < local; ++e) {
      const int32_t first = lists.first[e], count = lists.first[e + 1] - first;
      if (count == 0) continue;
      const UnitRange range = cut_units(units, cost(e), before, all * units, member, members);
      before += cost(e) * units;
      if (range.begin < range.end) task(e, first, count, range.begin * unit, std::min(width, range.end * unit));
    }
  };
  const auto product = [](const BoundProduct& p, const Value& x, int64_t x_row, int64_t count, int64_t begin, int64_t end, float* y,
                          int64_t stride) {
    const int64_t tile = p.weight->kernel->row_tile;
    multiply(p, x, x_row, count, begin / tile, (end + tile - 1) / tile, y, stride);
  };

  const Value& gated = b.third;
  float* ups = buffer<float>(Buffer::expert_up);
  each(gated.width, b.unit, [&](int32_t e, int32_t first, int32_t count, int64_t begin, int64_t end) {
    float* up = ups + first * gated.width;
    product(b.gate[e], input, in_place ? 0 : first, count, begin, end, gated.row(first), gated.width);
    product(b.up[e], input, in_place ? 0 : first, count, begin, end, up, gated.width);
    for (int64_t i = 0; i < count; ++i) {
      activate(r.activation, gated.row(first + i) + begin, up + i * gated.width + begin, end - begin);
      gated.prepare(first + i, begin, end, features_);
    }
  });
  team_->barrier();

  float* results = buffer<float>(Buffer::expert_results);
  each(hidden_, b.down_unit, [&](int32_t e, int32_t first, int32_t count, int64_t begin, int64_t end) {
    product(b.down[e], gated, first, count, begin, end, results + first * hidden_, hidden_);
  });
  team_->barrier();

  constexpr int64_t kColumns = 256;
  const int64_t pieces = (hidden_ + kColumns - 1) / kColumns;
  const auto [piece_begin, piece_end] = part(rows * pieces, member, members);
  for (int64_t i = piece_begin; i < piece_end; ++i) {
    const int64_t row = i / pieces, begin = i % pieces * kColumns, width = std::min(kColumns, hidden_ - begin);
    join(lists.pair_of + row * top_k, weights + row * top_k, top_k, results + begin, hidden_, width,
         buffer<float>(Buffer::pending) + row * hidden_ + begin);
  }
  team_->barrier();
  if (r.has_shared()) run_shared(r, b, member);
}

// Every row through the shared expert, added to what the chosen ones gave.
void Interpreter::run_shared(const Moe& r, const Bound& b, int member) {
  const int64_t rows = step_.rows, width = b.shared.width;
  const auto product = [&](const BoundProduct& p, const Value& x, int64_t begin, int64_t end, float* y, int64_t stride) {
    const int64_t tile = p.weight->kernel->row_tile;
    multiply(p, x, 0, rows, begin / tile, (end + tile - 1) / tile, y, stride);
  };
  const auto cut = [&](int64_t size, std::initializer_list<const BoundProduct*> products) {  // [begin, end) of rows of a weight
    int64_t unit = 32;  // so that a share is whole blocks of its reader's activations
    for (const BoundProduct* p : products) unit = std::lcm<int64_t>(unit, p->weight->kernel->row_tile);
    const auto [first, last] = part((size + unit - 1) / unit, member, team_->size());
    return std::pair(std::min(size, first * unit), std::min(size, last * unit));
  };
  if (const auto [begin, end] = cut(width, {&b.products[1], &b.products[2]}); begin < end) {
    float* up = buffer<float>(Buffer::up);
    product(b.products[1], b.in, begin, end, b.shared.values, width);
    product(b.products[2], b.in, begin, end, up, width);
    for (int64_t i = 0; i < rows; ++i) {
      activate(r.activation, b.shared.row(i) + begin, up + i * width + begin, end - begin);
      b.shared.prepare(i, begin, end, features_);
    }
  }
  const auto [row_begin, row_end] = part(rows, member, team_->size());
  float* weights = buffer<float>(Buffer::router_logits);
  multiply(b.weigh, b.in, row_begin, row_end - row_begin, 0, b.weigh.weight->tiles(), weights + row_begin, 1, true);
  for (int64_t i = row_begin; i < row_end; ++i) weights[i] = 1 / (1 + std::exp(-weights[i]));
  team_->barrier();

  float* results = buffer<float>(Buffer::expert_results);
  const auto [begin, end] = cut(hidden_, {&b.shared_down});
  if (begin < end) product(b.shared_down, b.shared, begin, end, results, hidden_);
  team_->barrier();
  for (int64_t i = row_begin; i < row_end; ++i) {
    float* pending = buffer<float>(Buffer::pending) + i * hidden_;
    const float* result = results + i * hidden_;
    for (int64_t c = 0; c < hidden_; ++c) pending[c] += weights[i] * result[c];
  }
  team_->barrier();
}

}  // namespace tandem::cpu
