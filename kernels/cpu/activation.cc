#include "kernels/cpu/activation.h"

#include <cmath>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using Vector = hn::Vec<D>;

template <typename F>
HWY_INLINE void Gate(float* gate, const float* up, int64_t width, const F& f) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto step = [&](int64_t i, auto mask) HWY_ATTR {
    Vector v = f(hn::MaskedLoad(mask, d, gate + i));
    if (up != nullptr) v = hn::Mul(v, hn::MaskedLoad(mask, d, up + i));
    hn::BlendedStore(v, mask, d, gate + i);
  };
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) step(i, hn::FirstN(d, lanes));
  if (i < width) step(i, hn::FirstN(d, width - i));
}

void Activate(Activation activation, float* gate, const float* up, int64_t width) {
  const D d;
  const Vector one = hn::Set(d, 1.0f);
  switch (activation) {
    case Activation::none:
      return Gate(gate, up, width, [](Vector x) HWY_ATTR { return x; });
    case Activation::silu:
      return Gate(gate, up, width, [&](Vector x) HWY_ATTR {
        const Vector e = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)));  // above, Exp leaves its range and x / e its own
        return hn::Div(x, hn::Add(one, e));
      });
    case Activation::gelu:  // no vector erf; the scalar one also keeps bits equal however rows are cut
      for (int64_t i = 0; i < width; ++i) {
        const float x = gate[i], y = 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
        gate[i] = up != nullptr ? y * up[i] : y;
      }
      return;
    case Activation::gelu_tanh:
      return Gate(gate, up, width, [&](Vector x) HWY_ATTR {
        const Vector cube = hn::Mul(hn::Mul(x, x), x);
        const Vector inner = hn::Mul(hn::Set(d, 0.79788456f), hn::MulAdd(hn::Set(d, 0.044715f), cube, x));
        const Vector bounded = hn::Max(hn::Min(inner, hn::Set(d, 20.0f)), hn::Set(d, -20.0f));
        return hn::Mul(hn::Mul(hn::Set(d, 0.5f), x), hn::Add(one, hn::Tanh(d, bounded)));
      });
    case Activation::relu:
      return Gate(gate, up, width, [&](Vector x) HWY_ATTR { return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(d)), x); });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
HWY_EXPORT(Activate);
void activate(Activation activation, float* gate, const float* up, int64_t width) {
  HWY_DYNAMIC_DISPATCH(Activate)(activation, gate, up, width);
}
}  // namespace tandem::cpu
#endif
