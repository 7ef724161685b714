#include "kernels/cpu/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/base/error.h"
#include "kernels/base/philox.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using Vector = hn::Vec<D>;
constexpr float kLow = -std::numeric_limits<float>::infinity();
constexpr int64_t kBlock = 1024;  // sums are floats inside a block, doubles across blocks

// The largest value; NaN when any is.
float Highest(const float* values, int64_t count) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector highest = hn::Set(d, kLow), strange = hn::Zero(d);
  const auto step = [&](Vector v) HWY_ATTR {
    strange = hn::IfThenElse(hn::IsNaN(v), v, strange);
    highest = hn::Max(highest, v);
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) step(hn::LoadU(d, values + i));
  if (i < count) {
    const auto mask = hn::FirstN(d, count - i);
    step(hn::IfThenElse(mask, hn::MaskedLoad(mask, d, values + i), hn::Set(d, kLow)));
  }
  if (!hn::AllFalse(d, hn::IsNaN(strange))) return std::numeric_limits<float>::quiet_NaN();
  return hn::GetLane(hn::MaxOfLanes(d, highest));
}

// The first index whose value is `wanted`; count when there is none.
int64_t FirstEqual(const float* values, int64_t count, float wanted) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector w = hn::Set(d, wanted);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    if (!hn::AllFalse(d, hn::Eq(hn::LoadU(d, values + i), w))) break;
  }
  while (i < count && values[i] != wanted) ++i;
  return i;
}

// values = (values - highest) / temperature
void Shift(float* values, int64_t count, float highest, float temperature) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector h = hn::Set(d, highest), t = hn::Set(d, temperature);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(hn::Div(hn::Sub(hn::LoadU(d, values + i), h), t), d, values + i);
  for (; i < count; ++i) values[i] = (values[i] - highest) / temperature;
}

// The sum of exp(values - highest); the terms go to `terms` unless it is null.
double Exponentials(const float* values, int64_t count, float highest, float* terms) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector h = hn::Set(d, highest);
  double total = 0;
  for (int64_t block = 0; block < count; block += kBlock) {
    const int64_t end = std::min(count, block + kBlock);
    Vector sum = hn::Zero(d);
    int64_t i = block;
    for (; i + lanes <= end; i += lanes) {
      const Vector e = hn::Exp(d, hn::Sub(hn::LoadU(d, values + i), h));
      if (terms != nullptr) hn::StoreU(e, d, terms + i);
      sum = hn::Add(sum, e);
    }
    if (i < end) {
      const auto mask = hn::FirstN(d, end - i);
      const Vector e = hn::IfThenElseZero(mask, hn::Exp(d, hn::Sub(hn::MaskedLoad(mask, d, values + i), h)));
      if (terms != nullptr) hn::BlendedStore(e, mask, d, terms + i);
      sum = hn::Add(sum, e);
    }
    total += hn::GetLane(hn::SumOfLanes(d, sum));
  }
  return total;
}

// Values that are at least `floor` and above minus infinity, with their indices, in order. kept may be values itself; both arrays
// have room for a vector more.
int64_t AtLeast(const float* values, int64_t count, float floor, int32_t* ids, float* kept) {
  const D d;
  const hn::RebindToSigned<D> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector f = hn::Set(d, floor), low = hn::Set(d, kLow);
  int64_t n = 0, i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vector v = hn::LoadU(d, values + i);
    const auto mask = hn::And(hn::Ge(v, f), hn::Gt(v, low));
    if (hn::AllFalse(d, mask)) continue;
    hn::CompressStore(hn::Iota(di, static_cast<int32_t>(i)), hn::RebindMask(di, mask), di, ids + n);
    n += static_cast<int64_t>(hn::CompressStore(v, mask, d, kept + n));
  }
  for (; i < count; ++i) {
    const float v = values[i];
    if (v >= floor && v > kLow) ids[n] = static_cast<int32_t>(i), kept[n++] = v;
  }
  return n;
}

