#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"

namespace tandem {
namespace {

class Dense final : public RowBlockFormat {
 public:
  Dense(std::string_view name, DType type) : RowBlockFormat(name, type, 1, static_cast<int64_t>(size(type))) {}
  bool is_dense() const override { return true; }
  void quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const override {
    narrow(dtype(), source, static_cast<size_t>(rows * cols), out[0]);
  }
  void dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const override {
    widen(dtype(), matrix.data[0] + static_cast<uint64_t>(row) * row_bytes(matrix.cols), static_cast<size_t>(count * matrix.cols), out);
  }
};

const Dense kFp32{"fp32", DType::f32}, kFp16{"fp16", DType::f16}, kBf16{"bf16", DType::bf16};
constexpr const Format* kList[] = {&kFp32, &kFp16, &kBf16};

}  // namespace

std::span<const Format* const> dense_formats() { return kList; }

}  // namespace tandem
