#include "kernels/cpu/rope.h"

#include <cmath>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void Rotate(float* head, int64_t rotary, const float* angles) {
  const hn::ScalableTag<float> d;
  const int64_t half = rotary / 2, lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < half; i += lanes) {
    const auto mask = hn::FirstN(d, half - i);
    const auto a = hn::MaskedLoad(mask, d, head + i), b = hn::MaskedLoad(mask, d, head + half + i);
    const auto cosine = hn::MaskedLoad(mask, d, angles + i), sine = hn::MaskedLoad(mask, d, angles + half + i);
    hn::BlendedStore(hn::NegMulAdd(b, sine, hn::Mul(a, cosine)), mask, d, head + i);
    hn::BlendedStore(hn::MulAdd(a, sine, hn::Mul(b, cosine)), mask, d, head + half + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
HWY_EXPORT(Rotate);

void rotate(float* head, int64_t rotary, const float* angles) { HWY_DYNAMIC_DISPATCH(Rotate)(head, rotary, angles); }

void rope_angles(const Rope& rope, int32_t position, float* angles) {
  const size_t half = rope.inverse_frequency.size();
  for (size_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * rope.inverse_frequency[i];
    angles[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * rope.scale;
    angles[half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * rope.scale;
  }
}
}  // namespace tandem::cpu
#endif
