#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/dtype.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using Vector = hn::Vec<D>;
constexpr int kQueries = 4, kVectors = HWY_TARGET <= HWY_AVX3 ? 4 : 2;  // of a register tile

struct LoadF32 {
  using T = float;
  static HWY_INLINE Vector Load(const T* p) { return hn::LoadU(D(), p); }
  static float One(T v) { return v; }
};
struct LoadF16 {
  using T = hwy::float16_t;
  static HWY_INLINE Vector Load(const T* p) { return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<hwy::float16_t, D>(), p)); }
  static float One(T v) { return f16_to_float(v.bits); }
};
struct LoadBf16 {
  using T = hwy::bfloat16_t;
  static HWY_INLINE Vector Load(const T* p) { return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, D>(), p)); }
  static float One(T v) { return bf16_to_float(v.bits); }
};

// What will be read next, fetched a slice for every row of what is read now: pages lie far apart, and the hardware would begin anew.
struct Ahead {
  const std::byte* memory = nullptr;
  int64_t slice = 0;  // bytes; 0: nothing
  HWY_INLINE void Fetch(int64_t row) const {
    for (int64_t b = 0; b < slice; b += 64) hwy::Prefetch(memory + row * slice + b);
  }
};

// [rows, cols] of the cache's type as floats, rows `stride` apart, the rest of a row zero.
template <typename Kind>
void Widen(const typename Kind::T* source, int64_t rows, int64_t cols, int64_t stride, float* out) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(D()));
  for (int64_t r = 0; r < rows; ++r, source += cols, out += stride) {
    int64_t c = 0;
    for (; c + lanes <= cols; c += lanes) hn::StoreU(Kind::Load(source + c), D(), out + c);
    for (; c < cols; ++c) out[c] = Kind::One(source[c]);
    for (; c < stride; ++c) out[c] = 0;
  }
}

// scores[q][t] = sum over d of queries[q][d] * keys[d][t], d ascending, for V vectors of tokens.
template <typename Kind, int Q, int V>
HWY_INLINE void ScoreTile(const typename Kind::T* keys, int64_t stride, int64_t head_dim, const float* const* queries, float* const* scores,
                          int64_t at, const Ahead& ahead) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector sums[Q][V];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[q][v] = hn::Zero(d);
  }
  for (int64_t i = 0; i < head_dim; ++i) {
    ahead.Fetch(i);
    Vector key[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) key[v] = Kind::Load(keys + i * stride + at + v * lanes);
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const Vector query = hn::Set(d, queries[q][i]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[q][v] = hn::MulAdd(query, key[v], sums[q][v]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) hn::StoreU(sums[q][v], d, scores[q] + at + v * lanes);
  }
}

template <typename Kind, int Q>
void ScoreRows(const typename Kind::T* keys, int64_t stride, int64_t head_dim, const float* const* queries, float* const* scores,
               const Ahead& ahead) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(D()));
  int64_t t = 0;
  for (; t + kVectors * lanes <= stride; t += kVectors * lanes)
    ScoreTile<Kind, Q, kVectors>(keys, stride, head_dim, queries, scores, t, t == 0 ? ahead : Ahead{});
  for (; t < stride; t += lanes) ScoreTile<Kind, Q, 1>(keys, stride, head_dim, queries, scores, t, t == 0 ? ahead : Ahead{});
}

// values[q][:] += sum over tokens [begin, end), ascending, of weights[q][t] * v[t][:], for V vectors of the head.
template <typename Kind, int Q, int V>
HWY_INLINE void MixTile(const typename Kind::T* v, int64_t stride, int64_t begin, int64_t end, const float* const* weights,
                        float* const* values, int64_t at, const Ahead& ahead) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector sums[Q][V];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) sums[q][i] = hn::LoadU(d, values[q] + at + i * lanes);
  }
  for (int64_t t = begin; t < end; ++t) {
    ahead.Fetch(t);
    Vector value[V];
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) value[i] = Kind::Load(v + t * stride + at + i * lanes);
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const Vector weight = hn::Set(d, weights[q][t]);
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) sums[q][i] = hn::MulAdd(weight, value[i], sums[q][i]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) hn::StoreU(sums[q][i], d, values[q] + at + i * lanes);
  }
}