// The k-th largest value, 1 <= k <= count. space: float[sample_space(count)]. One pass: what exceeds the k-th largest so far is
// collected, and the collection cut back to k when it is full.
float KthLargest(const float* values, int64_t count, int64_t k, float* space) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t room = std::min(count, std::max<int64_t>(2 * k, 4096));
  float floor = kLow;
  int64_t n = 0, i = 0;
  const auto cut = [&] {
    std::nth_element(space, space + k - 1, space + n, std::greater<>());
    floor = space[k - 1], n = k;
  };
  for (; i + lanes <= count; i += lanes) {
    const Vector v = hn::LoadU(d, values + i);
    const auto mask = hn::Gt(v, hn::Set(d, floor));
    if (hn::AllFalse(d, mask)) continue;
    n += static_cast<int64_t>(hn::CompressStore(v, mask, d, space + n));
    if (n > room) cut();
  }
  for (; i < count; ++i) {
    if (values[i] > floor) space[n++] = values[i];
  }
  if (n < k) return floor;  // the rest is minus infinity, or equals the floor
  cut();
  return floor;
}

// The sum of f(i, mask) over [0, count), floats inside a block, doubles across.
template <typename F>
HWY_INLINE double SumBlocks(int64_t count, const F& f) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto all = hn::FirstN(d, lanes);
  double total = 0;
  for (int64_t block = 0; block < count; block += kBlock) {
    const int64_t end = std::min(count, block + kBlock);
    Vector sum = hn::Zero(d);
    int64_t i = block;
    for (; i + lanes <= end; i += lanes) sum = hn::Add(sum, f(i, all));
    if (i < end) sum = hn::Add(sum, f(i, hn::FirstN(d, end - i)));
    total += hn::GetLane(hn::SumOfLanes(d, sum));
  }
  return total;
}

double Sum(const float* values, int64_t count) {
  return SumBlocks(count, [&](int64_t i, auto mask) HWY_ATTR { return hn::MaskedLoad(mask, D(), values + i); });
}
double SumProducts(const float* a, const float* b, int64_t count) {
  return SumBlocks(
      count, [&](int64_t i, auto mask) HWY_ATTR { return hn::Mul(hn::MaskedLoad(mask, D(), a + i), hn::MaskedLoad(mask, D(), b + i)); });
}
double SumUpTo(const float* keys, const float* weights, int64_t count, float limit) {
  const Vector l = hn::Set(D(), limit);
  return SumBlocks(count, [&](int64_t i, auto mask) HWY_ATTR {
    return hn::IfThenElseZero(hn::Le(hn::MaskedLoad(mask, D(), keys + i), l), hn::MaskedLoad(mask, D(), weights + i));
  });
}

// keys = |values - center|
void Distances(const float* values, int64_t count, float center, float* keys) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(hn::Abs(hn::Sub(hn::LoadU(d, values + i), hn::Set(d, center))), d, keys + i);
  for (; i < count; ++i) keys[i] = std::abs(values[i] - center);
}

void Bounds(const float* keys, int64_t count, float* least, float* most) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  *least = *most = keys[0];
  if (count >= lanes) {
    Vector low = hn::LoadU(d, keys), high = low;
    for (int64_t i = 0; i + lanes <= count; i += lanes) {
      const Vector k = hn::LoadU(d, keys + i);
      low = hn::Min(low, k), high = hn::Max(high, k);
    }
    *least = hn::GetLane(hn::MinOfLanes(d, low)), *most = hn::GetLane(hn::MaxOfLanes(d, high));
  }
  for (int64_t i = count / lanes * lanes; i < count; ++i) *least = std::min(*least, keys[i]), *most = std::max(*most, keys[i]);
}

// Elements whose key is at most `limit` (or above it), in order. The results may be the sources; room for a vector more.
int64_t Part(const float* keys, const float* weights, int64_t count, float limit, bool above, float* kept_keys, float* kept_weights) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector l = hn::Set(d, limit);
  int64_t n = 0, i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vector k = hn::LoadU(d, keys + i), w = hn::LoadU(d, weights + i);
    const auto mask = above ? hn::Gt(k, l) : hn::Le(k, l);
    hn::CompressStore(w, mask, d, kept_weights + n);
    n += static_cast<int64_t>(hn::CompressStore(k, mask, d, kept_keys + n));
  }
  for (; i < count; ++i) {
    if ((keys[i] > limit) == above) kept_keys[n] = keys[i], kept_weights[n++] = weights[i];
  }
  return n;
}

