#include "kernels/cuda/plan/tile4.h"

#include <string>

#include "kernels/base/error.h"
#include "kernels/formats/nf4.h"

namespace tandem::cuda {
namespace {

constexpr uint64_t kAlignment = 256;
uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

bool tile4_holds(const Format& format, int64_t rows, int64_t cols) {
  return dynamic_cast<const FourBit*>(&format) != nullptr && format.block() == kTile4Block && rows > 0 && cols > 0 && cols % kTile4Block == 0;
}

Tile4 tile4(const Format& format, int64_t rows, int64_t cols) {
  if (!tile4_holds(format, rows, cols)) {
    fail(Code::internal, std::string(format.name()), "no 4-bit tiles of " + std::to_string(rows) + " x " + std::to_string(cols) + " (blocks of 64 within rows)");
  }
  Tile4 t;
  t.rows = rows, t.cols = cols;
  t.row_tiles = ceil_div(rows, kTile4Rows);
  t.slices = ceil_div(cols, kTile4Slice);
  t.nested = static_cast<const FourBit&>(format).nested() && cols % kTile4Slice == 0;
  const uint64_t padded_rows = static_cast<uint64_t>(t.row_tiles * kTile4Rows), slices = static_cast<uint64_t>(t.slices);
  t.codes_bytes = padded_rows * slices * kTile4Slice / 2;
  t.scales_offset = aligned(t.codes_bytes);
  t.scales_bytes = padded_rows * slices * (kTile4Slice / kTile4Block) * (t.nested ? 1 : sizeof(float));
  t.nested_offset = aligned(t.scales_offset + t.scales_bytes);
  t.nested_bytes = t.nested ? padded_rows * slices * sizeof(float) : 0;
  t.map_offset = aligned(t.nested_offset + t.nested_bytes);
  t.map_bytes = (32 + (t.nested ? 256 : 0)) * sizeof(float);
  t.bytes = t.map_offset + t.map_bytes;
  return t;
}

}  // namespace tandem::cuda
