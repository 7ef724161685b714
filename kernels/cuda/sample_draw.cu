// All the steps of sampling, by a team of blocks a row that holds the row in shared memory. Probabilities are summed as integers, so that
// atomics and the order of threads do not matter.
#include <algorithm>

#include "kernels/cuda/sample_select.cuh"

namespace tandem::cuda {
namespace {

struct Shared {
  ulonglong2 slots[2];
  Mass masses[kTeamWarps];
  Best bests[32];
  Best top[kMaxLogprobs], of_all[kTeamMembers * kMaxLogprobs];
  int32_t found;
  Selection selection;
};

// A member's part of a row: elements [begin, begin + count) of it.
struct Slice {
  float* values = nullptr;  // what is not left is minus infinity
  int32_t begin = 0, count = 0;
};

__device__ double uniform(uint64_t seed, uint32_t position, uint32_t choice) {  // philox_uniform(seed, position, 0, choice)
  uint32_t c[4] = {position, 0, choice, 0}, key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], c[1] = static_cast<uint32_t>(b);
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], c[3] = static_cast<uint32_t>(a);
    key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
  }
  return (static_cast<double>(c[0] >> 5) * 67108864.0 + static_cast<double>(c[1] >> 6)) / 9007199254740992.0;
}

template <typename F>
__device__ __forceinline__ void each_left(const Slice& slice, const F& f) {
  for (int i = threadIdx.x; i < slice.count; i += kTeamThreads) {
    if (slice.values[i] != -INFINITY) f(slice.values[i]);
  }
}

struct Kept { Mass mass, ties; };  // ties: elements whose key is the limit

template <typename Key>
__device__ Kept keep_up_to(Team& team, const Slice& slice, float limit, const Key& key) {
  Mass mass = 0, ties = 0;
  each_left(slice, [&](float& v) {
    const float k = key(v);
    if (k > limit) {
      v = -INFINITY;
    } else {
      mass += mass_of(v), ties += k == limit;
    }
  });
  Kept all{};
  const Mass of_block = team.block_sum_of(mass);
  team.exchange(Kept{of_block, team.block_sum_of(ties)}, [&](int, const Kept& part) { all.mass += part.mass, all.ties += part.ties; });
  return all;
}

// What comes before this thread's warp in the slice, when every warp has a run of it and `mine` is this lane's part of the run's sum,
// which becomes `of_warp`. The caller syncs before the next use of team.masses.
__device__ __forceinline__ Mass before_warp(Team& team, Mass mine, Mass& of_warp) {
#pragma unroll
  for (int l = 16; l > 0; l /= 2) mine += __shfl_xor_sync(~0u, mine, l);
  of_warp = mine;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) team.masses[warp] = mine;
  __syncthreads();
  Mass at = 0;
  for (int w = 0; w < warp; ++w) at += team.masses[w];
  return at;
}

struct Run { int begin, end; };
__device__ __forceinline__ Run run_of_warp(const Slice& slice) {
  const int run = (slice.count + kTeamWarps - 1) / kTeamWarps, warp = threadIdx.x / 32;
  return {min(warp * run, slice.count), min((warp + 1) * run, slice.count)};
}

// Of the ids whose value is `tie` the first `keep` stay.
__device__ void keep_first(Team& team, const Slice& slice, float tie, Mass keep) {
  const int lane = threadIdx.x % 32;
  const Run run = run_of_warp(slice);
  Mass ties = 0, of_warp = 0, of_block = 0;
  for (int i = run.begin + lane; i < run.end; i += 32) ties += slice.values[i] == tie;
  Mass at = before_warp(team, ties, of_warp);
  for (int w = 0; w < kTeamWarps; ++w) of_block += team.masses[w];
  team.exchange(of_block, [&](int m, Mass part) { at += m < team.rank ? part : 0; });
  for (int first = run.begin; first < run.end; first += 32) {
    const int i = first + lane;
    const bool hit = i < run.end && slice.values[i] == tie;
    const unsigned hits = __ballot_sync(~0u, hit);
    if (hit && at + __popc(hits & ((1u << lane) - 1)) >= keep) slice.values[i] = -INFINITY;
    at += __popc(hits);
  }
  __syncthreads();
}

