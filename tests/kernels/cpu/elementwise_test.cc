// Norms, activations and rotation against plain double loops, at every width around the vectors' own.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/activation.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"

namespace tandem::cpu {
namespace {

constexpr uint64_t kSeed = 17;

std::vector<float> random_values(int64_t count, double deviation = 2) {
  std::mt19937_64 random(kSeed + static_cast<uint64_t>(count));
  std::normal_distribution<double> normal(0.3, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(normal(random));
  return values;
}
std::vector<float> ringed(int64_t count) {  // poisoned, and a sentinel at the end
  std::vector<float> values(static_cast<size_t>(count), std::numeric_limits<float>::quiet_NaN());
  values.push_back(42);
  return values;
}
const std::vector<int64_t> kWidths = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 576, 1000};

TEST(Norm, AgreesWithPlainLoops) {
  for (const int64_t n : kWidths) {
    for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
      for (const bool adds : {false, true}) {
        SCOPED_TRACE("width " + std::to_string(n));
        const auto pending = random_values(n, 1), weight = random_values(n, 0.5), bias = random_values(n + 1, 0.1);
        auto x = random_values(n, 3);
        std::vector<double> sum(x.begin(), x.end());
        for (int64_t i = 0; i < n && adds; ++i) sum[i] += pending[i];
        double mean = 0, squares = 0;
        for (const double v : sum) mean += v / static_cast<double>(n);
        if (kind == NormKind::rms) mean = 0;
        for (const double v : sum) squares += (v - mean) * (v - mean) / static_cast<double>(n);
        auto out = ringed(n);
        add_normalize(x.data(), adds ? pending.data() : nullptr, n, kind, 1e-5f, weight.data(), adds ? bias.data() : nullptr, out.data());
        for (int64_t i = 0; i < n; ++i) {
          EXPECT_NEAR(x[i], sum[i], 1e-6 * (1 + std::abs(sum[i])));
          const double want = (sum[i] - mean) / std::sqrt(squares + 1e-5) * weight[i] + (adds ? bias[i] : 0.0);
          EXPECT_NEAR(out[i], want, 2e-5 * (1 + std::abs(want)) + (n < 3 ? 1e-3 : 0)) << i;  // a layer norm of one value divides noise
        }
        EXPECT_EQ(out[n], 42.0f);
      }
    }
  }
}

TEST(Norm, AddsScalesAndCaps) {
  for (const int64_t n : kWidths) {
    const auto a = random_values(n), b = random_values(n + 1);
    auto out = ringed(n);
    add(a.data(), b.data(), n, out.data());
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(out[i], a[i] + b[i]);
    scale_and_cap(out.data(), n, 3, 5);
    for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(out[i], 5 * std::tanh(3.0 * (a[i] + b[i]) / 5), 2e-5);
    EXPECT_EQ(out[n], 42.0f);
  }
  float nan = std::numeric_limits<float>::quiet_NaN();
  scale_and_cap(&nan, 1, 1, 30);
  EXPECT_TRUE(std::isnan(nan));
}

TEST(Activation, AgreesWithPlainLoops) {
  const auto plain = [](Activation kind, double x) {
    switch (kind) {
      case Activation::none:
        return x;
      case Activation::silu:
        return x / (1 + std::exp(-x));
      case Activation::gelu:
        return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
      case Activation::gelu_tanh:
        return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
      case Activation::relu:
        return std::max(x, 0.0);
    }
    return x;
  };
  for (const Activation kind : {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
    for (const int64_t n : kWidths) {
      for (const bool gated : {false, true}) {
        auto values = random_values(n, 4);
        if (n >= 8) values[0] = 200, values[1] = -200, values[2] = 0, values[3] = 1e30f, values[4] = -1e30f, values[5] = -90;
        const auto before = values, up = random_values(n + 1);
        values.push_back(42);
        activate(kind, values.data(), gated ? up.data() : nullptr, n);
        for (int64_t i = 0; i < n; ++i) {
          const double want = plain(kind, before[i]) * (gated ? up[i] : 1.0);
          EXPECT_NEAR(values[i], want, 3e-6 * (1 + std::abs(want))) << static_cast<int>(kind) << " of " << before[i];
        }
        EXPECT_EQ(values[n], 42.0f);
      }
    }
    float nan = std::numeric_limits<float>::quiet_NaN();
    activate(kind, &nan, nullptr, 1);
    EXPECT_TRUE(std::isnan(nan)) << static_cast<int>(kind);
  }
}

TEST(Activation, BitsDoNotDependOnWhereARowIsCut) {
  for (const Activation kind : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
    auto whole = random_values(200, 3), parts = whole;
    const auto up = random_values(200);
    activate(kind, whole.data(), up.data(), 200);
    for (const auto& [begin, end] : {std::pair{0, 32}, {32, 96}, {96, 199}, {199, 200}})
      activate(kind, parts.data() + begin, up.data() + begin, end - begin);
    EXPECT_EQ(whole, parts);
  }
}

TEST(Rope, TurnsPairsHalfARotationApart) {
  for (const int64_t rotary : {2, 16, 32, 48, 64, 80, 128}) {
    Rope rope;
    rope.rotary = rotary, rope.scale = 1.25f;
    for (int64_t i = 0; i < rotary / 2; ++i)
      rope.inverse_frequency.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(rotary)));
    for (const int32_t position : {0, 1, 77, 100000}) {
      auto angles = ringed(rotary);
      rope_angles(rope, position, angles.data());
      EXPECT_EQ(angles[rotary], 42.0f);
      auto head = random_values(rotary + 5);
      const auto before = head;
      rotate(head.data(), rotary, angles.data());
      for (int64_t i = 0; i < rotary / 2; ++i) {
        const double angle = static_cast<float>(position) * rope.inverse_frequency[i], c = std::cos(angle) * 1.25,
                     s = std::sin(angle) * 1.25;
        EXPECT_NEAR(head[i], before[i] * c - before[i + rotary / 2] * s, 1e-5);
        EXPECT_NEAR(head[i + rotary / 2], before[i + rotary / 2] * c + before[i] * s, 1e-5);
      }
      for (int64_t i = rotary; i < rotary + 5; ++i) EXPECT_EQ(head[i], before[i]);
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
