// OCP E4M3 (sign, four bits of exponent, three of mantissa, no infinity) with float32 scales: one a row ("fp8"), one for the matrix
// ("fp8_tensor") or one for each 128 x 128 block ("fp8:128", DeepSeek's). w = code * scale, rounded once.
//
// Components: codes, and .weight_scale as float [rows], [1] or [ceil(rows / 128), ceil(cols / 128)].
#pragma once
#include "kernels/formats/format.h"

namespace tandem {

constexpr int64_t kFp8Block = 128;
enum class Fp8Scales : uint8_t { row, tensor, block };

class Fp8 final : public Format {
 public:
  Fp8(std::string_view name, Fp8Scales scales) : name_(name), scales_(scales) {}
  std::string_view name() const override { return name_; }
  const Format* with_block(int64_t block) const override;
  std::vector<Component> components(int64_t rows, int64_t cols) const override;
  Grain grain(int64_t, int64_t) const override { return scales_ == Fp8Scales::block ? Grain{kFp8Block, kFp8Block} : Grain{1, 1}; }
  std::vector<std::vector<ByteRange>> ranges(int64_t rows, int64_t cols, const Rectangle& part) const override;
  Reach reach() const override {
    return scales_ == Fp8Scales::row ? Reach::row : scales_ == Fp8Scales::tensor ? Reach::whole : Reach::block;
  }
  void quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const override;
  void dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const override;
  DType dtype() const override { return DType::f8_e4m3; }

  Fp8Scales scales() const { return scales_; }
  float scale(const QuantizedView& matrix, int64_t row, int64_t col) const;  // of one element

 private:
  std::string_view name_;
  Fp8Scales scales_;
};

const Fp8& fp8(Fp8Scales scales);

// Round to nearest even; above 448 it is 448, NaN stays NaN.
uint8_t float_to_e4m3(float value);

}  // namespace tandem