// The first id whose cumulative mass exceeds `target`, if it is in this slice; else -1.
__device__ int32_t invert(Team& team, Shared& s, const Slice& slice, Mass target) {
  const int lane = threadIdx.x % 32;
  const Run run = run_of_warp(slice);
  if (threadIdx.x == 0) s.found = -1;  // seen by all after before_warp
  Mass sum = 0, of_warp = 0, of_block = 0;
  for (int i = run.begin + lane; i < run.end; i += 32) sum += mass_of(slice.values[i]);
  Mass at = before_warp(team, sum, of_warp);
  for (int w = 0; w < kTeamWarps; ++w) of_block += team.masses[w];
  team.exchange(of_block, [&](int m, Mass part) { at += m < team.rank ? part : 0; });
  if (target >= at && target < at + of_warp) {  // one warp of the team
    for (int first = run.begin; first < run.end; first += 32) {
      const int i = first + lane;
      Mass mine = i < run.end ? mass_of(slice.values[i]) : 0;
#pragma unroll
      for (int l = 1; l < 32; l *= 2) {
        const Mass other = __shfl_up_sync(~0u, mine, l);
        if (lane >= l) mine += other;
      }
      const unsigned past = __ballot_sync(~0u, at + mine > target);
      if (past != 0) {
        if (lane == 0) s.found = slice.begin + first + __ffs(past) - 1;
        break;
      }
      at += __shfl_sync(~0u, mine, 31);
    }
  }
  __syncthreads();
  return s.found;
}

// The filters over values that are at most 0, in their order; the mass of what they leave.
__device__ Mass filter(Team& team, Selection& s, const Slice& slice, const Sampling& o, int64_t vocab, Mass total) {
  const auto below_best = [](float v) { return fabsf(v); };
  const auto mass = [](float v) { return mass_of(v); };
  const auto share = [&](float p) { return max(static_cast<Mass>(ceil(static_cast<double>(p) * static_cast<double>(total))), Mass{1}); };
  Mass before = 0;
  if (o.top_k > 0 && o.top_k < vocab) {
    const float limit = last_within(team, s, slice.values, slice.count, static_cast<Mass>(o.top_k), below_best, [](float) { return Mass{1}; }, before);
    total = keep_up_to(team, slice, limit, below_best).mass;
  }
  if (o.top_p < 1) {
    const Mass wanted = share(o.top_p);
    const float limit = last_within(team, s, slice.values, slice.count, wanted, below_best, mass, before);
    const Kept kept = keep_up_to(team, slice, limit, below_best);
    const Mass each = max(mass_of(-limit), Mass{1}), missing = wanted > before ? wanted - before : 0;
    const Mass keep = max((missing + each - 1) / each, Mass{1});  // of those that equal the last one
    total = kept.mass;
    if (kept.ties > keep) {
      keep_first(team, slice, -limit, keep);
      total -= (kept.ties - keep) * mass_of(-limit);
    }
  }
  if (o.min_p > 0) total = keep_up_to(team, slice, -logf(fminf(o.min_p, 1.0f)), below_best).mass;
  if (o.typical_p < 1) {  // information is log(total) - value, entropy log(total) - mean value: their distance needs no logarithm
    double weighted = 0, weights = 0;
    each_left(slice, [&](float v) {
      const float w = expf(v);
      weighted += static_cast<double>(v) * static_cast<double>(w), weights += static_cast<double>(w);
    });
    weighted = team.sum(weighted);
    const auto mean = static_cast<float>(weighted / team.sum(weights));
    const auto distance = [mean](float v) { return fabsf(__fsub_rn(v, mean)); };
    const float limit = last_within(team, s, slice.values, slice.count, share(o.typical_p), distance, mass, before);
    total = keep_up_to(team, slice, limit, distance).mass;
  }
  return total;
}

