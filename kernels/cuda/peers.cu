#include "kernels/cuda/peers.h"

#include <algorithm>

#include "kernels/cuda/peer_memory.h"

namespace tandem::cuda {
namespace {

struct View {  // what a kernel sees
  int index, size;
  std::byte* blocks[kMostPeers];
  const uint32_t* abort;
  size_t tiles;  // where they are in a block
  int tile;      // quads
};

constexpr int kPullThreads = 512, kBatch = kLongestTile / kPullThreads;
constexpr uint32_t kPollsBetweenLooks = 256;  // at the abort word, which is across PCIe

__device__ __forceinline__ bool aborted(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value != 0;
}

// Zero is what a fresh block holds; two steps over it keep odd and even in turn.
__device__ __forceinline__ uint32_t next_epoch(const uint32_t* epochs) {
  const uint32_t next = epochs[blockIdx.x] + 1;
  return next == 0 ? 2 : next;
}

// Eight bytes are written and read as one, so a number is there when the epoch beside it is.
__device__ __forceinline__ void post(uint4* slot, float a, float b, uint32_t epoch) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(slot), "r"(__float_as_uint(a)), "r"(epoch), "r"(__float_as_uint(b)),
               "r"(epoch)
               : "memory");
}
__device__ __forceinline__ uint4 peek(const uint4* slot) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(slot) : "memory");
  return v;
}
__device__ __forceinline__ bool take(const uint4* slot, uint32_t epoch, const uint32_t* abort, float2& values) {
  for (uint32_t polls = 1;; ++polls) {
    const uint4 v = peek(slot);
    if (v.y == epoch && v.w == epoch) {
      values = {__uint_as_float(v.x), __uint_as_float(v.z)};
      return true;
    }
    if (polls % kPollsBetweenLooks == 0 && aborted(abort)) return false;
  }
}

__device__ __forceinline__ uint4* inbox(const View& view, int of, int from, uint32_t epoch) {
  return reinterpret_cast<uint4*>(view.blocks[of] + PeerBlock::kInbox) + (static_cast<size_t>(epoch & 1) * view.size + from) * kEagerPackets;
}

__device__ __forceinline__ bool is_aligned(const void* p, size_t to) { return (reinterpret_cast<uintptr_t>(p) & (to - 1)) == 0; }

// Two floats of float[count], whatever its alignment and length.
__device__ __forceinline__ float2 load2(const float* values, uint32_t pair, uint32_t count, bool aligned) {
  const uint32_t i = 2 * pair;
  if (aligned && i + 1 < count) return *reinterpret_cast<const float2*>(values + i);
  return {values[i], i + 1 < count ? values[i + 1] : 0.f};
}
__device__ __forceinline__ void store2(float* values, uint32_t pair, uint32_t count, bool aligned, float2 v) {
  const uint32_t i = 2 * pair;
  if (aligned && i + 1 < count) {
    *reinterpret_cast<float2*>(values + i) = v;
    return;
  }
  values[i] = v.x;
  if (i + 1 < count) values[i + 1] = v.y;
}

// out (+)= sum over members of their float[count].
template <bool kInto>
__global__ void __launch_bounds__(512) eager_sum_kernel(const __grid_constant__ View view, const float* partial, float* out, uint32_t count) {
  let_next_begin();
  wait_for_previous();
  auto* epochs = reinterpret_cast<uint32_t*>(view.blocks[view.index] + PeerBlock::kEagerEpochs);
  const uint32_t epoch = next_epoch(epochs);
  const uint32_t packets = (count + 1) / 2, first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
  const bool in_aligned = is_aligned(partial, sizeof(float2)), out_aligned = is_aligned(out, sizeof(float2));
  for (uint32_t p = first; p < packets; p += step) {
    const float2 mine = load2(partial, p, count, in_aligned);
    for (int k = 1; k < view.size; ++k) {
      const int to = view.index + k < view.size ? view.index + k : view.index + k - view.size;
      post(inbox(view, to, view.index, epoch) + p, mine.x, mine.y, epoch);
    }
  }
  bool alive = true;
  for (uint32_t p = first; p < packets && alive; p += step) {
    float2 sum = {0.f, 0.f}, old = {0.f, 0.f};
    if (kInto) old = load2(out, p, count, out_aligned);
    for (int member = 0; member < view.size && alive; ++member) {
      float2 term;
      if (member == view.index) {
        term = load2(partial, p, count, in_aligned);
      } else {
        alive = take(inbox(view, view.index, member, epoch) + p, epoch, view.abort, term);
      }
      sum = member == 0 ? term : float2{sum.x + term.x, sum.y + term.y};
    }
    if (!alive) break;
    store2(out, p, count, out_aligned, kInto ? float2{old.x + sum.x, old.y + sum.y} : sum);
  }
  __syncthreads();  // all have read the epoch
  if (threadIdx.x == 0) epochs[blockIdx.x] = epoch;
}

