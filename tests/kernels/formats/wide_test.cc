// Loops that are compiled for several vector widths, against plain arithmetic a number at a time, with every kind of float.
#include "kernels/formats/wide.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/base/dtype.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/int4.h"
#include "kernels/formats/nf4.h"

namespace tandem {
namespace {

constexpr unsigned kSeed = 20;

std::vector<std::vector<std::byte>> quantized(const Format& format, const std::vector<float>& x, int64_t rows, int64_t cols) {
  std::vector<std::vector<std::byte>> parts;
  std::vector<std::byte*> out;
  for (const Component& component : format.components(rows, cols)) parts.emplace_back(component.bytes, std::byte{0xee});
  for (auto& part : parts) out.push_back(part.data());
  format.quantize(x.data(), rows, cols, out);
  return parts;
}
float number(const std::vector<std::byte>& bytes, int64_t i) {
  float value;
  std::memcpy(&value, bytes.data() + i * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}

// Bit patterns from all over, and those around where rounding changes.
std::vector<float> all_kinds() {
  std::vector<float> list;
  std::mt19937 random(kSeed);
  for (uint32_t exponent = 0; exponent < 256; ++exponent) {
    for (const uint32_t mantissa : {0u, 1u, 0x7ffffu, 0x80000u, 0x80001u, 0xfffu, 0x1000u, 0x1001u, 0x3fffffu, 0x400000u, 0x7fffffu, static_cast<uint32_t>(random()) & 0x7fffff}) {
      for (const uint32_t sign : {0u, 1u}) list.push_back(std::bit_cast<float>(sign << 31 | exponent << 23 | mantissa));
    }
  }
  return list;
}

// The nearest E4M3 number by looking at all of them, ties to the even code.
uint8_t nearest_e4m3(float x) {
  if (x != x) return static_cast<uint8_t>((std::bit_cast<uint32_t>(x) >> 31 << 7) | 0x7f);
  uint8_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int code = 0; code < 0x7f; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    float value;
    widen(DType::f8_e4m3, &byte, 1, &value);
    const double away = std::fabs(std::min(std::fabs(static_cast<double>(x)), 448.0) - value);
    if (away < least || (away == least && code % 2 == 0)) best = byte, least = away;
  }
  return static_cast<uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

TEST(Wide, Float8IsTheNearestOfAll) {
  for (const float x : all_kinds()) EXPECT_EQ(float_to_e4m3(x), nearest_e4m3(x)) << x << " " << std::hex << std::bit_cast<uint32_t>(x);
}

TEST(Wide, Int8RowsGoThroughHalfFloats) {
  for (const float x : all_kinds()) {
    const std::vector<float> row = {x, 0.5f * x, -0.25f * x, 0};
    const auto parts = quantized(format("int8"), row, 1, 4);
    float half[4], most = 0;
    for (int i = 0; i < 4; ++i) half[i] = f16_to_float(float_to_f16(row[static_cast<size_t>(i)]));
    for (const float h : half) most = std::fabs(h) > most || h != h ? std::fabs(h) : most;
    if (most != most) {
      EXPECT_TRUE(number(parts[1], 0) != number(parts[1], 0)) << x;
      continue;
    }
    EXPECT_EQ(number(parts[1], 0), most) << x;
    for (int i = 0; i < 4; ++i) {
      const float code = std::nearbyint(half[i] * (1.0f / most * 127.0f));
      EXPECT_EQ(static_cast<int8_t>(parts[0][static_cast<size_t>(i)]), std::fabs(code) <= 127 ? static_cast<int8_t>(code) : 0) << x << " " << i;
    }
  }
}

TEST(Wide, FourBitCodesAreTheNearest) {
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  for (const Codebook book : {Codebook::nf4, Codebook::fp4}) {
    for (const int64_t count : {1, 2, 31, 64, 65, 95, 128, 4096 + 7}) {
      std::vector<float> x(static_cast<size_t>(count));
      for (float& v : x) v = normal(random);
      const auto parts = quantized(*four_bit(book, false, 64), x, 1, count);
      for (int64_t i = 0; i < count; ++i) {
        const float scale = number(parts[1], i / 64), y = x[static_cast<size_t>(i)] / scale;
        const auto byte = static_cast<uint8_t>(parts[0][static_cast<size_t>(i / 2)]);
        const uint8_t code = i % 2 == 0 ? byte >> 4 : byte & 15;
        float least = 9;
        for (const float value : code_values(book)) least = std::min(least, std::fabs(value - y));
        EXPECT_NEAR(std::fabs(code_values(book)[code] - y), least, 1e-6f) << i << " of " << count;
      }
    }
  }
  std::vector<float> x(64, 0.25f);
  x[5] = std::nanf("");  // above all: the largest code, and the scale is no number
  const auto parts = quantized(format("nf4"), x, 1, 64);
  EXPECT_EQ(static_cast<uint8_t>(parts[0][2]) & 15, 15);
  EXPECT_TRUE(number(parts[1], 0) != number(parts[1], 0));
}

// compressed-tensors' symmetric integers: scale = max|x| / 7.5 in bf16, code = round(x / scale) within [-8, 7], shifted.
TEST(Wide, SymmetricGroups) {
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  for (const int bits : {4, 8}) {
    for (const int64_t group : {int64_t{32}, int64_t{128}, kWholeRow}) {
      const GroupInts& format = *group_ints(bits, group, true);
      const int64_t rows = 3, cols = 256, size = format.group(cols), half = int64_t{1} << (bits - 1);
      std::vector<float> x(static_cast<size_t>(rows * cols));
      for (float& v : x) v = normal(random) * 0.1f;
      std::fill_n(x.begin(), size, 0.0f);
      const auto parts = quantized(format, x, rows, cols);
      for (int64_t i = 0; i < rows * cols; ++i) {
        float most = 0;
        for (int64_t k = i / size * size; k < (i / size + 1) * size; ++k) most = std::max(most, std::fabs(x[static_cast<size_t>(k)]));
        const float scale = most > 0 ? bf16_to_float(float_to_bf16(most * 2.0f / static_cast<float>(2 * half - 1))) : 1.0f;
        EXPECT_EQ(number(parts[1], i / size), scale);
        EXPECT_EQ(number(parts[2], i / size), scale * static_cast<float>(half));
        const auto byte = static_cast<uint8_t>(parts[0][static_cast<size_t>(bits == 8 ? i : i / 2)]);
        const int code = bits == 8 ? byte : i % 2 == 0 ? byte & 15 : byte >> 4;
        EXPECT_EQ(code - half, std::clamp<long>(std::lrint(x[static_cast<size_t>(i)] / scale), -half, half - 1)) << i;
      }
      QuantizedView view{&format, rows, cols, {}};
      for (size_t i = 0; i < parts.size(); ++i) view.data[i] = parts[i].data();
      std::vector<float> back(x.size());
      format.dequantize(view, 0, rows, back.data());
      for (int64_t i = 0; i < rows * cols; ++i) {  // exact: bf16 times a small whole number
        const auto byte = static_cast<uint8_t>(parts[0][static_cast<size_t>(bits == 8 ? i : i / 2)]);
        const int code = bits == 8 ? byte : i % 2 == 0 ? byte & 15 : byte >> 4;
        EXPECT_EQ(back[static_cast<size_t>(i)], number(parts[1], i / size) * static_cast<float>(code - half)) << i;
      }
    }
  }
}

TEST(Wide, RoundsToEven) {
  for (int i = -4000; i <= 4000; ++i) EXPECT_EQ(round_even(static_cast<float>(i) / 8), std::nearbyint(static_cast<float>(i) / 8)) << i;
}

}  // namespace
}  // namespace tandem
