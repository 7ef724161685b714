#include "kernels/formats/fp8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"
#include "kernels/formats/wide.h"

namespace tandem {
namespace {

constexpr float kLargest = 448;
enum Part { kCodes, kScale };

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
struct Shape {  // of the scales
  int64_t rows, cols;
};
Shape shape_of(Fp8Scales scales, int64_t rows, int64_t cols) {
  if (scales == Fp8Scales::tensor) return {1, 1};
  if (scales == Fp8Scales::row) return {rows, 1};
  return {ceil_div(rows, kFp8Block), ceil_div(cols, kFp8Block)};
}

// Without a branch.
TANDEM_INLINE inline uint8_t rounded_to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff;
  const uint32_t normal = ((magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20) - ((127 - 7) << 3);
  const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) & 15;  // multiples of 2^-9; 8 is the least normal one
  uint32_t code = magnitude < 0x3c800000 ? small : normal;  // 2^-6
  code = magnitude >= 0x43e00000 ? 0x7e : code;             // kLargest
  code = magnitude > 0x7f800000 ? 0x7f : code;
  return static_cast<uint8_t>((bits >> 24 & 0x80) | code);
}

TANDEM_INLINE inline float largest(const float* __restrict x, int64_t count, float most) {
  for (int64_t i = 0; i < count; ++i) most = most < std::fabs(x[i]) ? std::fabs(x[i]) : most;  // NaNs do not count
  return most;
}
TANDEM_INLINE inline void round_all(const float* __restrict x, int64_t count, float up, uint8_t* __restrict codes) {
  for (int64_t i = 0; i < count; ++i) codes[i] = rounded_to_e4m3(x[i] * up);
}

}  // namespace

uint8_t float_to_e4m3(float value) { return rounded_to_e4m3(value); }

const Format* Fp8::with_block(int64_t block) const {
  return scales_ == Fp8Scales::row && block == kFp8Block ? &fp8(Fp8Scales::block) : nullptr;
}

std::vector<Component> Fp8::components(int64_t rows, int64_t cols) const {
  const int64_t count = element_count(name_, rows, cols);
  const Shape shape = shape_of(scales_, rows, cols);
  return {{"", DType::f8_e4m3, static_cast<uint64_t>(count), false},
          {".weight_scale", DType::f32, static_cast<uint64_t>(shape.rows * shape.cols) * sizeof(float), true}};
}

std::vector<std::vector<ByteRange>> Fp8::ranges(int64_t rows, int64_t cols, const Rectangle& part) const {
  std::vector<std::vector<ByteRange>> list(2);
  if (part.rows() <= 0 || part.cols() <= 0) return list;
  // A rectangle of an array [*, width] of elements of `size` bytes.
  const auto add = [&list](Part component, int64_t width, int64_t size, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
    const auto range = [&](int64_t from, int64_t to) {
      list[component].push_back({static_cast<uint64_t>(from * size), static_cast<uint64_t>(to * size)});
    };
    if (begin == 0 && end == width) return range(row_begin * width, row_end * width);
    for (int64_t r = row_begin; r < row_end; ++r) range(r * width + begin, r * width + end);
  };
  add(kCodes, cols, 1, part.row_begin, part.row_end, part.col_begin, part.col_end);
  const int64_t width = shape_of(scales_, rows, cols).cols;
  switch (scales_) {
    case Fp8Scales::tensor:
      add(kScale, width, sizeof(float), 0, 1, 0, 1);
      break;
    case Fp8Scales::row:
      add(kScale, width, sizeof(float), part.row_begin, part.row_end, 0, 1);
      break;
    case Fp8Scales::block:
      add(kScale, width, sizeof(float), part.row_begin / kFp8Block, ceil_div(part.row_end, kFp8Block), part.col_begin / kFp8Block,
          ceil_div(part.col_end, kFp8Block));
      break;
  }
  return list;
}

// transformers' Fp8Quantize: the scale that multiplies is 448 / max, the one that is stored its reciprocal, as torch divides numbers by
// tensors; where all is zero both are one.
void Fp8::quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const {
  const Shape shape = shape_of(scales_, rows, cols);
  const int64_t high = scales_ == Fp8Scales::tensor ? rows
                       : scales_ == Fp8Scales::row  ? 1
                                                    : kFp8Block,
                wide = scales_ == Fp8Scales::block ? kFp8Block : cols;
  auto* codes = reinterpret_cast<uint8_t*>(out[kCodes]);
  for (int64_t i = 0; i < shape.rows; ++i) {
    for (int64_t j = 0; j < shape.cols; ++j) {
      const int64_t last_row = std::min(rows, (i + 1) * high), last_col = std::min(cols, (j + 1) * wide);
      float most = 0;
      const int64_t first_col = j * wide, width = last_col - first_col;
      for (int64_t r = i * high; r < last_row; ++r) {
        const float* x = source + r * cols + first_col;
        float* into = &most;
        in_wide_vectors([=]() TANDEM_INLINE { *into = largest(x, width, *into); });
      }
      const float up = most > 0 ? 1.0f / most * kLargest : 1.0f, scale = 1.0f / up;
      std::memcpy(out[kScale] + (i * shape.cols + j) * static_cast<int64_t>(sizeof scale), &scale, sizeof scale);
      for (int64_t r = i * high; r < last_row; ++r) {
        const float* x = source + r * cols + first_col;
        uint8_t* to = codes + r * cols + first_col;
        in_wide_vectors([=]() TANDEM_INLINE { round_all(x, width, up, to); });
      }
    }
  }
}

float Fp8::scale(const QuantizedView& matrix, int64_t row, int64_t col) const {
  const int64_t index = scales_ == Fp8Scales::tensor ? 0
                        : scales_ == Fp8Scales::row  ? row
                                                     : row / kFp8Block * ceil_div(matrix.cols, kFp8Block) + col / kFp8Block;
  float value;
  std::memcpy(&value, matrix.data[kScale] + index * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}

void Fp8::dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const {
  for (int64_t r = row; r < row + count; ++r, out += matrix.cols) {
    widen(DType::f8_e4m3, matrix.data[kCodes] + r * matrix.cols, static_cast<size_t>(matrix.cols), out);
    for (int64_t c = 0; c < matrix.cols; ++c) out[c] *= scale(matrix, r, c);
  }
}

const Fp8& fp8(Fp8Scales scales) {
  static const Fp8 all[] = {{"fp8", Fp8Scales::row}, {"fp8_tensor", Fp8Scales::tensor}, {"fp8:128", Fp8Scales::block}};
  return all[static_cast<int>(scales)];
}

std::span<const Format* const> fp8_formats() {
  static const Format* const list[] = {&fp8(Fp8Scales::row), &fp8(Fp8Scales::tensor)};
  return list;
}

}  // namespace tandem
