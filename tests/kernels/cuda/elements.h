// Host values of the activations' types, for tests: rounding to nearest even, arrays as bytes.
#pragma once
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/plan/layout.h"

namespace tandem::cuda {

inline uint16_t bits_of(float v, Element element) {
  uint16_t bits;
  if (element == Element::f16) {
    const _Float16 h = static_cast<_Float16>(v);
    std::memcpy(&bits, &h, 2);
    return bits;
  }
  uint32_t u;
  std::memcpy(&u, &v, 4);
  if (v != v) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline float value_of(uint16_t bits, Element element) {
  if (element == Element::f16) {
    _Float16 h;
    std::memcpy(&h, &bits, 2);
    return static_cast<float>(h);
  }
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float v;
  std::memcpy(&v, &u, 4);
  return v;
}
inline float rounded(float v, Element element) { return element == Element::f32 ? v : value_of(bits_of(v, element), element); }
// Half a unit in the last place of 1.
inline double unit_of(Element element) { return element == Element::f32 ? 6e-8 : element == Element::bf16 ? 1.0 / 256 : 1.0 / 2048; }

// Normal values that the type holds.
inline std::vector<float> random_values(int64_t count, Element element, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = rounded(normal(random), element);
  return values;
}
// element[rows, stride] of float[rows, cols], `between` in the rest.
inline std::vector<std::byte> encoded(const std::vector<float>& values, int64_t rows, int64_t cols, int64_t stride, Element element, float between) {
  const auto bytes = static_cast<size_t>(size(element));
  std::vector<std::byte> out(static_cast<size_t>(rows * stride) * bytes);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < stride; ++c) {
      const float v = c < cols ? values[static_cast<size_t>(r * cols + c)] : between;
      const uint16_t half = bits_of(v, element);
      std::memcpy(out.data() + static_cast<size_t>(r * stride + c) * bytes, element == Element::f32 ? static_cast<const void*>(&v) : &half, bytes);
    }
  }
  return out;
}
inline std::vector<float> decoded(const std::vector<std::byte>& bytes, int64_t count, Element element) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half;
    if (element == Element::f32) {
      std::memcpy(&values[i], bytes.data() + 4 * i, 4);
    } else {
      std::memcpy(&half, bytes.data() + 2 * i, 2);
      values[i] = value_of(half, element);
    }
  }
  return values;
}

}  // namespace tandem::cuda
