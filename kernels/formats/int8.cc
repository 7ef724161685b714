// bitsandbytes' int8 rows (Linear8bitLt's storage): one signed byte an element and SCB, the fp32 absmax of each row. Bytes and values are
// those of bitsandbytes 0.50's default backend (int8_vectorwise_quant after rounding to fp16, int8_vectorwise_dequant), bit for bit.
#include "kernels/formats/int8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"
#include "kernels/formats/wide.h"

namespace tandem {
namespace {

enum Part { kCodes, kRowMax };

// f16_to_float(float_to_f16(value)) without a branch.
TANDEM_INLINE inline float rounded_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1)) & ~uint32_t{0x1fff};
  const uint32_t small = std::bit_cast<uint32_t>((std::bit_cast<float>(magnitude) + 0.5f) - 0.5f);  // multiples of 2^-24
  uint32_t rounded = magnitude < 0x38800000 ? small : normal;
  rounded = magnitude >= 0x477ff000 ? 0x7f800000 : rounded;  // 65520 and above
  rounded = magnitude > 0x7f800000 ? 0x7fc00000 : rounded;
  return std::bit_cast<float>((bits & 0x80000000) | rounded);
}

class Int8 final : public RowBlockFormat {
 public:
  Int8() : RowBlockFormat("int8", DType::i8, 1, 1) {}

  std::vector<Component> components(int64_t rows, int64_t cols) const override {
    std::vector<Component> list = RowBlockFormat::components(rows, cols);
    list.push_back({".SCB", DType::f32, static_cast<uint64_t>(rows) * sizeof(float), true});
    return list;
  }

  std::vector<std::vector<ByteRange>> ranges(int64_t rows, int64_t cols, const Rectangle& part) const override {
    std::vector<std::vector<ByteRange>> list = RowBlockFormat::ranges(rows, cols, part);
    list.emplace_back();
    if (part.rows() > 0)
      list[kRowMax].push_back({static_cast<uint64_t>(part.row_begin) * sizeof(float), static_cast<uint64_t>(part.row_end) * sizeof(float)});
    return list;
  }

  Reach reach() const override { return Reach::row; }

  void quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const override {
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t r = 0; r < rows; ++r, source += cols) {
      auto* codes = reinterpret_cast<int8_t*>(out[kCodes]) + r * cols;
      float most = 0;
      in_wide_vectors([&]() TANDEM_INLINE {
        uint32_t bits = 0;  // of the largest magnitude; a NaN is above all
        for (int64_t k = 0; k < cols; ++k) {
          const float value = rounded_to_f16(source[k]);
          row[static_cast<size_t>(k)] = value;
          bits = std::max(bits, std::bit_cast<uint32_t>(value) & 0x7fffffff);
        }
        most = std::bit_cast<float>(bits);
        // torch divides a number by a tensor so. Of a row of zeros infinite: each of its products is no number, which is code 0.
        const float by = 1.0f / most * 127.0f;
        for (int64_t k = 0; k < cols; ++k) {
          const float product = row[static_cast<size_t>(k)] * by;
          const float code = round_even(std::fabs(product) < 127.5f ? product : 0.0f);
          codes[k] = static_cast<int8_t>(static_cast<int32_t>(code));
        }
      });
      std::memcpy(out[kRowMax] + r * static_cast<int64_t>(sizeof most), &most, sizeof most);
    }
  }

  void dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const override {
    const auto* codes = reinterpret_cast<const int8_t*>(matrix.data[kCodes]) + row * matrix.cols;
    for (int64_t r = row; r < row + count; ++r) {
      float most;
      std::memcpy(&most, matrix.data[kRowMax] + r * static_cast<int64_t>(sizeof most), sizeof most);
      for (int64_t k = 0; k < matrix.cols; ++k) *out++ = int8_value(*codes++, most);
    }
  }
};

const Int8 kInt8;
constexpr const Format* kList[] = {&kInt8};

}  // namespace

std::span<const Format* const> int8_formats() { return kList; }

}  // namespace tandem
