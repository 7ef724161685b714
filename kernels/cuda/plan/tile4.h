// The layout of 4-bit codes that the matrix unit reads without a shuffle: tiles of 16 rows by 64 columns, 512 bytes each, one tile's
// 16-byte pieces in the order of the lanes that load them; scales beside them in the order in which they are applied. Columns are padded
// to whole slices of 512 (what one warp multiplies), rows to 16: padding has code and scale zero. Pure functions.
//
//   codes   [row tile][slice][block of 64][lane]: 16 bytes. Lane l holds rows l / 4 and l / 4 + 8; byte 4 q + 2 h + u is the stored byte
//           (two elements, the first in the high half) of row l / 4 + 8 u, columns 32 (q / 2) + 8 (l % 4) + 4 (q % 2) + 2 h and the next.
//   scales  [row tile][slice][lane]: 4 uint8 codes or 4 floats: blocks 2 (l % 4) and the next of row l / 4, the same of row l / 4 + 8.
//   nested  [row tile][slice][16 rows]: the fp32 absmax that belongs to the 8 codes of a row.
//   map     float[16] values of the codes, the nested offset, zeros up to 32 floats; nested: float[256] values of the scales' codes.
#pragma once
#include <cstdint>

#include "kernels/formats/format.h"

namespace tandem::cuda {

constexpr int64_t kTile4Rows = 16, kTile4Block = 64, kTile4Slice = 512;

struct Tile4 {
  int64_t rows = 0, cols = 0;              // of the matrix
  int64_t row_tiles = 0, slices = 0;       // of 16 rows, of 512 columns
  bool nested = false;                     // scales stay 8-bit codes; else they are fp32, also of a double-quantized format
  uint64_t codes_bytes = 0;                // at 0
  uint64_t scales_offset = 0, scales_bytes = 0;  // nested: uint8 codes; else float
  uint64_t nested_offset = 0, nested_bytes = 0;  // nested: float absmax of each (row, slice)
  uint64_t map_offset = 0, map_bytes = 0;        // the values that codes stand for
  uint64_t bytes = 0;                      // all of it
};

// Whether the layout can hold a matrix of this format: 4-bit codes in blocks of 64 that do not straddle rows (cols % 64 == 0).
bool tile4_holds(const Format& format, int64_t rows, int64_t cols);
// Scales stay codes (nested) when a double-quantized format's rows are whole slices, so that one nested absmax serves the 8 codes of a
// row's slice; else they are expanded to fp32. Errors: Code::internal when it cannot hold it.
Tile4 tile4(const Format& format, int64_t rows, int64_t cols);

}  // namespace tandem::cuda