__device__ __forceinline__ uint32_t* arrival(const View& view, int phase, int of, int from) {
  return reinterpret_cast<uint32_t*>(view.blocks[of] + PeerBlock::kArrivals) + (phase * kMostPeers + from) * kPullBlocks + blockIdx.x;
}

// What this thread block wrote is there for the others'.
__device__ __forceinline__ void signal(const View& view, int phase, uint32_t epoch) {
  __syncthreads();
  if (threadIdx.x < view.size && threadIdx.x != view.index) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(arrival(view, phase, static_cast<int>(threadIdx.x), view.index)), "r"(epoch) : "memory");
  }
}
// The thread blocks of this index of all others have signalled as much. False: aborted.
__device__ __forceinline__ bool await(const View& view, int phase, uint32_t epoch) {
  bool alive = true;
  if (threadIdx.x < view.size && threadIdx.x != view.index) {
    const uint32_t* word = arrival(view, phase, view.index, static_cast<int>(threadIdx.x));
    for (uint32_t polls = 1;; ++polls) {
      uint32_t value;
      asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
      if (static_cast<int32_t>(value - epoch) >= 0) break;  // they may be ahead
      if (polls % kPollsBetweenLooks == 0 && aborted(view.abort)) {
        alive = false;
        break;
      }
    }
  }
  return __syncthreads_and(alive);
}

__device__ __forceinline__ float4* slot(const View& view, int of, uint32_t epoch) {
  return reinterpret_cast<float4*>(view.blocks[of] + view.tiles) + (blockIdx.x * kTileSlots + epoch % kTileSlots) * static_cast<size_t>(view.tile);
}

// Four floats of float[count], whatever its alignment and length.
__device__ __forceinline__ float4 load4(const float* values, size_t quad, size_t count, bool aligned) {
  const size_t i = 4 * quad;
  if (aligned && i + 4 <= count) return *reinterpret_cast<const float4*>(values + i);
  float4 v;
  v.x = i < count ? values[i] : 0.f;
  v.y = i + 1 < count ? values[i + 1] : 0.f;
  v.z = i + 2 < count ? values[i + 2] : 0.f;
  v.w = i + 3 < count ? values[i + 3] : 0.f;
  return v;
}
__device__ __forceinline__ void store4(float* values, size_t quad, size_t count, bool aligned, float4 v) {
  const size_t i = 4 * quad;
  if (aligned && i + 4 <= count) {
    *reinterpret_cast<float4*>(values + i) = v;
    return;
  }
  if (i < count) values[i] = v.x;
  if (i + 1 < count) values[i + 1] = v.y;
  if (i + 2 < count) values[i + 2] = v.z;
  if (i + 3 < count) values[i + 3] = v.w;
}
__device__ __forceinline__ float4 plus(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// This thread block's tiles of `quads`, one after the other: copy(into, begin, end) writes quads [begin, end) into the member's slot, a tile
// ahead of use(epoch, begin, end), which finds those of all others there. use() says whether to go on.
template <typename Copy, typename Use>
__device__ __forceinline__ void for_each_tile(const View& view, size_t quads, Copy&& copy, Use&& use) {
  auto* epochs = reinterpret_cast<uint32_t*>(view.blocks[view.index] + PeerBlock::kPullEpochs);
  uint32_t epoch = epochs[blockIdx.x];
  const size_t length = min((quads + gridDim.x - 1) / gridDim.x, static_cast<size_t>(view.tile));
  const auto offer = [&](size_t begin, uint32_t number) {
    if (begin >= quads) return;
    copy(slot(view, view.index, number), begin, min(begin + length, quads));
    signal(view, 0, number);
  };
  size_t begin = blockIdx.x * length;
  offer(begin, epoch + 1);
  for (; begin < quads; begin += gridDim.x * length) {
    ++epoch;
    offer(begin + gridDim.x * length, epoch + 1);
    if (!await(view, 0, epoch) || !use(epoch, begin, min(begin + length, quads))) break;
  }
  __syncthreads();  // all have read how far it was
  if (threadIdx.x == 0) epochs[blockIdx.x] = epoch;
}

// Quads [begin, end) of float[count] to `into`.
__device__ __forceinline__ void copy_in(float4* into, const float* values, size_t begin, size_t end, size_t count) {
  const bool aligned = is_aligned(values, sizeof(float4));
  float4 taken[kBatch];
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
    const size_t q = begin + threadIdx.x + k * kPullThreads;
    if (q < end) taken[k] = load4(values, q, count, aligned);
  }
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
    const size_t q = begin + threadIdx.x + k * kPullThreads;
    if (q < end) into[q - begin] = taken[k];
  }
}

