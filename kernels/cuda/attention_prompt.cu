// Prompts: rope and append for every row, then attention of blocks of query rows (Dao 2023, "FlashAttention-2"): a block has kRows rows of
// one query head, walks over the keys in tiles that are fetched ahead, and keeps maximum, sum and weighted values in registers.
#include <algorithm>

#include "kernels/base/cuda/mma.cuh"
#include "kernels/base/cuda/reduce.cuh"
#include "kernels/cuda/attention_cache.cuh"
#include "kernels/cuda/attention_copy.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_rows.cuh"

namespace tandem::cuda {
namespace {

constexpr int kRows = 64, kKeys = 64, kThreads = 128;

// ---- rope and append

template <typename C>
__global__ void __launch_bounds__(kThreads) rotate_and_append(const AttentionCall call) {
  extern __shared__ float angles[];
  __shared__ float before[1024];
  let_next_begin();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  if (row >= call.step.counts[0]) return;
  const SequenceOnDevice& sequence = call.step.sequences[call.step.sequence_of[row]];
  const int position = call.step.positions[row];
  const CacheLayer& cache = call.cache;
  const int head_dim = static_cast<int>(cache.head_dim);
  const int64_t heads = call.shape.heads, kv_heads = call.shape.kv_heads;
  auto* const values = static_cast<char*>(call.qkv) + row * call.qkv_stride * bytes_of(call.element);
  const auto part = [&](int64_t head) { return values + head * head_dim * bytes_of(call.element); };
  if (call.rope.rotary > 0) rope_angles(call.rope, position, angles);
  const int32_t page = call.step.pages[sequence.pages[cache.group] + position / cache.page_tokens];
  const int64_t inside = static_cast<int64_t>(position % cache.page_tokens) * head_dim;
  __syncthreads();
  // A query is read whole before it is written.
  const int at_once = 1024 / head_dim;
  for (int64_t first = 0; call.rope.rotary > 0 && first < heads; first += at_once) {
    const int count = static_cast<int>(min(static_cast<int64_t>(at_once), heads - first)) * head_dim;
    for (int i = threadIdx.x; i < count; i += kThreads) before[i] = rotated(part(first + i / head_dim), i % head_dim, call.element, call.rope.rotary, angles);
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) store_element(part(first), i, call.element, before[i]);
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; i < kv_heads * head_dim; i += kThreads) {
    const int64_t head = i / head_dim, d = i % head_dim;
    C* at = page_of<C>(cache, page, head) + inside + d;
    *at = from_float<C>(rotated(part(heads + head), d, call.element, call.rope.rotary, angles));
    at[static_cast<int64_t>(cache.page_tokens) * head_dim] = from_float<C>(load_element(part(heads + kv_heads), i, call.element));
  }
}

// ---- by the matrix unit

template <typename T, int HEAD_DIM>
__global__ void __launch_bounds__(kThreads) attend_blocks(const AttentionCall call) {
  constexpr int kStride = HEAD_DIM + 8, kTile = kKeys * kStride, kChunks = HEAD_DIM / 8, kSteps = HEAD_DIM / 16;
  extern __shared__ __align__(16) unsigned char raw[];
  T* const tiles = reinterpret_cast<T*>(raw);  // [2][keys, values][kKeys][kStride]
  let_next_begin();
  wait_for_previous();
  const RowBlock block = row_block<kRows>(call.step, blockIdx.x);
  if (block.sequence < 0) return;
  const SequenceOnDevice& sequence = call.step.sequences[block.sequence];
  const CacheLayer& cache = call.cache;
  const int head = blockIdx.y, kv_head = static_cast<int>(head / (call.shape.heads / call.shape.kv_heads));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_position = sequence.position + block.first, last_position = first_position + block.rows - 1;
  const int window = static_cast<int>(call.window);
  const int first_key = window > 0 ? max(0, first_position - window + 1) / kKeys * kKeys : 0;
  const int32_t* table = call.step.pages + sequence.pages[cache.group];

  const auto fetch = [&](int key0, int buffer) {
    T* keys = tiles + buffer * 2 * kTile;
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
      const int k = i / kChunks, chunk = i % kChunks, key = key0 + k;
      // What no row sees is zero: its weight is, and pages behind the window may hold anything.
      const bool inside = key <= last_position && (window == 0 || key > first_position - window);
      const int at = inside ? key : last_position;
      const T* from = page_of<T>(cache, table[at / cache.page_tokens], kv_head) + static_cast<int64_t>(at % cache.page_tokens) * HEAD_DIM + chunk * 8;
      copy_ahead(shared_address(keys + k * kStride + chunk * 8), from, inside);
      copy_ahead(shared_address(keys + kTile + k * kStride + chunk * 8), from + static_cast<int64_t>(cache.page_tokens) * HEAD_DIM, inside);
    }
    commit_copies();
  };
  fetch(first_key, 0);