// Keeps elements whose key is at most `limit`, in place and in order; keys themselves are left as they are.
int64_t KeepUpTo(const float* keys, int64_t count, float limit, int32_t* ids, float* values, float* weights) {
  const D d;
  const hn::RebindToSigned<D> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector l = hn::Set(d, limit);
  int64_t n = 0, i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto mask = hn::Le(hn::LoadU(d, keys + i), l);
    if (hn::AllFalse(d, mask)) continue;
    const auto id = hn::LoadU(di, ids + i);
    const Vector v = hn::LoadU(d, values + i), w = hn::LoadU(d, weights + i);
    hn::CompressStore(id, hn::RebindMask(di, mask), di, ids + n);
    hn::CompressStore(v, mask, d, values + n);
    n += static_cast<int64_t>(hn::CompressStore(w, mask, d, weights + n));
  }
  for (; i < count; ++i) {
    if (keys[i] <= limit) ids[n] = ids[i], values[n] = values[i], weights[n++] = weights[i];
  }
  return n;
}

}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

HWY_EXPORT(Highest);
HWY_EXPORT(FirstEqual);
HWY_EXPORT(Shift);
HWY_EXPORT(Exponentials);
HWY_EXPORT(AtLeast);
HWY_EXPORT(KthLargest);
HWY_EXPORT(Sum);
HWY_EXPORT(SumProducts);
HWY_EXPORT(SumUpTo);
HWY_EXPORT(Distances);
HWY_EXPORT(Bounds);
HWY_EXPORT(Part);
HWY_EXPORT(KeepUpTo);

constexpr float kNothing = -std::numeric_limits<float>::infinity();

int64_t padded(int64_t vocab) { return (vocab + 127) / 64 * 64; }  // a vector more, in whole cache lines

struct Candidates {  // in ascending order of ids
  int64_t count = 0;
  int32_t* ids = nullptr;
  float *values = nullptr, *weights = nullptr;          // values are at most 0; weights = exp(values)
  float* keys = nullptr;                                // what a filter orders them by, the first to stay lowest
  float *work_keys = nullptr, *work_weights = nullptr;  // of last_within
  double total = 0;                                     // of the weights

  void weigh() { total = HWY_DYNAMIC_DISPATCH(Exponentials)(values, count, 0, weights); }
  void keep_up_to(float limit) {
    count = HWY_DYNAMIC_DISPATCH(KeepUpTo)(keys, count, limit, ids, values, weights);
    total = HWY_DYNAMIC_DISPATCH(Sum)(weights, count);
  }
};

// In ascending order of keys (at least 0) an element is kept when the weights before it sum to less than `mass`, the first in any
// case: the key of the last one kept. `before`: the weights of lower keys. The range of keys is halved, and what is outside it left
// behind, until few are left to sort.
float last_within(const Candidates& c, double mass, double* before) {
  constexpr int64_t kFew = 128;
  const float *keys = c.keys, *weights = c.weights;
  int64_t count = c.count;
  *before = 0;
  bool halve_bits = false;
  for (;;) {
    float low, high;
    HWY_DYNAMIC_DISPATCH(Bounds)(keys, count, &low, &high);
    if (low == high) return low;
    if (count <= kFew) break;
    float middle = low + (high - low) / 2;
    if (halve_bits) middle = std::bit_cast<float>(std::midpoint(std::bit_cast<int32_t>(low), std::bit_cast<int32_t>(high)));
    middle = middle < high ? std::max(middle, low) : low;  // so that both sides have some
    const double below = HWY_DYNAMIC_DISPATCH(SumUpTo)(keys, weights, count, middle);
    const bool above = *before + below < mass;
    if (above) *before += below;
    const int64_t left = HWY_DYNAMIC_DISPATCH(Part)(keys, weights, count, middle, above, c.work_keys, c.work_weights);
    halve_bits = !halve_bits && left > count - count / 8;  // keys lie close together at one end
    keys = c.work_keys, weights = c.work_weights, count = left;
  }
  int32_t order[kFew];
  std::iota(order, order + count, 0);
  std::sort(order, order + count, [&](int32_t a, int32_t b) { return keys[a] != keys[b] ? keys[a] < keys[b] : a < b; });
  for (int64_t i = 0; i < count;) {  // equal keys together
    double sum = 0;
    int64_t next = i;
    while (next < count && keys[order[next]] == keys[order[i]]) sum += weights[order[next++]];
    if (next == count || *before + sum >= mass) return keys[order[i]];
    *before += sum;
    i = next;
  }
  return keys[order[count - 1]];
}

