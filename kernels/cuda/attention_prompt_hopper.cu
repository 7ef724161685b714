// Blocks of query rows on compute capability 9.0: a warpgroup has 64 rows of one query head and multiplies by wgmma (Dao 2023,
// "FlashAttention-2"; Shah et al. 2024, "FlashAttention-3"). Tiles of keys and values are fetched one ahead; the two or three blocks of a
// multiprocessor keep the matrix unit busy while one of them is at its exponentials.
#include <algorithm>

#include "kernels/cuda/attention_cache.cuh"
#include "kernels/cuda/attention_copy.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace tandem::cuda {
namespace {

constexpr int kRows = 64, kKeys = 64, kThreads = 128, kPanelBytes = kKeys * 128;
constexpr uint64_t kNowhere = ~uint64_t{0};

template <typename T, int HEAD_DIM>
__global__ void __launch_bounds__(kThreads, HEAD_DIM <= 128 ? 3 : 1) attend_blocks_wgmma(const AttentionCall call) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kChunks = HEAD_DIM / 8, kSteps = HEAD_DIM / 16, kPanels = (HEAD_DIM + 63) / 64, kTileBytes = kPanels * kPanelBytes;
  extern __shared__ __align__(1024) unsigned char raw[];  // [2][keys, values][kPanels][kKeys][64]
  __shared__ uint64_t offsets[2][kKeys];
  // With as many registers of queries as of weights (head_dim 64), ptxas 13.0 gives both the same ones and loses the queries after the
  // first tile: they are read again for every tile then.
  constexpr bool kReload = HEAD_DIM == kKeys;
  __shared__ uint4 kept[kReload ? kSteps : 1][kReload ? kThreads : 1];
  let_next_begin();
  wait_for_previous();
  // The longest rows first, so that the short ones fill the gaps at the end.
  const RowBlock block = row_block<kRows>(call.step, static_cast<int>(gridDim.y - 1 - blockIdx.y));
  if (block.sequence < 0) return;
  const SequenceOnDevice& sequence = call.step.sequences[block.sequence];
  const CacheLayer& cache = call.cache;
  const int head = blockIdx.x, kv_head = static_cast<int>(head / (call.shape.heads / call.shape.kv_heads));
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  const int first_position = sequence.position + block.first, last_position = first_position + block.rows - 1;
  const int window = static_cast<int>(min(call.window, int64_t{1} << 30));
  const int first_key = window > 0 ? max(0, first_position - window + 1) / kKeys * kKeys : 0;
  const int32_t* table = call.step.pages + sequence.pages[cache.group];
  const std::byte* base = cache.memory + static_cast<uint64_t>(kv_head) * 2 * cache.page_tokens * HEAD_DIM * sizeof(T);
  const uint64_t to_values = static_cast<uint64_t>(cache.page_tokens) * HEAD_DIM * sizeof(T);

  const auto locate = [&](int key) {
    if (key > last_position || (window > 0 && key <= first_position - window)) return kNowhere;  // no row sees it
    const int page = key / cache.page_tokens;
    return static_cast<uint64_t>(table[page]) * cache.page_stride + static_cast<uint64_t>(key - page * cache.page_tokens) * HEAD_DIM * sizeof(T);
  };
  const uint32_t tiles = shared_address(raw);
  const auto fetch = [&](int buffer) {
    const uint32_t to = tiles + buffer * 2 * kTileBytes;
#pragma unroll
    for (int i = tid; i < kKeys * kChunks; i += kThreads) {
      const int k = i / kChunks, chunk = i % kChunks;
      const uint64_t offset = offsets[buffer][k];
      const bool inside = offset != kNowhere;  // else zero: so is its weight, and pages behind a window may hold anything
      const std::byte* from = base + (inside ? offset : 0) + chunk * 16;
      const uint32_t at = to + chunk / 8 * kPanelBytes + panel_byte(k, chunk % 8);
      copy_ahead(at, from, inside);
      copy_ahead(at + kTileBytes, from + to_values, inside);
    }
    commit_copies();
  };
  offsets[tid / kKeys][tid % kKeys] = locate(first_key + tid);
  if constexpr (HEAD_DIM % 64 != 0) {  // the last panel's other columns are multiplied too
    for (int i = tid; i < 4 * kKeys * 4; i += kThreads) {
      const int tile = i / (kKeys * 4), k = i / 4 % kKeys, chunk = kChunks % 8 + i % 4;
      *reinterpret_cast<uint4*>(raw + tile * kTileBytes + (kPanels - 1) * kPanelBytes + panel_byte(k, chunk)) = make_uint4(0, 0, 0, 0);
    }
  }
  __syncthreads();
  fetch(0);