  // Queries: rows g and g + 8 of the warp's sixteen.
  const int row_low = warp * 16 + g, row_high = row_low + 8;
  const auto query = [&](int row) {
    const int64_t at = sequence.row + block.first + min(row, block.rows - 1);
    return static_cast<const T*>(call.qkv) + at * call.qkv_stride + static_cast<int64_t>(head) * HEAD_DIM;
  };
  uint32_t q[kSteps][4];
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
  float out[HEAD_DIM / 8][4] = {};
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  const float scale = call.scale * 1.44269504088896340736f;  // powers of two
  const int positions[2] = {first_position + row_low, first_position + row_high};

  int buffer = 0;
  for (int key0 = first_key; key0 <= last_position; key0 += kKeys, buffer ^= 1) {
    const bool more = key0 + kKeys <= last_position;
    if (more) fetch(key0 + kKeys, buffer ^ 1);
    if (more) wait_copies<1>(); else wait_copies<0>();
    __syncthreads();
    const T* keys = tiles + buffer * 2 * kTile;
    const T* values = keys + kTile;
    float scores[kKeys / 8][4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {  // sixteen keys: matrices (keys 0-7, low columns), (0-7, high), (8-15, low), (8-15, high)
        uint32_t b[4];
        load_matrices(b, shared_address(keys + (n * 8 + lane / 16 * 8 + lane % 8) * kStride + s * 16 + lane / 8 % 2 * 8));
        mma(scores[n], q[s][0], q[s][1], q[s][2], q[s][3], b[0], b[1], T{});
        mma(scores[n + 1], q[s][0], q[s][1], q[s][2], q[s][3], b[2], b[3], T{});
      }
    }
    const bool edge = key0 + kKeys - 1 > first_position || (window > 0 && key0 <= last_position - window) || call.soft_cap > 0;
    float largest[2] = {most[0], most[1]};
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float v = scores[n][i];
        if (edge) {
          const int key = key0 + n * 8 + 2 * t + i % 2, position = positions[i / 2];
          if (call.soft_cap > 0) v = capped(v * call.scale, call.soft_cap) / call.scale;
          if (key > position || (window > 0 && key <= position - window)) v = -INFINITY;
          scores[n][i] = v;
        }
        largest[i / 2] = fmaxf(largest[i / 2], v);
      }
    }
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 2));
      const float base = largest[r] == -INFINITY ? 0.0f : largest[r];
      shrink[r] = exp2f((most[r] - base) * scale);
      most[r] = largest[r];
      largest[r] = base * scale;
      sum[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = exp2f(scores[n][i] * scale - largest[i / 2]);
        sum[i / 2] += scores[n][i];
      }
    }
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 8; ++d) {
      out[d][0] *= shrink[0], out[d][1] *= shrink[0], out[d][2] *= shrink[1], out[d][3] *= shrink[1];
    }
#pragma unroll
    for (int s = 0; s < kKeys / 16; ++s) {
      const uint32_t a0 = pack(scores[2 * s][0], scores[2 * s][1], T{}), a1 = pack(scores[2 * s][2], scores[2 * s][3], T{}),
                     a2 = pack(scores[2 * s + 1][0], scores[2 * s + 1][1], T{}), a3 = pack(scores[2 * s + 1][2], scores[2 * s + 1][3], T{});
#pragma unroll
      for (int d = 0; d < HEAD_DIM / 8; d += 2) {  // sixteen columns of sixteen keys, transposed on the way
        uint32_t b[4];
        load_transposed(b, shared_address(values + (s * 16 + lane / 8 % 2 * 8 + lane % 8) * kStride + d * 8 + lane / 16 * 8));
        mma(out[d], a0, a1, a2, a3, b[0], b[1], T{});
        mma(out[d + 1], a0, a1, a2, a3, b[2], b[3], T{});
      }
    }
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
      *reinterpret_cast<uint32_t*>(to + d * 8 + 2 * t) = pack(out[d][2 * r] * inverse, out[d][2 * r + 1] * inverse, T{});
    }
  }
}

template <typename T, int HEAD_DIM>
void start_blocks(const Launch& how, const AttentionCall& call) {
  constexpr size_t kShared = sizeof(T) * 2 * 2 * kKeys * (HEAD_DIM + 8);
  const auto kernel = attend_blocks<T, HEAD_DIM>;
  static OncePerDevice once;
  if (once.first(*how.device)) allow_shared(kernel, kShared, "attention");
  // Every sequence may leave one block partly filled.
  const auto blocks = static_cast<unsigned>((call.most_rows + kRows - 1) / kRows + std::min(call.most_sequences, call.most_rows / 2));
  launch(how, kernel, dim3(blocks, static_cast<unsigned>(call.shape.heads)), dim3(kThreads), kShared, "attention", call);
}

// ---- plainly: a warp a row and head, one key after another

