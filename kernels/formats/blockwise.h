// What formats share whose elements lie in fixed-size blocks along a row (dense types are blocks of one): sizes, cuts, byte ranges.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/formats/format.h"

namespace tandem {

// rows * cols, refusing negative shapes and products that do not fit. Errors: Code::invalid_argument naming the format.
int64_t element_count(std::string_view format, int64_t rows, int64_t cols);

class RowBlockFormat : public Format {
 public:
  RowBlockFormat(std::string_view name, DType dtype, int64_t block, int64_t block_bytes)
      : name_(name), dtype_(dtype), block_(block), block_bytes_(block_bytes) {}
  std::string_view name() const override { return name_; }
  std::vector<Component> components(int64_t rows, int64_t cols) const override;
  Grain grain(int64_t, int64_t) const override { return {1, block_}; }
  std::vector<std::vector<ByteRange>> ranges(int64_t rows, int64_t cols, const Rectangle& part) const override;
  int64_t block() const override { return block_; }
  DType dtype() const override { return dtype_; }

 protected:
  uint64_t row_bytes(int64_t cols) const { return static_cast<uint64_t>(cols / block_) * static_cast<uint64_t>(block_bytes_); }

 private:
  std::string_view name_;
  DType dtype_;
  int64_t block_, block_bytes_;
};

std::span<const Format* const> dense_formats();       // dense.cc
std::span<const Format* const> four_bit_formats();    // nf4.cc
std::span<const Format* const> int8_formats();        // int8.cc
std::span<const Format* const> group_int_formats();   // int4.cc
std::span<const Format* const> fp8_formats();         // fp8.cc
std::span<const Format* const> absmax_formats();      // absmax.cc
std::span<const Format* const> gguf_block_formats();  // gguf_blocks.cc

}  // namespace tandem
