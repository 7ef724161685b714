// Mixture of experts: which experts a row takes and with what weight (as Mixtral in transformers: softmax over all experts in fp32,
// the top_k best, renormalized), how rows are grouped so that an expert's weights are read once a step, and how results are joined.
#pragma once
#include <cstdint>
#include <span>

namespace tandem::cpu {

// One row: logits float[experts]; the chosen experts, best first (ties: the lower index), and their weights. NaN logits give NaN weights.
void route(const float* logits, int32_t experts, int32_t top_k, bool normalize, int32_t* chosen, float* weights);

// The (row, choice) pairs that fall to experts [begin, begin + local), ordered by expert, then row.
struct Grouping {
  int32_t* first = nullptr;    // [local + 1]: pairs of local expert e are [first[e], first[e + 1])
  int32_t* row = nullptr;      // [pairs]
  int32_t* pair_of = nullptr;  // [rows * top_k]: where a choice went; -1: to another rank's expert
};
void group(const int32_t* chosen, int32_t rows, int32_t top_k, int32_t begin, int32_t local, const Grouping& out);

// out[0, width) = sum over choices, best first, of weights[c] * results[pair_of[c] * stride + ...]; other ranks' choices add nothing.
void join(const int32_t* pair_of, const float* weights, int32_t top_k, const float* results, int64_t stride, int64_t width, float* out);

// Work of several experts laid end to end and cut at `index` of `count`: units [begin, end) of one of them. Each has `units` units
// that cost `cost` each; `before` is the cost of the experts before it, `total` of all.
struct UnitRange {
  int64_t begin, end;
};
UnitRange cut_units(int64_t units, int64_t cost, int64_t before, int64_t total, int index, int count);

}  // namespace tandem::cpu
