// bitsandbytes' int8 rows (Linear8bitLt's storage): one signed byte an element and SCB, the fp32 absmax of each row. Bytes and values are
// those of bitsandbytes 0.50's default backend (int8_vectorwise_quant after rounding to fp16, int8_vectorwise_dequant), bit for bit.
#include "kernels/formats/int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"

namespace tandem {
namespace {

enum Part { kCodes, kRowMax };

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
      float most = 0;
      for (int64_t k = 0; k < cols; ++k) {
        row[k] = f16_to_float(float_to_f16(source[k]));
        most = std::fabs(row[k]) > most || row[k] != row[k] ? std::fabs(row[k]) : most;  // a NaN stays: nothing is above it
        if (most != most) break;
      }
      // torch divides a number by a tensor so. Of a row of zeros infinite: each of its products is no number, which is code 0.
      const float by = 1.0f / most * 127.0f;
      auto* codes = reinterpret_cast<int8_t*>(out[kCodes]) + r * cols;
      for (int64_t k = 0; k < cols; ++k) {
        const float code = std::nearbyint(row[k] * by);
        codes[k] = std::fabs(code) <= 127 ? static_cast<int8_t>(code) : int8_t{0};
      }
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
