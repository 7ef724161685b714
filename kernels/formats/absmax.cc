// The quantizers that textbooks begin with: int8 codes and one scale a tensor ("absmax", "zeropoint", "minmax") or a row ("absmax_row").
// As --format of a whole model they take every parameter, embeddings, norms and biases too. Arithmetic is float32 and rounds to the
// nearest even, a number divided by a tensor is its reciprocal multiplied, as in torch.
//   absmax     scale = 127 / max|x|             code = round(scale * x)                     x' = code / scale
//   zeropoint  scale = 255 / (max - min)        zero = round(-scale * min - 128)            code = clip(round(scale * x + zero))
//   minmax     the same scale                   zero = -(128 max + 127 min) / (max - min)   code = round(scale * x + zero)
//                                                                                           x' = (code - zero) / scale
// A range of 0 counts as 1; of a tensor of zeros absmax keeps zeros.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"

namespace tandem {
namespace {

enum class Way : uint8_t { absmax, absmax_row, zeropoint, minmax };
enum Part { kCodes, kScale, kZero };

float load(const std::byte* from, int64_t index) {
  float value;
  std::memcpy(&value, from + index * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}

class Absmax final : public RowBlockFormat {
 public:
  Absmax(std::string_view name, Way way) : RowBlockFormat(name, DType::i8, 1, 1), way_(way) {}
  Reach reach() const override { return way_ == Way::absmax_row ? Reach::row : Reach::whole; }

  std::vector<Component> components(int64_t rows, int64_t cols) const override {
    std::vector<Component> list = RowBlockFormat::components(rows, cols);
    list.push_back({".scale", DType::f32, (way_ == Way::absmax_row ? static_cast<uint64_t>(rows) : 1) * sizeof(float), true});
    if (has_zero()) list.push_back({".zero", DType::f32, sizeof(float), true});
    return list;
  }
  std::vector<std::vector<ByteRange>> ranges(int64_t rows, int64_t cols, const Rectangle& part) const override {
    std::vector<std::vector<ByteRange>> list = RowBlockFormat::ranges(rows, cols, part);
    const bool some = part.rows() > 0 && part.cols() > 0, by_row = way_ == Way::absmax_row;
    const auto begin = static_cast<uint64_t>(by_row ? part.row_begin : 0) * sizeof(float),
               end = static_cast<uint64_t>(by_row ? part.row_end : 1) * sizeof(float);
    list.push_back(some ? std::vector<ByteRange>{{begin, end}} : std::vector<ByteRange>{});
    if (has_zero()) list.push_back(some ? std::vector<ByteRange>{{0, sizeof(float)}} : std::vector<ByteRange>{});
    return list;
  }

  void quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const override {
    const int64_t parts = way_ == Way::absmax_row ? rows : 1, count = parts > 0 ? rows * cols / parts : 0;
    for (int64_t p = 0; p < parts; ++p) {
      const float* x = source + p * count;
      float low = count > 0 ? x[0] : 0, high = low;
      for (int64_t i = 0; i < count; ++i) low = std::min(low, x[i]), high = std::max(high, x[i]);
      const float range = high - low == 0 ? 1.0f : high - low, most = std::max(high, -low);
      const float scale = has_zero() ? 1.0f / range * 255.0f : 1.0f / most * 127.0f;
      const float zero = way_ == Way::zeropoint ? std::nearbyint(-scale * low - 128.0f)
                         : way_ == Way::minmax  ? -(128.0f * high + 127.0f * low) / range
                                                : 0.0f;
      auto* codes = reinterpret_cast<int8_t*>(out[kCodes]) + p * count;
      for (int64_t i = 0; i < count; ++i) {
        const float product = scale * x[i], code = std::nearbyint(has_zero() ? product + zero : product);
        codes[i] = static_cast<int8_t>(code != code ? 0.0f : std::clamp(code, -128.0f, 127.0f));
      }
      std::memcpy(out[kScale] + p * static_cast<int64_t>(sizeof scale), &scale, sizeof scale);
      if (has_zero()) std::memcpy(out[kZero], &zero, sizeof zero);
    }
  }

  void dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const override {
    const auto* codes = reinterpret_cast<const int8_t*>(matrix.data[kCodes]) + row * matrix.cols;
    const float zero = has_zero() ? load(matrix.data[kZero], 0) : 0.0f;
    for (int64_t r = row; r < row + count; ++r) {
      const float scale = load(matrix.data[kScale], way_ == Way::absmax_row ? r : 0);
      for (int64_t k = 0; k < matrix.cols; ++k) *out++ = (static_cast<float>(*codes++) - zero) / scale;
    }
  }

 private:
  bool has_zero() const { return way_ == Way::zeropoint || way_ == Way::minmax; }
  Way way_;
};

const Absmax kFormats[] = {
    {"absmax", Way::absmax}, {"absmax_row", Way::absmax_row}, {"zeropoint", Way::zeropoint}, {"minmax", Way::minmax}};
constexpr const Format* kList[] = {&kFormats[0], &kFormats[1], &kFormats[2], &kFormats[3]};

}  // namespace

std::span<const Format* const> absmax_formats() { return kList; }

}  // namespace tandem
