#include "kernels/cuda/tile4_group.cuh"

#include <algorithm>

#include "kernels/cuda/tile4_launch.h"

namespace tandem::cuda {
namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }

struct Shares {
  int splits = 0, warpgroups = 0;
};

// What a launch costs, in cycles of a multiprocessor, fitted to measurements on an H200: blocks of 64 x 64 weights, of which one warpgroup
// alone does fewer than several together; what a unit's sums cost; the activations; what comes before and after.
Shares cheapest(const GroupRows& p, int tokens, int units, int processors, int shared_limit) {
  Shares best;
  double least = 0;
  for (int warpgroups = 2; warpgroups <= kMostWarpgroups; ++warpgroups) {
    for (int splits = 1; splits <= std::min(p.products.slices, processors); ++splits) {
      GroupRows one = p;
      one.splits = splits;
      if (group_rows_shared(tokens, warpgroups, one) > shared_limit) continue;
      const int run = ceil_div(p.products.slices, splits), workers = std::max(1, processors / splits) * warpgroups;
      const int rounds = ceil_div(units, workers), busy = std::min(warpgroups, ceil_div(units, workers / warpgroups));
      double cost = rounds * (run * 8 * std::max(busy * (97 + 0.8 * tokens), 245 + 2.8 * tokens) + (splits > 1 ? 1300 : 3300)) + run * tokens * 1024 / 8.7;
      if (splits > 1) cost += 700 + 450 * splits + static_cast<double>(units) * splits * tokens * 512 / (processors * 7.1);
      if (best.splits == 0 || cost < least) least = cost, best = {splits, warpgroups};
    }
  }
  if (best.splits == 0) fail(Code::internal, "tile4", "no way to multiply " + std::to_string(p.products.rows) + " rows");
  return best;
}

}  // namespace

void launch_group(const Launch& how, GroupRows p, const GroupKernel& kernel, int items, const LinearScratch& scratch) {
  const DeviceInfo& device = *how.device;
  const int units = ceil_div(p.products.tiles, 4), limit = static_cast<int>(device.shared_per_block), most_items = std::max(1, p.most_items);
  const Shares shares = cheapest(p, kernel.tokens, units * items, device.multiprocessors, limit);
  p.splits = shares.splits;
  int at_once = units;
  if (p.splits > 1) {  // as many units as scratch holds, then the others
    const uint64_t from = kTile4CounterBytes + kTile4InputBytes, a_unit = static_cast<uint64_t>(most_items) * p.splits * kernel.tokens * 256;
    const uint64_t room = scratch.bytes > from ? (scratch.bytes - from) / a_unit : 0;
    at_once = static_cast<int>(std::min<uint64_t>({room, kTile4CounterBytes / 4 / most_items, static_cast<uint64_t>(units)}));
    if (at_once < 1) fail(Code::internal, "tile4", "scratch is too small");
    p.arrived = reinterpret_cast<unsigned*>(scratch.memory);
    p.partial = reinterpret_cast<float4*>(scratch.memory + from);
  }
  for (p.first_unit = 0; p.first_unit < units; p.first_unit += at_once) {
    p.end_unit = std::min(units, p.first_unit + at_once);
    const int blocks = std::min(ceil_div((p.end_unit - p.first_unit) * items, shares.warpgroups), std::max(1, device.multiprocessors / p.splits));
    launch(how, kernel.kernel, static_cast<unsigned>(blocks * p.splits), shares.warpgroups * 128, group_rows_shared(kernel.tokens, shares.warpgroups, p), "tile4_group", p);
  }
}

void multiply_group_rows(const Launch& how, const TileProducts& products, const LinearInput& input, bool nested, const LinearScratch& scratch) {
  GroupRows p;
  p.products = products;
  p.values = static_cast<const bf16*>(input.values), p.stride = input.stride, p.row_of = input.row_of;
  const DeviceInfo& device = *how.device;
  launch_group(how, p, nested ? group_kernel<true, false>(device, products.rows) : group_kernel<false, false>(device, products.rows), 1, scratch);
}

}  // namespace tandem::cuda