template <typename C>
__global__ void __launch_bounds__(kThreads) attend_plainly(const AttentionCall call) {
  constexpr int kPieces = 16;  // head_dim up to 512
  let_next_begin();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  if (row >= call.step.counts[0]) return;
  const SequenceOnDevice& sequence = call.step.sequences[call.step.sequence_of[row]];
  if (sequence.rows == 1) return;
  const int position = call.step.positions[row], lane = threadIdx.x % 32;
  const CacheLayer& cache = call.cache;
  const int head_dim = static_cast<int>(cache.head_dim);
  const int32_t* table = call.step.pages + sequence.pages[cache.group];
  for (int64_t head = threadIdx.x / 32; head < call.shape.heads; head += kThreads / 32) {
    const int64_t kv_head = head / (call.shape.heads / call.shape.kv_heads);
    const int64_t at = row * call.qkv_stride + head * head_dim;
    float q[kPieces], out[kPieces], most = -INFINITY, sum = 0;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int d = p * 32 + lane;
      q[p] = d < head_dim ? load_element(call.qkv, at + d, call.element) * call.scale : 0.0f;
      out[p] = 0;
    }
    for (int key = call.window > 0 ? max(0, position - static_cast<int>(call.window) + 1) : 0; key <= position; ++key) {
      const C* k = page_of<C>(cache, table[key / cache.page_tokens], kv_head) + static_cast<int64_t>(key % cache.page_tokens) * head_dim;
      const C* v = k + static_cast<int64_t>(cache.page_tokens) * head_dim;
      float score = 0;
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const int d = p * 32 + lane;
        if (d < head_dim) score += q[p] * to_float(k[d]);
      }
      score = capped(warp_sum(score), call.soft_cap);
      const float next = fmaxf(most, score), shrink = expf(most - next), weight = expf(score - next);
      most = next;
      sum = sum * shrink + weight;
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const int d = p * 32 + lane;
        if (d < head_dim) out[p] = out[p] * shrink + weight * to_float(v[d]);
      }
    }
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int d = p * 32 + lane;
      if (d < head_dim) store_element(call.out, (row * call.shape.heads + head) * head_dim + d, call.element, out[p] / sum);
    }
  }
}

template <typename C>
void by_cache(const Launch& how, const AttentionCall& call) {
  launch(how, attend_plainly<C>, dim3(static_cast<unsigned>(call.most_rows)), dim3(kThreads), 0, "attention", call);
}

template <typename T>
bool by_matrix_unit(const Launch& how, const AttentionCall& call) {
  const bool aligned = reinterpret_cast<uintptr_t>(call.qkv) % 4 == 0 && call.qkv_stride % 2 == 0;
  if (!aligned) return false;
  switch (call.shape.head_dim) {
    case 64: return start_blocks<T, 64>(how, call), true;
    case 96: return start_blocks<T, 96>(how, call), true;
    case 128: return start_blocks<T, 128>(how, call), true;
    default: return false;
  }
}

}  // namespace

void attend_prompts(const Launch& how, const AttentionCall& call) {
  if (attend_prompts_hopper(how, call)) return;
  if (call.element == Element::bf16 && call.cache.type == KvType::bf16 && by_matrix_unit<bf16>(how, call)) return;
  if (call.element == Element::f16 && call.cache.type == KvType::fp16 && by_matrix_unit<f16>(how, call)) return;
  switch (call.cache.type) {
    case KvType::fp32: return by_cache<float>(how, call);
    case KvType::bf16: return by_cache<bf16>(how, call);
    case KvType::fp16: return by_cache<f16>(how, call);
    default: fail(Code::internal, "attention", "no kernel for this type of cache");
  }
}

void attend_decode(const Launch& how, const AttentionCall& call) { attend_single_rows(how, call, true); }

void attend_any(const Launch& how, const AttentionCall& call) {
  if (call.most_rows == 0) return;
  const dim3 rows(static_cast<unsigned>(call.most_rows));
  const size_t angles = sizeof(float) * static_cast<size_t>(std::max(call.rope.rotary, 1));
  if (call.shape.head_dim > 512) fail(Code::internal, "attention", "heads of " + std::to_string(call.shape.head_dim) + " elements");
  if (!append_eight(how, call)) {
    switch (call.cache.type) {
      case KvType::fp32: launch(how, rotate_and_append<float>, rows, dim3(kThreads), angles, "append", call); break;
      case KvType::bf16: launch(how, rotate_and_append<bf16>, rows, dim3(kThreads), angles, "append", call); break;
      case KvType::fp16: launch(how, rotate_and_append<f16>, rows, dim3(kThreads), angles, "append", call); break;
      default: fail(Code::internal, "append", "no kernel for this type of cache");
    }
  }
  if (call.singles > 0) attend_single_rows(how, call, false);
  attend_prompts(how, call);
}

}  // namespace tandem::cuda
