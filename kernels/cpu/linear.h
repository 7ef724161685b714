// Matrix products with quantized weights on CPUs. A kernel is a row of a table: which format and activation type it takes, how it
// lays weights out (resident form), and plain functions. Stateless; called by every thread of a team on its own range of rows.
//
// Two promises: a row of y depends on nothing but its own row of x and the weights (fixed order along K whatever the number of
// tokens, threads or rows), and row() gives exactly the numbers that multiply() uses.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/formats/format.h"

namespace tandem::cpu {

enum class Activations : uint8_t {
  fp32,  // float[tokens, cols]
  int8,  // blocks of 32: see Int8Rows
};

// Activations quantized per block of 32 along K, as llama.cpp does: scale = max|x| / 127, code = rint(x / scale). The last block of a
// row is filled with zeros.
struct Int8Block {
  int8_t codes[32];
  float scale;
  float sum;          // scale * sum of the codes: for formats with a minimum
  int32_t offset[2];  // -8 * sum of the codes of each half: for formats that store code + bias
};
static_assert(sizeof(Int8Block) == 48);
inline int64_t int8_blocks(int64_t cols) { return (cols + 31) / 32; }  // of a row

struct Int8Rows {
  const Int8Block* blocks = nullptr;  // [tokens, stride]
  int64_t stride = 0;                 // blocks from one row to the next
};

struct Input {
  const float* values = nullptr;  // [tokens, stride] when fp32
  int64_t stride = 0;
  Int8Rows int8;
};

struct Features {  // what this processor has; tests may clear fields to reach the plainer kernels
  bool avx2 = false, avx512 = false, avx512_vnni = false, avx512_bf16 = false;
};
Features detect_features();

struct LinearKernel {
  const char* name;         // "q4_1_int8_avx512vnni": printed by plan and bench
  std::string_view format;  // the family of formats that it takes; empty: any
  Activations activations;
  int row_tile;  // rows are resident in tiles of this many (the last padded); threads divide tiles
  // Bytes of the resident form of [rows, cols]: codes and scales apart, as the plan reports them.
  struct Bytes {
    uint64_t weights, scales;
  };
  Bytes (*resident)(const Format& format, int64_t rows, int64_t cols);
  // Repacks tiles [tile_begin, tile_end) of a stored slice into the resident form of the whole slice at `destination`
  // (resident().weights + scales bytes, 64-byte aligned).
  void (*pack)(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination);
  // y[t * y_stride + r] = sum_k w[r, k] x[t, k] for rows of tiles [tile_begin, tile_end) (rows past the end are not written).
  void (*multiply)(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens, int64_t tile_begin,
                   int64_t tile_end, float* y, int64_t y_stride);
  // Row r dequantized: float[cols]; what an embedding look-up reads.
  void (*row)(const std::byte* resident, int64_t rows, int64_t cols, int64_t r, float* out);
};

// The best kernel for this format, activation type and processor. Falls back to fp32 activations, and to weights dequantized at
// packing, which works for every format: look at the result's `activations`. Never fails.
const LinearKernel& choose_linear(const Format& format, Activations wanted, const Features& features);
std::span<const LinearKernel* const> linear_kernels(const Features& features);  // best first; for tests and bench

// float[tokens, stride] into out[tokens, int8_blocks(cols)] for tokens [token_begin, token_end). The same bits on every processor.
void quantize_rows(const float* x, int64_t stride, int64_t cols, int64_t token_begin, int64_t token_end, Int8Block* out,
                   const Features& features);

}  // namespace tandem::cpu
