#include "kernels/cuda/tile4_share.h"

#include <algorithm>
#include <array>
#include <string>

namespace tandem::cuda {
namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int units_of(const SomeRows& p, const RowsKernel& k) { return p.products.gated ? p.products.tiles / 2 : ceil_div(p.products.tiles, k.tiles); }

// What a launch costs, in cycles of a multiprocessor: its passes, each as slow as the slowest of what the shared memory's pipe lets through,
// what the matrix unit does and what a warp's own latencies are; the activations it fetches; the sums that meet in scratch. Figures fitted
// to measurements on an H200.
double cost_of(const SomeRows& p, const RowsKernel& k, int items, int processors) {
  const int warps = p.row_warps * p.k_warps, tasks = ceil_div(units_of(p, k), p.row_warps) * items;
  const int passes = ceil_div(tasks, std::max(processors / p.splits, 1));
  // Of a block of 64 columns.
  const double pipe = warps * k.tiles * (30 + 8.0 * k.columns / k.tiles), products = 20.0 * warps * k.tiles * k.columns;
  const double alone = (k.tiles == 1 ? 280 : k.ring == 8 ? 420 : 520) + 380 * (k.columns - 1);
  const double a_pass = p.steps * 8 * std::max({pipe, products, alone}) + 1200 + (p.k_warps > 1 ? 300 * k.columns * k.tiles : 0) + (p.splits > 1 ? 3000 : 0);
  double cost = passes * a_pass + (k.ring == 8 ? 0 : 600) + k.columns * 8 * 1024.0 * p.steps * p.k_warps / 48;
  if (p.splits > 1) cost += 500 + 1200 * p.splits + passes * p.row_warps * k.tiles * k.columns * 512.0 * 2 / 24;
  return cost;
}

struct Shares {
  int splits = 0, k_warps = 0, row_warps = 0, steps = 0;
  const RowsKernel* kernel = nullptr;
};

Shares cheapest(const SomeRows& p, std::span<const RowsKernel> kernels, int items, int processors, int shared_limit) {
  const int slices = p.products.slices;
  int columns = 0;  // the fewest that are enough
  for (const RowsKernel& k : kernels) {
    if (columns == 0 || (columns * 8 < p.products.rows && k.columns > columns)) columns = k.columns;
  }
  Shares best;
  double least = 0;
  for (const RowsKernel& k : kernels) {
    if (k.columns != columns || (p.products.gated && k.tiles != 2)) continue;  // a gated unit is a tile of each
    for (int splits = 1; splits <= std::min(slices, 64); ++splits) {
      for (int k_warps = 1; k_warps <= std::min(ceil_div(slices, splits), k.most_warps); ++k_warps) {
        for (int row_warps = 1; row_warps * k_warps <= k.most_warps; ++row_warps) {
          SomeRows one = p;
          one.splits = splits, one.k_warps = k_warps, one.row_warps = row_warps;
          one.steps = ceil_div(ceil_div(slices, splits), k_warps);
          if ((splits - 1) * one.steps * k_warps >= slices || some_rows_shared(k.columns, k.tiles, one) > shared_limit) continue;
          if (items > 1 && splits > 1 && static_cast<uint64_t>(items) * units_of(p, k) * k_warps * 4 > kTile4CounterBytes) continue;
          const double cost = cost_of(one, k, items, processors);
          if (best.kernel == nullptr || cost < least) least = cost, best = {splits, k_warps, row_warps, one.steps, &k};
        }
      }
    }
  }
  if (best.kernel == nullptr) fail(Code::internal, "tile4", "no way to multiply " + std::to_string(p.products.rows) + " rows");
  return best;
}

// cheapest() takes longer than a launch; a model has few shapes, so that the last answers are kept.
Shares remembered(const SomeRows& p, std::span<const RowsKernel> kernels, int items, int processors, int shared_limit) {
  using Key = std::array<int64_t, 8>;
  struct Answer {
    Key key{};
    Shares shares;
  };
  static thread_local std::array<Answer, 64> answers;
  const TileProducts& of = p.products;
  const Key key{of.tiles, of.slices, of.rows, of.gated, items, processors, shared_limit, static_cast<int64_t>(reinterpret_cast<intptr_t>(kernels.data()))};
  uint64_t hash = 0;
  for (const int64_t k : key) hash = (hash ^ static_cast<uint64_t>(k)) * 0x9E3779B97F4A7C15u;
  Answer& answer = answers[hash >> 58];
  if (answer.key != key || answer.shares.kernel == nullptr) answer = {key, cheapest(p, kernels, items, processors, shared_limit)};
  return answer.shares;
}

}  // namespace

void launch_rows(const Launch& how, SomeRows p, std::span<const RowsKernel> kernels, int items, const LinearScratch& scratch) {
  const int processors = how.device->multiprocessors;
  const Shares shares = remembered(p, kernels, items, processors, static_cast<int>(how.device->shared_per_block));
  p.splits = shares.splits, p.k_warps = shares.k_warps, p.row_warps = shares.row_warps, p.steps = shares.steps;
  const RowsKernel* const kernel = shares.kernel;
  const int columns = kernel->columns;
  const int units = units_of(p, *kernel);
  int at_once = units;
  if (p.splits > 1) {  // as many units as scratch holds, then the others
    const uint64_t from = kTile4CounterBytes + kTile4InputBytes, a_unit = static_cast<uint64_t>(items) * p.splits * kernel->tiles * columns * 512;
    const uint64_t room = scratch.bytes > from ? (scratch.bytes - from) / a_unit : 0;
    at_once = static_cast<int>(std::min<uint64_t>({room, kTile4CounterBytes / 4 / p.k_warps / items, static_cast<uint64_t>(units)}));
    if (at_once < 1) fail(Code::internal, "tile4", "scratch is too small");
    p.arrived = reinterpret_cast<unsigned*>(scratch.memory);
    p.partial = reinterpret_cast<float4*>(scratch.memory + from);
  }
  for (p.first_unit = 0; p.first_unit < units; p.first_unit += at_once) {
    p.end_unit = std::min(units, p.first_unit + at_once);
    const int tasks = ceil_div(p.end_unit - p.first_unit, p.row_warps) * items, blocks = std::min(tasks, std::max(1, processors / p.splits));
    launch(how, kernel->kernel, static_cast<unsigned>(blocks * p.splits), p.row_warps * p.k_warps * 32, some_rows_shared(columns, kernel->tiles, p), "tile4_rows", p);
  }
}

}  // namespace tandem::cuda
