// A quantization format owns everything about itself: what it stores, how many bytes that is, where it may be cut, how numbers are
// quantized and what they stand for. Weights are matrices [rows = out, cols = in], row-major (a vector is one row). Formats are
// stateless and immutable; every method is const and may be called from any thread.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"

namespace tandem {

struct ByteRange {
  uint64_t begin = 0, end = 0;
  uint64_t size() const { return end - begin; }
};

// A rectangle of a matrix, in elements: rows [row_begin, row_end), columns [col_begin, col_end).
struct Rectangle {
  int64_t row_begin = 0, row_end = 0, col_begin = 0, col_end = 0;
  int64_t rows() const { return row_end - row_begin; }
  int64_t cols() const { return col_end - col_begin; }
};

// One stored array of a quantized matrix: the codes, or something that the codes need to be read.
struct Component {
  std::string suffix;  // appended to the tensor's name in a checkpoint: "" for the codes, ".absmax", ...
  DType dtype = DType::u8;
  uint64_t bytes = 0;
  bool scales = false;  // counted as scales (absmax, nested statistics, zero points, code maps) rather than as weights
};

// Cuts at multiples of these (and at the matrix' ends) never divide a block.
struct Grain {
  int64_t rows = 1, cols = 1;
};

// How far the numbers reach that quantizing an element depends on.
enum class Reach : uint8_t { block, row, whole };

// A quantized matrix in memory, or the slice of one that ranges() describes, in its stored form; views only. data[i] belongs to
// components(rows, cols)[i]. A slice also says where it lies in the whole: nested statistics are kept whole, and finding the right
// one needs the index that a block has there. (Only formats with such statistics look at these two; setting them is never wrong.)
constexpr int kMaxComponents = 6;
class Format;
struct QuantizedView {
  const Format* format = nullptr;
  int64_t rows = 0, cols = 0;
  std::array<const std::byte*, kMaxComponents> data{};
  int64_t first_element = 0;  // row_begin * whole columns + col_begin
  int64_t whole_cols = 0;     // columns of the whole matrix; 0: the same as cols
};

class Format {
 public:
  virtual ~Format() = default;
  virtual std::string_view name() const = 0;  // as options spell it: "nf4", "q4_1", "bf16"; "nf4:128" in other blocks than usual
  // Formats of one layout hold the same bytes for the same numbers: what tables of kernels go by.
  virtual std::string_view layout() const { return name().substr(0, name().find(':')); }
  // The same format in blocks of so many elements; null when it has none such.
  virtual const Format* with_block(int64_t /*block*/) const { return nullptr; }

  // Of a whole matrix. Errors: Code::invalid_argument naming the shape when the format cannot hold it (cols not a multiple of the
  // block, say).
  virtual std::vector<Component> components(int64_t rows, int64_t cols) const = 0;
  virtual Grain grain(int64_t rows, int64_t cols) const = 0;

  // For each component, the byte ranges of the whole stored matrix which, one after the other, are the stored form of the rectangle.
  // The rectangle's edges are at multiples of grain() or at the matrix' ends. What belongs to more than a block (code maps, nested
  // statistics) is kept in full.
  virtual std::vector<std::vector<ByteRange>> ranges(int64_t rows, int64_t cols, const Rectangle& part) const = 0;

  // source: float[rows * cols]; out[i]: components(rows, cols)[i].bytes bytes. Errors: Code::failed_precondition when the format
  // cannot be made from floats alone.
  virtual void quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const = 0;

  virtual Reach reach() const { return Reach::block; }

  // Rows [row, row + count) as float[count * cols]; the oracle of every fast kernel.
  virtual void dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const = 0;

  // Elements of one stored block along a row (32 for Q4_0, 64 for NF4, 256 for Q4_K, 1 for dense): for the tables of kernels.
  virtual int64_t block() const { return 1; }
  virtual bool is_dense() const { return false; }  // fp32, fp16, bf16: a plain array of dtype()
  virtual DType dtype() const { return DType::u8; }
};

uint64_t stored_bytes(const Format& format, int64_t rows, int64_t cols);  // all components of a whole matrix

// Its layout: what tables of kernels go by.
std::string_view family(const Format& format);

// THE list (formats.cc), each format in its usual block. Names are those of options and of GGUF types in lower case; find and format
// take "NAME:BLOCK" too. find: null when there is none.
std::span<const Format* const> formats();
const Format* find_format(std::string_view name);
const Format& format(std::string_view name);  // Errors: Code::invalid_argument that lists the known names
const Format& dense_format(DType type);       // fp32, fp16, bf16; other types: Code::invalid_argument

}  // namespace tandem
