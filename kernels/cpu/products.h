// Weights as an executable holds them, and the rows that products read: a value as floats and, when its readers want it, rounded or
// quantized once for all of them. Rows are prepared by whoever writes them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/threads.h"
#include "kernels/cpu/linear.h"
#include "kernels/program/backend.h"

namespace tandem::cpu {

// Which activations a weight of this format is multiplied with; kernels that lack the int8 form take fp32.
Activations wanted_activations(const Format& format, const Arithmetic& arithmetic);

struct BoundWeight {
  const LinearKernel* kernel = nullptr;  // null: a vector of floats
  const std::byte* data = nullptr;
  int64_t rows = 0, cols = 0;
  uint64_t bytes = 0;
  int64_t tiles() const { return (rows + kernel->row_tile - 1) / kernel->row_tile; }
  const float* vector() const { return reinterpret_cast<const float*>(data); }
};

// What the readers of a value want beside its floats. Not both: rounding is asked for by name, int8 then is not chosen.
struct Preparation {
  bool int8 = false;
  Compute rounding = Compute::fp32;  // bf16 or fp16; fp32: none
  bool any() const { return int8 || rounding != Compute::fp32; }
};

struct Value {
  float* values = nullptr;  // [rows, width]
  int64_t rows = 0, width = 0;
  Preparation preparation;
  float* rounded = nullptr;   // [rows, width]
  Int8Block* int8 = nullptr;  // [rows, int8_blocks(width)]

  float* row(int64_t r) const { return values + r * width; }
  // Of what is prepared, rows [row, ...) as a kernel reads them.
  Input input(const LinearKernel& kernel, int64_t row, bool exact = false) const;
  // Columns [begin, end) of a row are written: round or quantize them. begin is a multiple of 32, end too unless it is the width.
  void prepare(int64_t row, int64_t begin, int64_t end, const Features& features) const;
  void copy_row(int64_t row, const Value& from, int64_t from_row) const;  // in every form
};
uint64_t prepared_bytes(int64_t rows, int64_t width, const Arithmetic& arithmetic);  // of the largest form
Value make_value(std::byte* values, std::byte* prepared, int64_t rows, int64_t width, const Preparation& preparation);

// Tiles of products that are computed together, divided among the members by the bytes they read: member m has tiles
// [cuts[p][m], cuts[p][m + 1]) of product p.
struct Division {
  std::vector<std::vector<int64_t>> cuts;
};
Division divide(std::span<const BoundWeight* const> weights, int members);

struct BoundProduct {
  const BoundWeight* weight = nullptr;
  const float* bias = nullptr;
};
// y[t, r] = product (+ bias) for rows [row, row + rows) of x and tiles [tile_begin, tile_end). exact: floats that were not rounded.
void multiply(const BoundProduct& product, const Value& x, int64_t row, int64_t rows, int64_t tile_begin, int64_t tile_end, float* y,
              int64_t y_stride, bool exact = false);

}  // namespace tandem::cpu