// The best `wanted` ids of the row with the logits as they are: each member finds as many of its own, the first one merges.
__device__ void report(Team& team, Shared& s, const Slice& slice, int wanted, float log_total, Sampled& out) {
  const auto best_of_thread = [&] {
    Best best;
    for (int i = threadIdx.x; i < slice.count; i += kTeamThreads) {
      if (slice.values[i] > best.value) best = {slice.values[i], slice.begin + i};
    }
    return best;
  };
  Best mine = best_of_thread();
  for (int n = 0; n < wanted; ++n) {
    const Best best = block_best(mine, s.bests);
    if (threadIdx.x == 0) s.top[n] = best;
    if (best.id != kNoId && mine.id == best.id) {
      slice.values[best.id - slice.begin] = -INFINITY;
      mine = best_of_thread();
    }
  }
  team.meet();
  if (team.rank != 0) return;
  const int all = team.size * wanted;
  for (int i = threadIdx.x; i < all; i += kTeamThreads) s.of_all[i] = team.of(s.top, i / wanted)[i % wanted];
  __syncthreads();
  const Best candidate = static_cast<int>(threadIdx.x) < all ? s.of_all[threadIdx.x] : Best{};
  int place = 0;
  for (int i = 0; i < all; ++i) place += s.of_all[i].value > candidate.value || (s.of_all[i].value == candidate.value && s.of_all[i].id < candidate.id);
  const bool reported = candidate.id != kNoId && place < wanted;
  if (reported) out.top_ids[place] = candidate.id, out.top_logprobs[place] = candidate.value - log_total;
  const int count = __syncthreads_count(reported);
  if (threadIdx.x == 0) out.top_count = count;
}

__device__ void load(const Slice& slice, const float* logits, int64_t vocab, bool whole) {
  const int quads = (slice.count + 3) / 4;
  const int64_t first = slice.begin / 4;  // slices begin at whole quads
#pragma unroll 4
  for (int q = threadIdx.x; q < quads; q += kTeamThreads) reinterpret_cast<float4*>(slice.values)[q] = load_quad(logits, first + q, vocab, whole);
  __syncthreads();
}

// Biases and penalties, of ids seen, then what is forbidden or not allowed: rounded as on CPUs, no product fused with a sum.
__device__ void change(const SampleCall& call, const SampleRowOnDevice& row, const Slice& slice) {
  const Sampling& o = row.sampling;
  for (int i = row.counts_begin + static_cast<int>(threadIdx.x); i < row.counts_end; i += kTeamThreads) {
    const TokenCount count = call.counts[i];
    const int at = count.id - slice.begin;
    if (count.id < 0 || at < 0 || at >= slice.count) continue;
    float v = __fadd_rn(slice.values[at], count.bias);
    if (count.prompt > 0 || count.generated > 0) v = v < 0 ? __fmul_rn(v, o.repetition_penalty) : __fdiv_rn(v, o.repetition_penalty);
    if (count.generated > 0) {
      v = __fsub_rn(v, __fadd_rn(o.presence_penalty, __fmul_rn(o.frequency_penalty, static_cast<float>(count.generated))));
    }
    slice.values[at] = v;
  }
  __syncthreads();
  for (int i = row.forbidden_begin + static_cast<int>(threadIdx.x); i < row.forbidden_end; i += kTeamThreads) {
    const int at = call.forbidden[i] - slice.begin;
    if (call.forbidden[i] >= 0 && at >= 0 && at < slice.count) slice.values[at] = -INFINITY;
  }
  const int words = row.allowed_end - row.allowed_begin;
  for (int i = static_cast<int>(threadIdx.x); words > 0 && i < slice.count; i += kTeamThreads) {
    const int id = slice.begin + i, word = id / 32;
    if (word >= words || !(call.allowed[row.allowed_begin + word] >> (id % 32) & 1)) slice.values[i] = -INFINITY;
  }
  __syncthreads();
}