template <typename Kind, int Q>
void MixRows(const typename Kind::T* v, int64_t stride, int64_t begin, int64_t end, const float* const* weights, float* const* values,
             const Ahead& ahead) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(D()));
  int64_t at = 0;
  for (; at + kVectors * lanes <= stride; at += kVectors * lanes)
    MixTile<Kind, Q, kVectors>(v, stride, begin, end, weights, values, at, at == 0 ? ahead : Ahead{});
  for (; at < stride; at += lanes) MixTile<Kind, Q, 1>(v, stride, begin, end, weights, values, at, at == 0 ? ahead : Ahead{});
}

// Raw scores of whole pages, `page_stride` floats apart, become weights exp(scale * s - maximum) of the tokens [begin, end) counted from
// the first page, zero elsewhere. NaN scores give NaN weights.
void Weigh(float* scores, int64_t pages, int64_t page_stride, int64_t page_tokens, int64_t begin, int64_t end, float scale, float soft_cap,
           float* maximum, float* sum) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t count = pages * page_stride;
  const float low = -std::numeric_limits<float>::infinity();
  if (soft_cap != 0) {
    for (int64_t i = 0; i < count; i += lanes) {
      const Vector s = hn::LoadU(d, scores + i);
      const Vector capped = hn::Mul(hn::Set(d, soft_cap), hn::Tanh(d, hn::Mul(s, hn::Set(d, scale / soft_cap))));
      hn::StoreU(hn::IfThenElse(hn::IsNaN(s), s, capped), d, scores + i);
    }
    scale = 1;
  }
  for (int64_t page = 0; page < pages; ++page) {
    float* of_page = scores + page * page_stride;
    const int64_t from = std::clamp<int64_t>(begin - page * page_tokens, 0, page_tokens);
    std::fill(of_page, of_page + from, low);
    std::fill(of_page + std::clamp<int64_t>(end - page * page_tokens, from, page_tokens), of_page + page_stride, low);
  }
  Vector highest = hn::Set(d, low);
  for (int64_t i = 0; i < count; i += lanes) highest = hn::Max(highest, hn::LoadU(d, scores + i));
  highest = hn::MaxOfLanes(d, highest);
  const Vector scales = hn::Set(d, scale);
  Vector sums = hn::Zero(d);
  for (int64_t i = 0; i < count; i += lanes) {
    const Vector s = hn::Mul(hn::Sub(hn::LoadU(d, scores + i), highest), scales);
    const Vector weight = hn::IfThenElse(hn::IsNaN(s), s, hn::Exp(d, s));
    hn::StoreU(weight, d, scores + i);
    sums = hn::Add(sums, weight);
  }
  *maximum = hn::GetLane(highest) * scale;
  *sum = hn::GetLane(hn::SumOfLanes(d, sums));
}

int64_t RoundUp(int64_t n) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(D()));
  return (n + lanes - 1) / lanes * lanes;
}

template <typename Kind>
void Scores(const typename Kind::T* keys, int64_t stride, int64_t head_dim, const float* const* queries, float* const* scores,
            int64_t count, const Ahead& ahead) {
  for (int64_t q = 0; q < count; q += kQueries) {
    const Ahead fetch = q == 0 ? ahead : Ahead{};
    switch (std::min<int64_t>(kQueries, count - q)) {
      case 4:
        ScoreRows<Kind, 4>(keys, stride, head_dim, queries + q, scores + q, fetch);
        break;
      case 3:
        ScoreRows<Kind, 3>(keys, stride, head_dim, queries + q, scores + q, fetch);
        break;
      case 2:
        ScoreRows<Kind, 2>(keys, stride, head_dim, queries + q, scores + q, fetch);
        break;
      default:
        ScoreRows<Kind, 1>(keys, stride, head_dim, queries + q, scores + q, fetch);
    }
  }
}

struct Range {
  int64_t begin, end;
};