template <bool kInto>
__device__ __forceinline__ void put(float* out, size_t quad, size_t count, bool aligned, float4 sum) {
  store4(out, quad, count, aligned, kInto ? plus(load4(out, quad, count, aligned), sum) : sum);
}

// Sums quads [first, end) of a tile that begins at `begin`, over all members' slots; every(quad, sum) by the thread that made it.
template <typename Every>
__device__ __forceinline__ void sum_quads(const View& view, uint32_t epoch, size_t begin, size_t first, size_t end, Every&& every) {
  float4 sums[kBatch];
  for (int member = 0; member < view.size; ++member) {
    const float4* from = slot(view, member, epoch);
    float4 terms[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const size_t q = first + threadIdx.x + k * kPullThreads;
      if (q < end) terms[k] = __ldcg(from + (q - begin));
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) sums[k] = member == 0 ? terms[k] : plus(sums[k], terms[k]);
  }
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
    const size_t q = first + threadIdx.x + k * kPullThreads;
    if (q < end) every(q, sums[k]);
  }
}

template <bool kInto, bool kTwoShot>
__global__ void __launch_bounds__(kPullThreads, 2)
    pull_sum_kernel(const __grid_constant__ View view, const float* partial, float* out, size_t count) {
  let_next_begin();
  wait_for_previous();
  const bool aligned = is_aligned(out, sizeof(float4));
  const auto copy = [&](float4* into, size_t begin, size_t end) { copy_in(into, partial, begin, end, count); };
  for_each_tile(view, (count + 3) / 4, copy, [&](uint32_t epoch, size_t begin, size_t end) {
    if constexpr (!kTwoShot) {
      sum_quads(view, epoch, begin, begin, end, [&](size_t q, float4 sum) { put<kInto>(out, q, count, aligned, sum); });
      return true;
    } else {
      const auto share = [&](int member) { return begin + (end - begin) * member / view.size; };
      float4* own = slot(view, view.index, epoch);
      // In place: nobody else reads this member's share of this member's slot before its sums are there.
      sum_quads(view, epoch, begin, share(view.index), share(view.index + 1), [&](size_t q, float4 sum) {
        own[q - begin] = sum;
        put<kInto>(out, q, count, aligned, sum);
      });
      signal(view, 1, epoch);
      if (!await(view, 1, epoch)) return false;
      for (int k = 1; k < view.size; ++k) {
        const int member = (view.index + k) % view.size;
        const float4* from = slot(view, member, epoch);
        const size_t stop = share(member + 1);
        for (size_t q = share(member) + threadIdx.x; q < stop; q += kPullThreads) put<kInto>(out, q, count, aligned, __ldcg(from + (q - begin)));
      }
      return true;
    }
  });
}

struct Parts {
  size_t counts[kMostPeers], offsets[kMostPeers];
};

