// One pass over a row by several blocks, each thread with its running maximum and its sum of exponentials below it. The block that
// arrives last puts the blocks' parts together in their order.
#include "kernels/base/cuda/reduce.cuh"
#include "kernels/cuda/sample_best.cuh"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256, kQuads = 4;  // quads of a thread in flight
static_assert(kSampleBlocks == 32);        // a lane each

// A sum below one maximum as one below a higher maximum.
__device__ __forceinline__ float rescaled(float sum, float from, float to) { return from > -INFINITY ? sum * expf(from - to) : 0.0f; }

__global__ void __launch_bounds__(kThreads) best_of_row(const SampleCall call, const SampleScratch layout, bool whole) {
  __shared__ Best bests[32];
  __shared__ float sums[32];
  __shared__ bool last;
  let_next_begin();
  wait_for_previous();
  const int i = blockIdx.y;
  if (i >= *call.count) return;
  const SampleRowOnDevice& row = call.rows[i];
  const float* logits = call.logits + static_cast<int64_t>(row.head) * call.vocab;
  const bool wanted = row.sampling.logprobs >= 0;
  const int64_t quads = (call.vocab + 3) / 4, share = (quads + kSampleBlocks - 1) / kSampleBlocks;
  const int64_t end = min((blockIdx.x + 1) * share, quads);

  Best best;
  float sum = 0;
  bool nan = false;
  for (int64_t first = blockIdx.x * share + threadIdx.x; first < end; first += kThreads * kQuads) {  // ids ascend
    float v[4 * kQuads];
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
      const int64_t q = first + k * kThreads;
      const float4 four = q < end ? load_quad(logits, q, call.vocab, whole) : float4{-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      v[4 * k] = four.x, v[4 * k + 1] = four.y, v[4 * k + 2] = four.z, v[4 * k + 3] = four.w;
    }
    const float former = best.value;
#pragma unroll
    for (int k = 0; k < 4 * kQuads; ++k) {
      nan |= v[k] != v[k];
      if (v[k] > best.value) best = {v[k], static_cast<int32_t>(4 * (first + k / 4 * kThreads) + k % 4)};
    }
    if (wanted && best.value > -INFINITY) {
      sum = rescaled(sum, former, best.value);
#pragma unroll
      for (int k = 0; k < 4 * kQuads; ++k) sum += expf(v[k] - best.value);
    }
  }
  nan = __syncthreads_or(nan);
  const Best of_block = block_best(best, bests);
  if (wanted) sum = block_sum(rescaled(sum, best.value, of_block.value), sums);

  std::byte* scratch = call.scratch + layout.rows + i * kSampleRowBytes;
  auto* partials = reinterpret_cast<RawBest*>(scratch);
  auto* counter = reinterpret_cast<uint32_t*>(scratch + kSampleCounter);
  if (threadIdx.x == 0) {
    *reinterpret_cast<int4*>(partials + blockIdx.x) = {__float_as_int(nan ? NAN : of_block.value), of_block.id, __float_as_int(sum), 0};
    __threadfence();
    last = atomicAdd(counter, 1) == kSampleBlocks - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x >= 32) return;
  __threadfence();
  const int4 raw = __ldcg(reinterpret_cast<const int4*>(partials) + threadIdx.x);
  const Best part{__int_as_float(raw.x), raw.y}, all = warp_best(part);
  const float total = warp_sum(rescaled(__int_as_float(raw.z), part.value, all.value));
  if (threadIdx.x != 0) return;
  *counter = 0;
  const bool right = all.value > -INFINITY;  // false for NaN too
  const auto log_total = static_cast<float>(static_cast<double>(all.value) + static_cast<double>(logf(total)));
  *reinterpret_cast<RawBest*>(scratch + kSampleRaw) = {all.value, all.id, log_total, 0};
  Sampled& out = call.out[i];
  out.id = right ? all.id : -1;
  out.logprob = right && wanted ? all.value - log_total : 0;
  out.top_count = 0;
  call.last_ids[row.slot] = right ? all.id : 0;
}

}  // namespace

void take_best(const Launch& how, const SampleCall& call, const SampleScratch& layout) {
  const bool whole = call.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(call.logits) % 16 == 0;
  launch(how, best_of_row, dim3(kSampleBlocks, static_cast<unsigned>(call.most_rows)), dim3(kThreads), 0, "sampling", call, layout, whole);
}

}  // namespace tandem::cuda