// Up to kQueries queries with ranges of their own: what they all see together, the edges one by one, tokens ascending for each.
template <typename Kind, int Q>
void MixGroup(const typename Kind::T* v, int64_t stride, const Range* ranges, const float* const* weights, float* const* values,
              const Ahead& ahead) {
  int64_t begin = 0, end = std::numeric_limits<int64_t>::max();
  for (int q = 0; q < Q; ++q) begin = std::max(begin, ranges[q].begin), end = std::min(end, ranges[q].end);
  if (Q == 1 || begin >= end) {
    for (int q = 0; q < Q; ++q) {
      if (ranges[q].begin < ranges[q].end)
        MixRows<Kind, 1>(v, stride, ranges[q].begin, ranges[q].end, weights + q, values + q, q == 0 ? ahead : Ahead{});
    }
    return;
  }
  for (int q = 0; q < Q; ++q) {
    if (ranges[q].begin < begin) MixRows<Kind, 1>(v, stride, ranges[q].begin, begin, weights + q, values + q, {});
  }
  MixRows<Kind, Q>(v, stride, begin, end, weights, values, ahead);
  for (int q = 0; q < Q; ++q) {
    if (end < ranges[q].end) MixRows<Kind, 1>(v, stride, end, ranges[q].end, weights + q, values + q, {});
  }
}

template <typename Kind>
void Mix(const typename Kind::T* v, int64_t stride, const Range* ranges, const float* const* weights, float* const* values, int64_t count,
         const Ahead& ahead) {
  for (int64_t q = 0; q < count; q += kQueries) {
    const Ahead fetch = q == 0 ? ahead : Ahead{};
    switch (std::min<int64_t>(kQueries, count - q)) {
      case 4:
        MixGroup<Kind, 4>(v, stride, ranges + q, weights + q, values + q, fetch);
        break;
      case 3:
        MixGroup<Kind, 3>(v, stride, ranges + q, weights + q, values + q, fetch);
        break;
      case 2:
        MixGroup<Kind, 2>(v, stride, ranges + q, weights + q, values + q, fetch);
        break;
      default:
        MixGroup<Kind, 1>(v, stride, ranges + q, weights + q, values + q, fetch);
    }
  }
}