__global__ void __launch_bounds__(kPullThreads, 2)
    gather_kernel(const __grid_constant__ View view, const float* mine, float* all, const __grid_constant__ Parts parts, size_t longest) {
  let_next_begin();
  wait_for_previous();
  const auto end_of = [&](int member, size_t end) { return min(end, (parts.counts[member] + 3) / 4); };
  const auto copy = [&](float4* into, size_t begin, size_t end) {
    copy_in(into, mine, begin, end_of(view.index, end), parts.counts[view.index]);
  };
  for_each_tile(view, (longest + 3) / 4, copy, [&](uint32_t epoch, size_t begin, size_t end) {
    for (int k = 0; k < view.size; ++k) {
      const int member = (view.index + k) % view.size;
      const float4* from = slot(view, member, epoch);
      float* out = all + parts.offsets[member];
      const bool aligned = is_aligned(out, sizeof(float4));
      const size_t stop = end_of(member, end);
      float4 taken[kBatch];
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const size_t q = begin + threadIdx.x + n * kPullThreads;
        if (q < stop) taken[n] = __ldcg(from + (q - begin));
      }
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const size_t q = begin + threadIdx.x + n * kPullThreads;
        if (q < stop) store4(out, q, parts.counts[member], aligned, taken[n]);
      }
    }
    return true;
  });
}

// Tells the others that this member reads and writes their blocks no more, and waits a little for theirs.
__global__ void farewell_kernel(const __grid_constant__ View view, uint64_t patience_ns) {
  wait_for_previous();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer >= view.size || peer == view.index) return;
  const auto word = [&](int of, int from) { return reinterpret_cast<uint32_t*>(view.blocks[of] + PeerBlock::kFarewells) + from; };
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word(peer, view.index)), "r"(1u) : "memory");
  uint64_t now, start;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  uint32_t gone = 0;
  do {
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(gone) : "l"(word(view.index, peer)) : "memory");
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (gone == 0 && now - start < patience_ns && !aborted(view.abort));
}

__global__ void add_kernel(float* x, const float* term, size_t count) {
  let_next_begin();
  wait_for_previous();
  const size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
  if (i < count) x[i] += term[i];
}

class Direct final : public DevicePeers {
 public:
  Direct(const PeerSettings& settings, std::unique_ptr<PeerMemory> memory)
      : settings_(settings),
        memory_(std::move(memory)),
        view_{settings.index, settings.size, {}, settings.abort->device(), memory_->layout().tiles(), memory_->layout().tile} {
    for (int member = 0; member < settings.size; ++member) view_.blocks[member] = memory_->block(member);
    // Loaded now: loading a kernel may wait for the device, on which another one may be waiting for a peer.
    const auto load = [](auto* kernel) {
      cudaFuncAttributes unused{};
      check(cudaFuncGetAttributes(&unused, reinterpret_cast<const void*>(kernel)), "peers");
    };
    load(&eager_sum_kernel<false>);
    load(&eager_sum_kernel<true>);
    load(&pull_sum_kernel<false, false>);
    load(&pull_sum_kernel<false, true>);
    load(&pull_sum_kernel<true, false>);
    load(&pull_sum_kernel<true, true>);
    load(&gather_kernel);
    load(&farewell_kernel);
  }
  ~Direct() override {
    constexpr uint64_t kPatience = 200'000'000;
    farewell_kernel<<<1, 32, 0, settings_.launch.stream>>>(view_, kPatience);
    cudaStreamSynchronize(settings_.launch.stream);
  }

  int index() const override { return settings_.index; }
  int size() const override { return settings_.size; }
  bool direct() const override { return true; }
  size_t bytes() const override { return memory_->layout().bytes(); }

  void all_reduce(float* values, size_t count) override { all_reduce(settings_.launch, values, count); }
  void all_gather(const float* mine, std::span<const size_t> counts, float* all) override { all_gather(settings_.launch, mine, counts, all); }

  void all_reduce(const Launch& how, float* values, size_t count) override { sum<false>(how, values, values, count); }
  void reduce_into(const Launch& how, float* x, float* partial, int64_t rows, int64_t hidden) override {
    sum<true>(how, partial, x, static_cast<size_t>(rows * hidden));
  }

  void all_gather(const Launch& how, const float* mine, std::span<const size_t> counts, float* all) override {
    if (static_cast<int>(counts.size()) != settings_.size) fail(Code::internal, "all_gather", "one count a member is needed");
    const size_t longest = *std::max_element(counts.begin(), counts.end());
    if (longest == 0) return;
    Parts parts{};
    size_t before = 0;
    for (size_t i = 0; i < counts.size(); before += counts[i], ++i) parts.counts[i] = counts[i], parts.offsets[i] = before;
    launch(how, gather_kernel, kPullBlocks, kPullThreads, 0, "all_gather", view_, mine, all, parts, longest);
  }