  // Queries: rows g and g + 8 of the warp's sixteen.
  const int row_low = warp * 16 + g, row_high = row_low + 8;
  const auto query = [&](int row) {
    const int64_t at = sequence.row + block.first + min(row, block.rows - 1);
    return static_cast<const T*>(call.qkv) + at * call.qkv_stride + static_cast<int64_t>(head) * HEAD_DIM;
  };
  alignas(16) uint32_t q[kSteps][4];
  {
    const T *low = query(row_low), *high = query(row_high);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      q[s][0] = *reinterpret_cast<const uint32_t*>(low + s * 16 + 2 * t);
      q[s][1] = *reinterpret_cast<const uint32_t*>(high + s * 16 + 2 * t);
      q[s][2] = *reinterpret_cast<const uint32_t*>(low + s * 16 + 8 + 2 * t);
      q[s][3] = *reinterpret_cast<const uint32_t*>(high + s * 16 + 8 + 2 * t);
    }
  }
  if constexpr (kReload) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) kept[s][tid] = *reinterpret_cast<const uint4*>(q[s]);
  }
  float out[kPanels][8][4] = {};
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  constexpr float kLog2E = 1.44269504088896340736f;  // powers of two
  const float scale = call.soft_cap > 0 ? kLog2E : call.scale * kLog2E;
  const int positions[2] = {first_position + row_low, first_position + row_high};

  int buffer = 0;
  for (int key0 = first_key; key0 <= last_position; key0 += kKeys, buffer ^= 1) {
    const bool more = key0 + kKeys <= last_position;
    if (more) fetch(buffer ^ 1);
    const uint64_t next = tid < kKeys ? locate(key0 + 2 * kKeys + tid) : kNowhere;
    if (more) wait_copies<1>(); else wait_copies<0>();
    publish_to_products();
    __syncthreads();
    if (tid < kKeys) offsets[buffer][tid] = next;  // read after the barrier below
    const uint32_t keys = tiles + buffer * 2 * kTileBytes, values = keys + kTileBytes;
    float scores[8][4] = {};
    if constexpr (kReload) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) *reinterpret_cast<uint4*>(q[s]) = kept[s][tid];
    }
    settle(scores);
    begin_products();
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      multiply_scores(scores, q[s][0], q[s][1], q[s][2], q[s][3], panel_descriptor(keys + s / 4 * kPanelBytes + s % 4 * 32), T{});
    }
    end_products();
    settle(scores);
    if (call.soft_cap > 0) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[n][i] = capped(scores[n][i] * call.scale, call.soft_cap);
      }
    }
    if (key0 + kKeys - 1 > first_position || (window > 0 && key0 <= last_position - window)) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = key0 + n * 8 + 2 * t + i % 2, position = positions[i / 2];
          if (key > position || (window > 0 && key <= position - window)) scores[n][i] = -INFINITY;
        }
      }
    }
    float largest[2] = {most[0], most[1]}, shrink[2];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) largest[i / 2] = fmaxf(largest[i / 2], scores[n][i]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 2));
      const float known = largest[r] == -INFINITY ? 0.0f : largest[r];  // no key of this row's window yet
      shrink[r] = power_of_two((most[r] - known) * scale);
      most[r] = largest[r];
      largest[r] = known * scale;
      sum[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = power_of_two(scores[n][i] * scale - largest[i / 2]);
        sum[i / 2] += scores[n][i];
      }
    }
    uint32_t weights[kKeys / 16][4];
#pragma unroll
    for (int s = 0; s < kKeys / 16; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[s][i] = pack(scores[2 * s + i / 2][i % 2 * 2], scores[2 * s + i / 2][i % 2 * 2 + 1], T{});
    }
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        out[p][n][0] *= shrink[0], out[p][n][1] *= shrink[0], out[p][n][2] *= shrink[1], out[p][n][3] *= shrink[1];
      }
    }
    settle(weights);
#pragma unroll
    for (int p = 0; p < kPanels; ++p) settle(out[p]);
    begin_products();
#pragma unroll
    for (int s = 0; s < kKeys / 16; ++s) {
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        multiply_weighted(out[p], weights[s][0], weights[s][1], weights[s][2], weights[s][3], panel_descriptor(values + p * kPanelBytes + s * 2048), T{});
      }
    }
    end_products();
#pragma unroll
    for (int p = 0; p < kPanels; ++p) settle(out[p]);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    const int row = r == 0 ? row_low : row_high;
    if (row >= block.rows) continue;
    const float inverse = 1 / sum[r];
    T* to = static_cast<T*>(call.out) + (static_cast<int64_t>(sequence.row) + block.first + row) * call.shape.heads * HEAD_DIM + static_cast<int64_t>(head) * HEAD_DIM;
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 8; ++d) {
      *reinterpret_cast<uint32_t*>(to + d * 8 + 2 * t) = pack(out[d / 8][d % 8][2 * r] * inverse, out[d / 8][d % 8][2 * r + 1] * inverse, T{});
    }
  }
#endif
}

template <typename T, int HEAD_DIM>
void start(const Launch& how, const AttentionCall& call) {
  constexpr size_t kShared = size_t{4} * ((HEAD_DIM + 63) / 64) * kPanelBytes;
  const auto kernel = attend_blocks_wgmma<T, HEAD_DIM>;
  static OncePerDevice once;
  if (once.first(*how.device)) allow_shared(kernel, kShared, "attention");
  // Every sequence may leave one block partly filled.
  const auto blocks = static_cast<unsigned>((call.most_rows + kRows - 1) / kRows + std::min(call.most_sequences, call.most_rows / 2));
  launch(how, kernel, dim3(static_cast<unsigned>(call.shape.heads), blocks), dim3(kThreads), kShared, "attention", call);
}

template <typename T>
bool by_head_dim(const Launch& how, const AttentionCall& call) {
  switch (call.shape.head_dim) {
    case 64: return start<T, 64>(how, call), true;
    case 96: return start<T, 96>(how, call), true;
    case 128: return start<T, 128>(how, call), true;
    case 256: return start<T, 256>(how, call), true;
    default: return false;
  }
}

}  // namespace

bool attend_prompts_hopper(const Launch& how, const AttentionCall& call) {
  const bool aligned = reinterpret_cast<uintptr_t>(call.cache.memory) % 16 == 0 && call.cache.page_stride % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(call.qkv) % 4 == 0 && call.qkv_stride % 2 == 0;
  if (!has_wgmma(*how.device) || !aligned) return false;
  if (call.element == Element::bf16 && call.cache.type == KvType::bf16) return by_head_dim<bf16>(how, call);
  if (call.element == Element::f16 && call.cache.type == KvType::fp16) return by_head_dim<f16>(how, call);
  return false;
}

}  // namespace tandem::cuda