template <typename Kind>
void AttendSplit(const AttentionShape& shape, const HeadPages& pages, const QueryBlock& block, int64_t split, float* states,
                 float* scratch) {
  using T = typename Kind::T;
  const int64_t head_dim = shape.head_dim, tokens = shape.page_tokens, count = block.rows * shape.group;
  const int64_t first = split * shape.split_tokens(), keys_stride = RoundUp(tokens), values_stride = RoundUp(head_dim);
  // Read in place what is a whole number of vectors; converting once pays when many queries read it.
  const bool widen_keys = keys_stride != tokens || (sizeof(T) < 4 && count > 2 * kQueries);
  const bool widen_values = values_stride != head_dim || (sizeof(T) < 4 && count > 2 * kQueries);

  float* wide = scratch;                                                            // one page
  float* scores = wide + std::max(head_dim * keys_stride, tokens * values_stride);  // [count, split_pages, keys_stride]
  float* mixed = scores + count * shape.split_pages * keys_stride;                  // [count, values_stride]
  const int64_t score_stride = shape.split_pages * keys_stride;
  const float* queries[kMaxQueries];
  float *rows[kMaxQueries], *values[kMaxQueries];
  Range seen[kMaxQueries], ranges[kMaxQueries];  // tokens of this split

  for (int64_t chunk = 0; chunk < count; chunk += kMaxQueries) {
    const int64_t n = std::min<int64_t>(kMaxQueries, count - chunk);
    int64_t begin = shape.split_tokens(), end = 0;  // seen by any
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = (chunk + i) / shape.group, position = block.position + row;
      queries[i] = block.queries + row * block.row_stride + (chunk + i) % shape.group * head_dim;
      seen[i].begin = shape.window == 0 ? 0 : std::max<int64_t>(0, position + 1 - shape.window - first);
      seen[i].end = std::min(shape.split_tokens(), position + 1 - first);
      if (seen[i].begin >= seen[i].end)
        seen[i] = {0, 0};
      else
        begin = std::min(begin, seen[i].begin), end = std::max(end, seen[i].end);
      values[i] = mixed + (chunk + i) * values_stride;
      std::fill(values[i], values[i] + values_stride, 0.0f);
    }
    const int64_t page_begin = begin / tokens, page_end = end == 0 ? page_begin : (end + tokens - 1) / tokens;
    for (int64_t page = page_begin; page < page_end; ++page) {
      for (int64_t i = 0; i < n; ++i) rows[i] = scores + (chunk + i) * score_stride + page * keys_stride;
      const T* keys = reinterpret_cast<const T*>(pages.page(split * shape.split_pages + page));
      const Ahead ahead{reinterpret_cast<const std::byte*>(keys + head_dim * tokens),
                        tokens * static_cast<int64_t>(sizeof(T))};  // its values
      if (widen_keys) {
        Widen<Kind>(keys, head_dim, tokens, keys_stride, wide);
        Scores<LoadF32>(wide, keys_stride, head_dim, queries, rows, n, ahead);
      } else {
        Scores<Kind>(keys, keys_stride, head_dim, queries, rows, n, ahead);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      float* state = states + (chunk + i) * state_floats(shape);
      if (seen[i].end == 0) {
        state[0] = -std::numeric_limits<float>::infinity(), state[1] = 0;
        continue;
      }
      const int64_t from = seen[i].begin / tokens, to = (seen[i].end + tokens - 1) / tokens;
      Weigh(scores + (chunk + i) * score_stride + from * keys_stride, to - from, keys_stride, tokens, seen[i].begin - from * tokens,
            seen[i].end - from * tokens, shape.scale, shape.soft_cap, state, state + 1);
    }
    for (int64_t page = page_begin; page < page_end; ++page) {
      for (int64_t i = 0; i < n; ++i) {
        rows[i] = scores + (chunk + i) * score_stride + page * keys_stride;
        ranges[i] = {std::clamp<int64_t>(seen[i].begin - page * tokens, 0, tokens),
                     std::clamp<int64_t>(seen[i].end - page * tokens, 0, tokens)};
      }
      const T* v = reinterpret_cast<const T*>(pages.page(split * shape.split_pages + page)) + head_dim * tokens;
      const int64_t next = (split + 1) * shape.split_pages + page;  // a page of keys of the next split
      Ahead ahead;
      if (next * tokens < block.position + block.rows) ahead = {pages.page(next), head_dim * static_cast<int64_t>(sizeof(T))};
      if (widen_values) {
        Widen<Kind>(v, tokens, head_dim, values_stride, wide);
        Mix<LoadF32>(wide, values_stride, ranges, rows, values, n, ahead);
      } else {
        Mix<Kind>(v, values_stride, ranges, rows, values, n, ahead);
      }
    }
    for (int64_t i = 0; i < n; ++i) std::copy_n(values[i], head_dim, states + (chunk + i) * state_floats(shape) + 2);
  }
}

void AttendAny(const AttentionShape& shape, const HeadPages& pages, const QueryBlock& block, int64_t split, float* states, float* scratch) {
  switch (shape.type) {
    case KvType::fp32:
      return AttendSplit<LoadF32>(shape, pages, block, split, states, scratch);
    case KvType::fp16:
      return AttendSplit<LoadF16>(shape, pages, block, split, states, scratch);
    default:
      return AttendSplit<LoadBf16>(shape, pages, block, split, states, scratch);
  }
}

void Append(const AttentionShape& shape, std::byte* page, int64_t token, const float* key, const float* value) {
  const int64_t tokens = shape.page_tokens, head_dim = shape.head_dim;
  if (shape.type == KvType::fp32) {
    float* keys = reinterpret_cast<float*>(page);
    for (int64_t i = 0; i < head_dim; ++i) keys[i * tokens + token] = key[i];
    std::copy_n(value, head_dim, keys + tokens * head_dim + token * head_dim);
    return;
  }
  auto* keys = reinterpret_cast<uint16_t*>(page);
  uint16_t* values = keys + tokens * head_dim + token * head_dim;
  if (shape.type == KvType::bf16) {
    for (int64_t i = 0; i < head_dim; ++i) keys[i * tokens + token] = float_to_bf16(key[i]);
    for (int64_t i = 0; i < head_dim; ++i) values[i] = float_to_bf16(value[i]);
    return;
  }
  const D d;
  const hn::Rebind<hwy::float16_t, D> halves;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hwy::float16_t column[hn::MaxLanes(D())];
  int64_t i = 0;
  for (; i + lanes <= head_dim; i += lanes) {
    hn::StoreU(hn::DemoteTo(halves, hn::LoadU(d, key + i)), halves, column);
    for (int64_t j = 0; j < lanes; ++j) keys[(i + j) * tokens + token] = column[j].bits;
    hn::StoreU(hn::DemoteTo(halves, hn::LoadU(d, value + i)), halves, reinterpret_cast<hwy::float16_t*>(values + i));
  }
  for (; i < head_dim; ++i) keys[i * tokens + token] = float_to_f16(key[i]), values[i] = float_to_f16(value[i]);
}