void keep_top_p(Candidates& c, float top_p) {
  HWY_DYNAMIC_DISPATCH(Distances)(c.values, c.count, 0, c.keys);
  double before = 0;
  const double mass = top_p * c.total;
  const float limit = last_within(c, mass, &before);
  // Of those that equal the last one only as many stay as are needed, lower ids first.
  bool first = true;
  for (int64_t i = 0; i < c.count; ++i) {
    if (c.keys[i] != limit) continue;
    if (!first && before >= mass) c.keys[i] = std::numeric_limits<float>::infinity();
    before += c.weights[i];
    first = false;
  }
  c.keep_up_to(limit);
}

void keep_min_p(Candidates& c, float min_p) {
  HWY_DYNAMIC_DISPATCH(Distances)(c.values, c.count, 0, c.keys);  // below the best
  c.keep_up_to(-std::log(std::min(min_p, 1.0f)));
}

// Meister et al. 2022: the ids whose information is closest to the distribution's entropy.
void keep_typical(Candidates& c, float typical_p) {
  // Information is log(total) - value, entropy log(total) - mean value: their distance needs no logarithm.
  const double mean = HWY_DYNAMIC_DISPATCH(SumProducts)(c.values, c.weights, c.count) / c.total;
  HWY_DYNAMIC_DISPATCH(Distances)(c.values, c.count, static_cast<float>(mean), c.keys);
  double before = 0;
  c.keep_up_to(last_within(c, typical_p * c.total, &before));
}

// The first index whose cumulative weight exceeds u times the whole.
int64_t invert(const float* weights, int64_t count, double total, double u) {
  constexpr int64_t kBlock = 1024;
  const double target = u * total;
  double sum = 0;
  int64_t last = 0;
  for (int64_t block = 0; block < count; block += kBlock) {
    const int64_t end = std::min(count, block + kBlock);
    const double of_block = HWY_DYNAMIC_DISPATCH(Sum)(weights + block, end - block);
    if (sum + of_block <= target) {
      sum += of_block;
      continue;
    }
    for (int64_t i = block; i < end; ++i) {
      if (weights[i] > 0) last = i;
      sum += weights[i];
      if (sum > target) return i;
    }
    return last;  // rounding: the block's own sum was above the target
  }
  for (int64_t i = 0; i < count; ++i) {
    if (weights[i] > 0) last = i;
  }
  return last;
}

void keep_allowed(std::span<const uint32_t> allowed, float* values, int64_t vocab) {
  for (int64_t begin = 0, word = 0; begin < vocab; begin += 32, ++word) {
    const uint32_t bits = word < static_cast<int64_t>(allowed.size()) ? allowed[static_cast<size_t>(word)] : 0;
    if (bits == ~uint32_t{0}) continue;
    const int64_t end = std::min<int64_t>(vocab, begin + 32);
    for (int64_t i = begin; i < end; ++i) {
      if (!(bits >> (i - begin) & 1)) values[i] = kNothing;
    }
  }
}