__device__ void draw_row(const SampleCall& call, const SampleRowOnDevice& row, const RawBest& raw, Team& team, Shared& s, const Slice& slice, bool whole,
                         Sampled& out) {
  const Sampling& o = row.sampling;
  const bool changed = row.counts_end > row.counts_begin || row.forbidden_end > row.forbidden_begin || row.allowed_end > row.allowed_begin;
  const int wanted = static_cast<int>(min(static_cast<int64_t>(min(o.logprobs, kMaxLogprobs)), call.vocab));
  if (!changed && o.temperature <= 0 && wanted <= 0) return;  // has been drawn
  if (raw.value != raw.value) return;                         // NaN: has been refused

  const float* logits = call.logits + static_cast<int64_t>(row.head) * call.vocab;
  const auto settle = [&](int32_t id) {  // by one thread of the team
    out.id = id;
    out.logprob = id >= 0 && o.logprobs >= 0 ? logits[id] - raw.sum : 0;
    call.last_ids[row.slot] = max(id, 0);
  };
  load(slice, logits, call.vocab, whole);
  if (changed || o.temperature > 0) {
    Best best{raw.value, raw.id};
    if (changed) {
      change(call, row, slice);
      best = {};
      for (int i = threadIdx.x; i < slice.count; i += kTeamThreads) best = better(best, {slice.values[i], slice.begin + i});
      best = team.best(best);
    }
    if (!(best.value > -INFINITY)) {  // NaN, or nothing is left
      if (team.rank == 0 && threadIdx.x == 0) settle(-1);
      return;
    }
    if (o.temperature <= 0 || best.value == INFINITY) {
      if (team.rank == 0 && threadIdx.x == 0) settle(best.id);
    } else {
      Mass total = 0;
      each_left(slice, [&](float& v) {
        v = __fsub_rn(v, best.value);
        if (o.temperature != 1) v = __fdiv_rn(v, o.temperature);
        total += mass_of(v);
      });
      total = filter(team, s.selection, slice, o, call.vocab, team.sum(total));
      const Mass target = min(static_cast<Mass>(uniform(o.seed, static_cast<uint32_t>(row.position), o.choice) * static_cast<double>(total)), total - 1);
      const int32_t id = invert(team, s, slice, target);
      if (id >= 0 && threadIdx.x == 0) settle(id);
    }
    if (wanted > 0) load(slice, logits, call.vocab, whole);
  }
  if (wanted > 0) report(team, s, slice, wanted, raw.sum, out);
}

__global__ void TANDEM_TEAM __launch_bounds__(kTeamThreads, 2) draw_rows(const SampleCall call, const SampleScratch layout, bool whole, bool in_shared) {
  extern __shared__ __align__(16) float dynamic[];
  __shared__ Shared s;
  let_next_begin();
  wait_for_previous();
  Team team;
#if __CUDA_ARCH__ >= 900
  team.size = kTeamMembers, team.rank = blockIdx.x % kTeamMembers;
#endif
  team.slots = s.slots, team.masses = s.masses, team.bests = s.bests;
  const int index = blockIdx.x / team.size, teams = gridDim.x / team.size;
  const int share = static_cast<int>((call.vocab + 4 * team.size - 1) / (4 * team.size)) * 4;
  Slice slice;
  slice.begin = team.rank * share;
  slice.count = static_cast<int>(max(min(static_cast<int64_t>(share), call.vocab - slice.begin), int64_t{0}));
  slice.values = in_shared ? dynamic : reinterpret_cast<float*>(call.scratch) + index * layout.stride + slice.begin;
  const int count = *call.count;
  for (int i = index; i < count; i += teams) {
    const RawBest raw = *reinterpret_cast<const RawBest*>(call.scratch + layout.rows + i * kSampleRowBytes + kSampleRaw);
    draw_row(call, call.rows[i], raw, team, s, slice, whole, call.out[i]);
    team.meet();  // nobody leaves, or begins another row, while others may read its shared memory
  }
}

}  // namespace

void draw(const Launch& how, const SampleCall& call, const SampleScratch& layout) {
  const bool clusters = how.device->major >= 9;
  const int64_t members = clusters ? kTeamMembers : 1;
  const size_t slice = static_cast<size_t>((call.vocab + 4 * members - 1) / (4 * members)) * 4 * sizeof(float);
  const size_t most = how.device->shared_per_block - sizeof(Shared) - 1024;  // of what a block may have, beside its static part
  static OncePerDevice once;
  if (once.first(*how.device)) allow_shared(draw_rows, most, "sampling");
  const bool in_shared = slice <= most, whole = call.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(call.logits) % 16 == 0;
  const int64_t teams = in_shared ? call.most_rows : std::min(call.most_rows, kSampleTeams);
  launch(how, draw_rows, dim3(static_cast<unsigned>(teams * members)), dim3(kTeamThreads), in_shared ? slice : 0, "sampling", call, layout, whole, in_shared);
}

}  // namespace tandem::cuda