void Fold(int64_t head_dim, int64_t queries, const float* from, float* into) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t q = 0; q < queries; ++q, from += head_dim + 2, into += head_dim + 2) {
    if (from[1] == 0) continue;
    const float highest = std::max(from[0], into[0]);
    const float a = into[1] == 0 ? 0.0f : std::exp(into[0] - highest), b = std::exp(from[0] - highest);
    into[0] = highest;
    into[1] = into[1] * a + from[1] * b;
    const Vector as = hn::Set(d, a), bs = hn::Set(d, b);
    for (int64_t i = 0; i < head_dim; i += lanes) {
      const auto mask = hn::FirstN(d, head_dim - i);
      const Vector v = hn::MulAdd(hn::MaskedLoad(mask, d, into + 2 + i), as, hn::Mul(hn::MaskedLoad(mask, d, from + 2 + i), bs));
      hn::BlendedStore(v, mask, d, into + 2 + i);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
HWY_EXPORT(AttendAny);
HWY_EXPORT(Append);
HWY_EXPORT(Fold);

int64_t split_pages(int64_t page_tokens) { return std::max<int64_t>(1, 256 / page_tokens); }

int64_t block_rows(const AttentionShape& shape) { return std::max<int64_t>(1, kMaxQueries / shape.group); }

uint64_t attention_scratch_bytes(const AttentionShape& shape) {
  const auto padded = [](int64_t n) { return (n + 15) / 16 * 16; };  // the widest vectors
  const int64_t keys = shape.head_dim * padded(shape.page_tokens), values = shape.page_tokens * padded(shape.head_dim);
  const int64_t queries = block_rows(shape) * shape.group;
  return sizeof(float) *
         static_cast<uint64_t>(std::max(keys, values) + queries * (shape.split_pages * padded(shape.page_tokens) + padded(shape.head_dim)));
}

int64_t first_split(const AttentionShape& shape, const QueryBlock& block) {
  return shape.window == 0 ? 0 : std::max<int64_t>(0, block.position + 1 - shape.window) / shape.split_tokens();
}
int64_t end_split(const AttentionShape& shape, const QueryBlock& block) {
  return (block.position + block.rows + shape.split_tokens() - 1) / shape.split_tokens();
}

void append(const AttentionShape& shape, const HeadPages& pages, int64_t position, const float* key, const float* value) {
  HWY_DYNAMIC_DISPATCH(Append)(shape, pages.page(position / shape.page_tokens), position % shape.page_tokens, key, value);
}

void attend_split(const AttentionShape& shape, const HeadPages& pages, const QueryBlock& block, int64_t split, float* states,
                  std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(AttendAny)(shape, pages, block, split, states, reinterpret_cast<float*>(scratch));
}

void clear_states(const AttentionShape& shape, int64_t queries, float* states) {
  std::fill_n(states, queries * state_floats(shape), 0.0f);
  for (int64_t q = 0; q < queries; ++q) states[q * state_floats(shape)] = -std::numeric_limits<float>::infinity();
}

void fold_states(const AttentionShape& shape, int64_t queries, const float* from, float* into) {
  HWY_DYNAMIC_DISPATCH(Fold)(shape.head_dim, queries, from, into);
}

void finish_states(const AttentionShape& shape, int64_t rows, const float* states, float* out, int64_t row_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < shape.group; ++g, states += state_floats(shape)) {
      const float inverse = 1 / states[1];
      for (int64_t i = 0; i < shape.head_dim; ++i) out[r * row_stride + g * shape.head_dim + i] = states[2 + i] * inverse;
    }
  }
}
}  // namespace tandem::cpu
#endif
