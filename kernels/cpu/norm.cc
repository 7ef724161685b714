#include "kernels/cpu/norm.h"

#include <cmath>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using Vector = hn::Vec<D>;

// Sum of f(vector i) over the row, in four chains and then the rest, whatever the caller.
template <typename F>
HWY_INLINE float Sum(int64_t width, const F& f) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto all = hn::FirstN(d, lanes);
  Vector a = hn::Zero(d), b = a, c = a, e = a;
  int64_t i = 0;
  for (; i + 4 * lanes <= width; i += 4 * lanes) {
    a = f(i, all, a), b = f(i + lanes, all, b), c = f(i + 2 * lanes, all, c), e = f(i + 3 * lanes, all, e);
  }
  for (; i + lanes <= width; i += lanes) a = f(i, all, a);
  if (i < width) b = f(i, hn::FirstN(d, width - i), b);
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
}

template <typename F>
HWY_INLINE void Each(int64_t width, const F& f) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto all = hn::FirstN(d, lanes);
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) f(i, all);
  if (i < width) f(i, hn::FirstN(d, width - i));
}

void AddNormalize(float* x, const float* pending, int64_t width, NormKind kind, float epsilon, const float* weight, const float* bias,
                  float* out) {
  const D d;
  if (pending != nullptr) {
    Each(width, [&](int64_t i, auto mask) HWY_ATTR {
      hn::BlendedStore(hn::Add(hn::MaskedLoad(mask, d, x + i), hn::MaskedLoad(mask, d, pending + i)), mask, d, x + i);
    });
  }
  if (kind == NormKind::none) {
    if (out != x) Each(width, [&](int64_t i, auto mask) HWY_ATTR { hn::BlendedStore(hn::MaskedLoad(mask, d, x + i), mask, d, out + i); });
    return;
  }
  const auto count = static_cast<float>(width);
  float mean = 0;
  if (kind == NormKind::layer) {
    mean = Sum(width, [&](int64_t i, auto mask, Vector sum) HWY_ATTR { return hn::Add(sum, hn::MaskedLoad(mask, d, x + i)); }) / count;
  }
  const Vector means = hn::Set(d, mean);
  const float squares = Sum(width, [&](int64_t i, auto mask, Vector sum) HWY_ATTR {
    const Vector v = hn::IfThenElseZero(mask, hn::Sub(hn::MaskedLoad(mask, d, x + i), means));
    return hn::MulAdd(v, v, sum);
  });
  const Vector factor = hn::Set(d, 1.0f / std::sqrt(squares / count + epsilon));
  Each(width, [&](int64_t i, auto mask) HWY_ATTR {
    Vector v = hn::Mul(hn::Sub(hn::MaskedLoad(mask, d, x + i), means), factor);
    v = hn::Mul(v, hn::MaskedLoad(mask, d, weight + i));
    if (bias != nullptr) v = hn::Add(v, hn::MaskedLoad(mask, d, bias + i));
    hn::BlendedStore(v, mask, d, out + i);
  });
}

void Add(const float* a, const float* b, int64_t width, float* out) {
  const D d;
  Each(width, [&](int64_t i, auto mask) HWY_ATTR {
    hn::BlendedStore(hn::Add(hn::MaskedLoad(mask, d, a + i), hn::MaskedLoad(mask, d, b + i)), mask, d, out + i);
  });
}

void ScaleAndCap(float* x, int64_t width, float scale, float soft_cap) {
  const D d;
  const Vector scales = hn::Set(d, scale), caps = hn::Set(d, soft_cap), inverse = hn::Set(d, soft_cap == 0 ? 0 : 1 / soft_cap);
  Each(width, [&](int64_t i, auto mask) HWY_ATTR {
    Vector v = hn::Mul(hn::MaskedLoad(mask, d, x + i), scales);
    if (soft_cap != 0) v = hn::IfThenElse(hn::IsNaN(v), v, hn::Mul(caps, hn::Tanh(d, hn::Mul(v, inverse))));
    hn::BlendedStore(v, mask, d, x + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
HWY_EXPORT(AddNormalize);
HWY_EXPORT(Add);
HWY_EXPORT(ScaleAndCap);

void add_normalize(float* x, const float* pending, int64_t width, NormKind kind, float epsilon, const float* weight, const float* bias,
                   float* out) {
  HWY_DYNAMIC_DISPATCH(AddNormalize)(x, pending, width, kind, epsilon, weight, bias, out);
}
void add(const float* a, const float* b, int64_t width, float* out) { HWY_DYNAMIC_DISPATCH(Add)(a, b, width, out); }
void scale_and_cap(float* x, int64_t width, float scale, float soft_cap) { HWY_DYNAMIC_DISPATCH(ScaleAndCap)(x, width, scale, soft_cap); }
}  // namespace tandem::cpu
#endif