 private:
  // What leaves by packets is twice the numbers, to each of the others.
  bool goes_eagerly(size_t bytes) const {
    using Route = PeerSettings::Route;
    if (settings_.route != Route::by_size) return settings_.route == Route::eager && bytes <= kEagerBytes;
    return bytes * (settings_.size - 1) <= kEagerBytes;
  }

  template <bool kInto>
  void sum(const Launch& how, const float* partial, float* out, size_t count) {
    using Route = PeerSettings::Route;
    if (count == 0) return;
    const size_t bytes = count * sizeof(float);
    if (goes_eagerly(bytes)) {
      const auto packets = static_cast<uint32_t>((count + 1) / 2);
      const uint32_t threads = std::clamp((packets + kEagerBlocks - 1) / kEagerBlocks + 31, 32u, 512u) / 32 * 32;
      launch(how, eager_sum_kernel<kInto>, kEagerBlocks, threads, 0, "all_reduce", view_, partial, out, static_cast<uint32_t>(count));
      return;
    }
    const bool two_shot = settings_.route == Route::two_shot || (settings_.route == Route::by_size && settings_.size > 2);
    launch(how, two_shot ? pull_sum_kernel<kInto, true> : pull_sum_kernel<kInto, false>, kPullBlocks, kPullThreads, 0, "all_reduce", view_, partial,
           out, count);
  }

  PeerSettings settings_;
  std::unique_ptr<PeerMemory> memory_;
  View view_;
};

class Indirect final : public DevicePeers {
 public:
  explicit Indirect(const PeerSettings& settings) : settings_(settings), group_(*settings.otherwise) {}
  int index() const override { return settings_.index; }
  int size() const override { return settings_.size; }
  bool direct() const override { return false; }
  size_t bytes() const override { return 0; }

  void all_reduce(float* values, size_t count) override { group_.all_reduce(values, count); }
  void all_gather(const float* mine, std::span<const size_t> counts, float* all) override { group_.all_gather(mine, counts, all); }
  void all_reduce(const Launch&, float* values, size_t count) override { group_.all_reduce(values, count); }
  void all_gather(const Launch&, const float* mine, std::span<const size_t> counts, float* all) override { group_.all_gather(mine, counts, all); }
  void reduce_into(const Launch& how, float* x, float* partial, int64_t rows, int64_t hidden) override {
    const auto count = static_cast<size_t>(rows * hidden);
    if (count == 0) return;
    group_.all_reduce(partial, count);
    launch(Launch{how.stream, how.device, false}, add_kernel, static_cast<unsigned>((count + 255) / 256), 256, 0, "reduce_into", x, partial, count);
  }

 private:
  PeerSettings settings_;
  PeerGroup& group_;
};

}  // namespace

std::unique_ptr<DevicePeers> make_device_peers(const PeerSettings& given, const Exchange& exchange) {
  PeerSettings settings = given;
  if (settings.size < 2 || settings.size > kMostPeers) {
    fail(Code::failed_precondition, "peers", std::to_string(settings.size) + " members of one stage (2 to " + std::to_string(kMostPeers) + ")");
  }
  if (!settings.abort) settings.abort = std::make_shared<AbortWord>();
  auto memory = std::make_unique<PeerMemory>(settings.launch.device->index, settings.index, peer_block(settings.size, settings.longest_bytes));
  std::string why = memory->reach(exchange(memory->card()));
  if (settings.route == PeerSettings::Route::otherwise) why = "not asked for";
  why.resize(120);
  // All or none: the first who cannot decides for everyone.
  std::string first;
  for (const std::string& verdict : exchange(why)) {
    if (first.empty()) first = verdict.c_str();
  }
  if (first.empty()) return std::make_unique<Direct>(settings, std::move(memory));
  if (settings.otherwise == nullptr) fail(Code::failed_precondition, "peers", first);
  memory.reset();
  return std::make_unique<Indirect>(settings);
}

}  // namespace tandem::cuda
