#include "kernels/cpu/products.h"

#include <algorithm>

#include "kernels/base/dtype.h"

namespace tandem::cpu {

Activations wanted_activations(const Format& format, const Arithmetic& arithmetic) {
  if (!arithmetic.automatic) return arithmetic.compute == Compute::int8 ? Activations::int8 : Activations::fp32;
  // Blocks of integers; NF4 and FP4 codes have no exact int8 image.
  const std::string_view name = family(format);
  const bool blocks = name.starts_with("q") || name.starts_with("iq") || name.starts_with("tq");
  return blocks || name == "int8" || name == "int8_group" || name == "int4" ? Activations::int8 : Activations::fp32;
}

Input Value::input(const LinearKernel& kernel, int64_t row, bool exact) const {
  Input x;
  x.stride = width;
  if (kernel.activations == Activations::int8) {
    x.int8 = {int8 + row * int8_blocks(width), int8_blocks(width)};
  } else {
    x.values = (rounded != nullptr && !exact ? rounded : values) + row * width;
  }
  return x;
}

void Value::prepare(int64_t row, int64_t begin, int64_t end, const Features& features) const {
  const float* from = values + row * width + begin;
  if (preparation.rounding != Compute::fp32) {
    float* to = rounded + row * width + begin;
    if (preparation.rounding == Compute::bf16) {
      for (int64_t i = 0; i < end - begin; ++i) to[i] = bf16_to_float(float_to_bf16(from[i]));
    } else {
      for (int64_t i = 0; i < end - begin; ++i) to[i] = f16_to_float(float_to_f16(from[i]));
    }
  }
  if (preparation.int8) quantize_rows(from, width, end - begin, 0, 1, int8 + row * int8_blocks(width) + begin / 32, features);
}

void Value::copy_row(int64_t row, const Value& from, int64_t from_row) const {
  std::copy_n(from.row(from_row), width, this->row(row));
  if (preparation.rounding != Compute::fp32) std::copy_n(from.rounded + from_row * width, width, rounded + row * width);
  if (preparation.int8) std::copy_n(from.int8 + from_row * int8_blocks(width), int8_blocks(width), int8 + row * int8_blocks(width));
}

uint64_t prepared_bytes(int64_t rows, int64_t width, const Arithmetic& arithmetic) {
  if (arithmetic.automatic || arithmetic.compute == Compute::int8)
    return sizeof(Int8Block) * static_cast<uint64_t>(rows * int8_blocks(width));
  return arithmetic.compute == Compute::fp32 ? 0 : sizeof(float) * static_cast<uint64_t>(rows * width);
}

Value make_value(std::byte* values, std::byte* prepared, int64_t rows, int64_t width, const Preparation& preparation) {
  Value v;
  v.values = reinterpret_cast<float*>(values);
  v.rows = rows, v.width = width, v.preparation = preparation;
  if (preparation.int8) v.int8 = reinterpret_cast<Int8Block*>(prepared);
  if (preparation.rounding != Compute::fp32) v.rounded = reinterpret_cast<float*>(prepared);
  return v;
}

Division divide(std::span<const BoundWeight* const> weights, int members) {
  double total = 0;
  for (const BoundWeight* w : weights) total += static_cast<double>(w->bytes);
  Division division;
  double before = 0;
  for (const BoundWeight* w : weights) {
    const int64_t tiles = w->tiles();
    const double tile = static_cast<double>(w->bytes) / static_cast<double>(tiles);
    std::vector<int64_t> cuts;
    for (int m = 0; m <= members; ++m) {
      const double position = total * m / members - before;
      cuts.push_back(std::clamp<int64_t>(static_cast<int64_t>(position / tile + 0.5), 0, tiles));
    }
    cuts.front() = 0, cuts.back() = tiles;
    division.cuts.push_back(std::move(cuts));
    before += static_cast<double>(w->bytes);
  }
  return division;
}

void multiply(const BoundProduct& product, const Value& x, int64_t row, int64_t rows, int64_t tile_begin, int64_t tile_end, float* y,
              int64_t y_stride, bool exact) {
  if (rows <= 0 || tile_begin >= tile_end) return;
  const BoundWeight& w = *product.weight;
  w.kernel->multiply(w.data, w.rows, w.cols, x.input(*w.kernel, row, exact), rows, tile_begin, tile_end, y, y_stride);
  if (product.bias == nullptr) return;
  const int64_t begin = tile_begin * w.kernel->row_tile, end = std::min(w.rows, tile_end * w.kernel->row_tile);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t r = begin; r < end; ++r) y[t * y_stride + r] += product.bias[r];
  }
}

}  // namespace tandem::cpu
