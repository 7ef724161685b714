// Unsigned codes of 4 or 8 bits with a scale and a shift for each group of neighbours in a row: w = scale * code - shift, two roundings in
// float32. optimum-quanto's qint4 is made so; GPTQ's and AWQ's scale * (code - zero) is the same number with shift = scale * zero, because
// their scales have 16 bits and every product of one with a small integer is exact.
//
// "int4_sym" and "int8_sym" are the same layout with the zero in the middle, as compressed-tensors quantizes symmetrically: scale =
// max|x| / 7.5 (127.5), rounded to bf16 so that files may keep it in 16 bits, code = round(x / scale) + 8 (128), shift = scale * 8 (128).
//
// Components: codes (element 2k of a row in the low half of its byte k; of 8 bits one a byte), .scale and .shift, float [rows, groups].
#pragma once
#include <string>

#include "kernels/formats/format.h"

namespace tandem {

constexpr int64_t kWholeRow = -1;  // as a group size: one group a row ("int4:row")

class GroupInts;
// "int4", "int4:32", "int8_group:row", symmetric: "int4_sym", "int8_sym:128"; null when there is none such.
const GroupInts* group_ints(int bits, int64_t group, bool symmetric = false);

class GroupInts final : public Format {
 public:
  // bits: 4 or 8; group: a power of two, 32 .. 1024, or kWholeRow (of any multiple of 32).
  GroupInts(std::string name, int bits, int64_t group, bool symmetric)
      : name_(std::move(name)), bits_(bits), group_(group), symmetric_(symmetric) {}
  std::string_view name() const override { return name_; }
  std::string_view layout() const override { return bits_ == 4 ? "int4" : "int8_group"; }
  const Format* with_block(int64_t block) const override;
  std::vector<Component> components(int64_t rows, int64_t cols) const override;
  Grain grain(int64_t, int64_t) const override { return {1, block()}; }
  std::vector<std::vector<ByteRange>> ranges(int64_t rows, int64_t cols, const Rectangle& part) const override;
  Reach reach() const override { return group_ == kWholeRow ? Reach::row : Reach::block; }
  void quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const override;
  void dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const override;
  int64_t block() const override { return group_ == kWholeRow ? 32 : group_; }

  int bits() const { return bits_; }
  bool symmetric() const { return symmetric_; }
  int64_t group(int64_t cols) const { return group_ == kWholeRow ? cols : group_; }  // elements that share a scale

 private:
  friend const GroupInts* group_ints(int bits, int64_t group, bool symmetric);
  std::string name_;
  int bits_;
  int64_t group_;
  bool symmetric_;
};

}  // namespace tandem
