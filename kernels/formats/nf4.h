// bitsandbytes' 4-bit formats: NF4 and FP4, plain (one fp32 absmax a block) and double-quantized (absmax as 8-bit codes with an fp32
// absmax per 256 of them and one offset). Bytes and values are those of bitsandbytes 0.50's CPU backend, bit for bit.
//
// Blocks run over the flattened matrix, so they straddle rows when cols is no multiple of the block. Element 2k is in the high half
// of byte k. Components: codes, .absmax, .quant_map; double-quantized ones add .nested_absmax, .nested_quant_map and .nested_offset
// (one fp32, which checkpoints keep as "nested_offset" in the JSON of .quant_state.bitsandbytes__nf4).
#pragma once
#include <array>
#include <string>

#include "kernels/formats/format.h"

namespace tandem {

enum class Codebook : uint8_t { nf4, fp4 };
constexpr int64_t kNestedBlock = 256;
const std::array<float, 16>& code_values(Codebook book);
const std::array<float, 256>& dynamic_map();  // bitsandbytes' signed 8-bit map, ascending

class FourBit final : public Format {
 public:
  // block: a power of two, 32 .. 4096.
  FourBit(std::string name, Codebook book, bool nested, int64_t block = 64)
      : name_(std::move(name)), book_(book), nested_(nested), block_(block) {}
  std::string_view name() const override { return name_; }
  std::vector<Component> components(int64_t rows, int64_t cols) const override;
  Grain grain(int64_t rows, int64_t cols) const override;
  std::vector<std::vector<ByteRange>> ranges(int64_t rows, int64_t cols, const Rectangle& part) const override;
  // The nested statistics are those of `source` as a whole: to get a slice of a double-quantized matrix, quantize all of it and cut.
  void quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const override;
  void dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const override;
  int64_t block() const override { return block_; }
  const Format* with_block(int64_t block) const override;
  Reach reach() const override { return nested_ ? Reach::whole : Reach::block; }  // the mean of all absmax

  bool nested() const { return nested_; }
  Codebook codebook() const { return book_; }
  // The fp32 absmax of the `count` blocks of a view that start at its flat block `first`, denested where needed.
  void absmax(const QuantizedView& matrix, int64_t first, int64_t count, float* out) const;

 private:
  std::string name_;
  Codebook book_;
  bool nested_;
  int64_t block_;
};

// The format of the list, or of another block size: "nf4", "nf4_dq", "fp4:128". Null unless block is a power of two, 32 .. 4096.
const FourBit* four_bit(Codebook book, bool nested, int64_t block);

// The mean as torch's CPU kernel computes it with one thread: eight lanes, four rows at a time, partial sums in four levels.
float torch_mean(const float* values, int64_t count);

}  // namespace tandem
