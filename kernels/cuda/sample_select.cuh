// Where the elements that a filter keeps end, without a sort: the range of keys is cut into bins of equal width, the bin in which the
// limit lies is cut again, until few elements are left to be compared with one another.
#pragma once
#include "kernels/cuda/sample_team.cuh"

namespace tandem::cuda {

constexpr int kBins = 2048, kFewLeft = kTeamThreads;  // few: one a thread
constexpr float kFirstRange = 32.0f;                  // keys of what weighs something; all above are in the last bin

struct Selection {  // shared
  uint32_t low[kBins], high[kBins];  // 64-bit sums in halves: 32-bit atomics are fast
  uint32_t listed_bits[kFewLeft], few_bits[kFewLeft];
  Mass listed[kFewLeft], few[kFewLeft];  // this member's part of what is left, and all of it
  uint32_t count, least, most, found;
  int32_t bin;
  Mass before;
};

// Keys are never negative: their bits are in their order.
struct Range {
  uint32_t least = 0, most = 0x7f7fffff;
  float base = 0, scale = kBins / kFirstRange;
  int shift = -1;  // not negative: bins by bits

  __device__ __forceinline__ void narrow(uint32_t to_least, uint32_t to_most) {
    least = to_least, most = to_most, base = __uint_as_float(least), shift = -1;
    const float width = __uint_as_float(most) - base;
    scale = kBins / width;
    if (width < 1e-30f) shift = max(0, 32 - __clz(static_cast<int>(most - least)) - 11);
  }
  __device__ __forceinline__ bool holds(uint32_t bits) const { return bits >= least && bits <= most; }
  __device__ __forceinline__ int bin(uint32_t bits) const {
    if (shift >= 0) return static_cast<int>((bits - least) >> shift);
    return static_cast<int>(fminf(__fmul_rn(__fsub_rn(__uint_as_float(bits), base), scale), kBins - 1.0f));
  }
};
static_assert(kBins == 1 << 11);

// The bin in which the sums reach `limit` (or the last one that holds anything), after the team has filled its bins; `before` becomes
// the sum of all bins below.
__device__ __forceinline__ int find_bin(Team& team, Selection& s, Mass limit, Mass& before) {
  const int part = kBins / team.size, first = team.rank * part;
  team.meet();
  Mass mine = 0;
  for (int b = first + static_cast<int>(threadIdx.x); b < first + part; b += kTeamThreads) {  // each member sums its part of the bins
    Mass sum = 0;
    for (int m = 0; m < team.size; ++m) sum += (static_cast<Mass>(team.of(s.high, m)[b]) << 32) + team.of(s.low, m)[b];
    s.low[b] = static_cast<uint32_t>(sum), s.high[b] = static_cast<uint32_t>(sum >> 32);  // nobody else reads this part of this block's
    mine += sum;
  }
  int owner = 0;
  Mass at = before, of_owner = before;
  bool done = false;
  team.exchange(team.block_sum_of(mine), [&](int m, Mass sum) {
    if (done || sum == 0) return;
    owner = m, of_owner = at;
    at += sum;
    done = at >= limit;
  });
  if (threadIdx.x < 32) {  // a run of bins a lane
    const uint32_t *low = team.of(s.low, owner) + owner * part, *high = team.of(s.high, owner) + owner * part;
    const int run = part / 32, lane = threadIdx.x;
    const auto bin = [&](int k) { return static_cast<Mass>(high[lane * run + k]) << 32 | low[lane * run + k]; };
    Mass sum = 0;
    for (int k = 0; k < run; ++k) sum += bin(k);
    Mass upto = sum;
#pragma unroll
    for (int l = 1; l < 32; l *= 2) {
      const Mass other = __shfl_up_sync(~0u, upto, l);
      if (lane >= l) upto += other;
    }
    const unsigned reach = __ballot_sync(~0u, sum > 0 && of_owner + upto >= limit), some = __ballot_sync(~0u, sum > 0);
    const int chosen = reach != 0 ? __ffs(reach) - 1 : 31 - __clz(static_cast<int>(some));
    if (lane == chosen) {
      Mass below = of_owner + upto - sum, passed = below;
      int found = 0;
      for (int k = 0; k < run; ++k) {
        const Mass w = bin(k);
        if (w == 0) continue;
        found = k, below = passed;
        passed += w;
        if (passed >= limit) break;
      }
      s.bin = owner * part + lane * run + found, s.before = below;
    }
  }
  __syncthreads();
  before = s.before;
  return s.bin;
}

// Among elements that are left (above minus infinity), in ascending order of keys: the key of the first at which the sum of weights
// reaches `limit` (at least 1), or else of the last one that weighs anything; `before`: the weight of lower keys. Some weigh something.
template <typename Key, typename Weight>
__device__ float last_within(Team& team, Selection& s, const float* values, int count, Mass limit, const Key& key, const Weight& weight, Mass& before) {
  Range range;
  before = 0;
  for (;;) {
    for (int b = threadIdx.x; b < kBins; b += kTeamThreads) s.low[b] = 0, s.high[b] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kTeamThreads) {
      const float v = values[i];
      if (v == -INFINITY) continue;
      const uint32_t bits = __float_as_uint(key(v));
      if (!range.holds(bits)) continue;
      const Mass w = weight(v);
      if (w == 0) continue;
      const int b = range.bin(bits);
      const auto low = static_cast<uint32_t>(w);
      const uint32_t former = atomicAdd(&s.low[b], low), carry = former + low < former;
      const uint32_t high = static_cast<uint32_t>(w >> 32) + carry;
      if (high != 0) atomicAdd(&s.high[b], high);
    }
    const int chosen = find_bin(team, s, limit, before);

    if (threadIdx.x == 0) s.count = 0, s.least = ~0u, s.most = 0, s.found = ~0u;
    __syncthreads();
    uint32_t least = ~0u, most = 0;
    for (int i = threadIdx.x; i < count; i += kTeamThreads) {
      const float v = values[i];
      if (v == -INFINITY) continue;
      const uint32_t bits = __float_as_uint(key(v));
      if (!range.holds(bits) || range.bin(bits) != chosen) continue;
      const Mass w = weight(v);
      if (w == 0) continue;
      least = min(least, bits), most = max(most, bits);
      const uint32_t at = atomicAdd(&s.count, 1);
      if (at < kFewLeft) s.listed_bits[at] = bits, s.listed[at] = w;
    }
    least = __reduce_min_sync(~0u, least), most = __reduce_max_sync(~0u, most);
    if (threadIdx.x % 32 == 0) atomicMin(&s.least, least), atomicMax(&s.most, most);
    __syncthreads();
    struct Left { uint32_t count, least, most; };
    int total = 0;
    int begins[kTeamMembers + 1] = {};
    least = ~0u, most = 0;
    team.exchange(Left{s.count, s.least, s.most}, [&](int m, const Left& left) {
      total += static_cast<int>(left.count);
      begins[m + 1] = total;
      least = min(least, left.least), most = max(most, left.most);
    });
    if (least == most) return __uint_as_float(least);
    if (total > kFewLeft) {
      range.narrow(least, most);
      continue;
    }

#pragma unroll
    for (int m = 0; m < kTeamMembers; ++m) {
      if (m >= team.size) break;
      const int at = static_cast<int>(threadIdx.x) - begins[m];
      if (at < 0 || static_cast<int>(threadIdx.x) >= begins[m + 1]) continue;
      s.few_bits[threadIdx.x] = team.of(s.listed_bits, m)[at], s.few[threadIdx.x] = team.of(s.listed, m)[at];
    }
    __syncthreads();
    const uint32_t mine = static_cast<int>(threadIdx.x) < total ? s.few_bits[threadIdx.x] : ~0u;
    if (mine != ~0u) {
      Mass upto = before;
      for (int i = 0; i < total; ++i) upto += s.few_bits[i] <= mine ? s.few[i] : 0;
      if (upto >= limit) atomicMin(&s.found, mine);
    }
    __syncthreads();
    const uint32_t found = min(s.found, most);
    before += team.block_sum_of(mine < found ? s.few[threadIdx.x] : Mass{0});
    return __uint_as_float(found);
  }
}

}  // namespace tandem::cuda
