#include "kernels/cpu/moe.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moe.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void Join(const int32_t* pair_of, const float* weights, int32_t top_k, const float* results, int64_t stride, int64_t width, float* out) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < width; i += lanes) {
    const auto mask = hn::FirstN(d, width - i);
    auto sum = hn::Zero(d);
    for (int32_t c = 0; c < top_k; ++c) {
      if (pair_of[c] < 0) continue;
      sum = hn::MulAdd(hn::Set(d, weights[c]), hn::MaskedLoad(mask, d, results + pair_of[c] * stride + i), sum);
    }
    hn::BlendedStore(sum, mask, d, out + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
HWY_EXPORT(Join);

void route(const float* logits, int32_t experts, int32_t top_k, bool normalize, int32_t* chosen, float* weights) {
  for (int32_t c = 0; c < top_k; ++c) {
    int32_t best = -1;
    for (int32_t e = 0; e < experts; ++e) {
      if (std::find(chosen, chosen + c, e) != chosen + c) continue;
      if (best < 0 || logits[e] > logits[best]) best = e;
    }
    chosen[c] = best;
  }
  float highest = logits[chosen[0]], sum = 0;
  for (int32_t e = 0; e < experts; ++e) sum += std::exp(logits[e] - highest);
  float taken = 0;
  for (int32_t c = 0; c < top_k; ++c) taken += weights[c] = std::exp(logits[chosen[c]] - highest) / sum;
  if (!normalize) return;
  // The NaN of an expert that was not chosen is in `sum` only: dividing the shares by their own sum keeps it.
  for (int32_t c = 0; c < top_k; ++c) weights[c] /= taken;
}

void group(const int32_t* chosen, int32_t rows, int32_t top_k, int32_t begin, int32_t local, const Grouping& out) {
  std::fill_n(out.first, local + 1, 0);
  const int32_t choices = rows * top_k;
  for (int32_t i = 0; i < choices; ++i) {
    const int32_t e = chosen[i] - begin;
    if (e >= 0 && e < local) ++out.first[e + 1];
  }
  for (int32_t e = 0; e < local; ++e) out.first[e + 1] += out.first[e];
  for (int32_t i = 0; i < choices; ++i) {  // first[e] runs through e's pairs, and stands at the next expert's in the end
    const int32_t e = chosen[i] - begin;
    out.pair_of[i] = e >= 0 && e < local ? out.first[e]++ : -1;
    if (out.pair_of[i] >= 0) out.row[out.pair_of[i]] = i / top_k;
  }
  std::copy_backward(out.first, out.first + local, out.first + local + 1);
  out.first[0] = 0;
}

void join(const int32_t* pair_of, const float* weights, int32_t top_k, const float* results, int64_t stride, int64_t width, float* out) {
  HWY_DYNAMIC_DISPATCH(Join)(pair_of, weights, top_k, results, stride, width, out);
}

UnitRange cut_units(int64_t units, int64_t cost, int64_t before, int64_t total, int index, int count) {
  const auto unit_at = [&](int64_t position) {  // the first unit that starts there or later
    return std::clamp<int64_t>((position - before + cost - 1) / cost, 0, units);
  };
  const int64_t low = total * index / count, high = total * (index + 1) / count;
  return {low <= before ? 0 : unit_at(low), high <= before ? 0 : unit_at(high)};
}
}  // namespace tandem::cpu
#endif