void report(const float* logits, int64_t vocab, float highest, int32_t wanted, Candidates& space, Sampled& out) {
  const auto log_total = static_cast<float>(highest + std::log(HWY_DYNAMIC_DISPATCH(Exponentials)(logits, vocab, highest, nullptr)));
  out.logprob = logits[out.id] - log_total;
  out.top_count = static_cast<int32_t>(std::min<int64_t>({wanted, kMaxLogprobs, vocab}));
  if (out.top_count <= 0) return;
  const float floor = HWY_DYNAMIC_DISPATCH(KthLargest)(logits, vocab, out.top_count, space.weights);
  const int64_t n = HWY_DYNAMIC_DISPATCH(AtLeast)(logits, vocab, floor, space.ids, space.values);
  out.top_count = static_cast<int32_t>(std::min<int64_t>(out.top_count, n));
  std::partial_sort(space.ids, space.ids + out.top_count, space.ids + n,
                    [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  for (int32_t i = 0; i < out.top_count; ++i) out.top_ids[i] = space.ids[i], out.top_logprobs[i] = logits[space.ids[i]] - log_total;
}

}  // namespace

uint64_t sample_scratch_bytes(int64_t vocab) { return 6 * sizeof(float) * static_cast<uint64_t>(padded(vocab)); }

Sampled sample_row(const float* logits, int64_t vocab, const SampleRow& row, std::byte* scratch) {
  const Sampling& s = *row.sampling;
  Candidates c;
  c.values = reinterpret_cast<float*>(scratch);
  c.weights = c.values + padded(vocab);
  c.keys = c.weights + padded(vocab);
  c.work_keys = c.keys + padded(vocab);
  c.work_weights = c.work_keys + padded(vocab);
  c.ids = reinterpret_cast<int32_t*>(c.work_weights + padded(vocab));

  const float highest_logit = HWY_DYNAMIC_DISPATCH(Highest)(logits, vocab);
  if (std::isnan(highest_logit)) fail(Code::internal, "sample", "logits hold NaN");
  const bool changed = !row.counts.empty() || !row.forbidden.empty() || !row.allowed.empty();
  float highest = highest_logit;
  const float* processed = logits;
  if (changed || s.temperature > 0) {
    std::copy_n(logits, vocab, c.values);
    processed = c.values;
  }
  if (changed) {
    for (const TokenCount& count : row.counts) {
      if (count.id < 0 || count.id >= vocab) continue;
      float& v = c.values[count.id];
      v += count.bias;
      if (count.prompt > 0 || count.generated > 0) v = v < 0 ? v * s.repetition_penalty : v / s.repetition_penalty;
      if (count.generated > 0) v -= s.presence_penalty + s.frequency_penalty * static_cast<float>(count.generated);
    }
    for (const int32_t id : row.forbidden) {
      if (id >= 0 && id < vocab) c.values[id] = kNothing;
    }
    if (!row.allowed.empty()) keep_allowed(row.allowed, c.values, vocab);
    highest = HWY_DYNAMIC_DISPATCH(Highest)(c.values, vocab);
  }
  if (std::isnan(highest) || highest == kNothing) fail(Code::internal, "sample", "no id has a probability above zero");

  Sampled out;
  if (s.temperature <= 0 || std::isinf(highest)) {
    out.id = static_cast<int32_t>(HWY_DYNAMIC_DISPATCH(FirstEqual)(processed, vocab, highest));
  } else {
    HWY_DYNAMIC_DISPATCH(Shift)(c.values, vocab, highest, s.temperature);
    const bool top_k = s.top_k > 0 && s.top_k < vocab, top_p = s.top_p < 1, typical = s.typical_p<1, min_p = s.min_p> 0;
    const double u = philox_uniform(s.seed, static_cast<uint32_t>(row.position), 0, s.choice);
    if (!top_k && !top_p && !typical && !min_p) {
      c.total = HWY_DYNAMIC_DISPATCH(Exponentials)(c.values, vocab, 0, c.weights);
      out.id = static_cast<int32_t>(invert(c.weights, vocab, c.total, u));
    } else {
      float floor = kNothing;
      double whole = 0;  // weight of all ids, those below the floor included
      if (top_k) {
        floor = HWY_DYNAMIC_DISPATCH(KthLargest)(c.values, vocab, s.top_k, c.weights);
      } else if (top_p) {  // ids so improbable that all like them together stay below 1 - top_p are in the tail that goes
        whole = HWY_DYNAMIC_DISPATCH(Exponentials)(c.values, vocab, 0, nullptr);
        floor = static_cast<float>(std::log((1.0 - s.top_p) * whole / static_cast<double>(vocab))) - 0.01f;
        if (s.top_p > 0.9999f) floor = kNothing;  // too near to what floats can tell apart
      }
      c.count = HWY_DYNAMIC_DISPATCH(AtLeast)(c.values, vocab, floor, c.ids, c.values);
      c.weigh();
      if (whole > 0) c.total = whole;
      if (top_p) keep_top_p(c, s.top_p);
      if (min_p) keep_min_p(c, s.min_p);
      if (typical) keep_typical(c, s.typical_p);
      out.id = c.ids[invert(c.weights, c.count, c.total, u)];
    }
  }
  if (s.logprobs >= 0) report(logits, vocab, highest_logit, s.logprobs, c, out);
  return out;
}

}  // namespace tandem::cpu
#endif
