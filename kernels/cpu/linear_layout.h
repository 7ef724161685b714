// How weights lie in memory for the CPU kernels: tiles of 16 rows, within a tile along K, and at every step the 16 rows side by side,
// so that one vector register holds the same few columns of 16 rows and an activation is a broadcast. The layouts are permutations of
// the stored bytes (plus padding), the same for AVX2 and AVX-512 and for int8 and fp32 activations. "Lane" is the row in its tile.
//
//   nibbles   32 columns of 16 rows: four times 64 bytes; byte i of lane r in the j-th has column 4j+i low and column 16+4j+i high
//   q4_0      per 64 columns: two nibble blocks, fp16 d[2][16]
//   q4_1      the same and fp16 m[2][16]
//   q8_0      per 64 columns: two blocks of eight times 64 bytes (byte i of lane r in the j-th is column 4j+i), fp16 d[2][16]
//   q4_k      per 256 columns: eight nibble blocks, the 12 bytes of scales as three dwords a lane, fp16 d[16], fp16 dmin[16]
//   q6_k      per 256 columns: eight nibble blocks, eight blocks of two high bits (two times 64 bytes; bits 2j of byte i of lane r in
//             the h-th belong to column 16h+4j+i), int8 scales[16][16 lanes], fp16 d[16]
//   nf4, fp4  per block: dwords of eight columns a lane as stored, fp32 absmax[16]
//   nf4_dq    per tile: those dwords for all columns, then u8 absmax[block][16], where each row starts among the nested blocks, and
//             the nested absmax that the row needs
//   int8      per tile: fp32 row maximum[16], then q8_0's eight times 64 bytes for every 32 columns, the last filled with zeros
//   int4      per group: nibble blocks, fp32 scale[16], fp32 shift[16]
//   int8_group  the same with q8_0's blocks of bytes, each code less 128
//   fp8       per tile: fp32 scale[16] for each 128 columns, or for all of them, then bytes as int8's; where one of those is no
//             number, the scale is none
//   fp32      [column][16]; fp16 the same; bf16 [column / 2][16][2]
#pragma once
#include <cstdint>

#include "kernels/cpu/linear.h"

namespace tandem::cpu {

constexpr int kTile = 16;
inline int64_t tiles_of(int64_t rows) { return (rows + kTile - 1) / kTile; }
inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Of the GGUF block types: a unit is what one step along K reads.
struct Unit {
  int64_t cols, bytes;
};
constexpr Unit kQ40Unit{64, 2 * 256 + 64}, kQ41Unit{64, 2 * 256 + 128}, kQ80Unit{64, 2 * 512 + 64};
constexpr Unit kQ4kUnit{256, 8 * 256 + 3 * 64 + 2 * 32}, kQ6kUnit{256, 8 * 256 + 8 * 128 + 16 * 16 + 2 * 32};
constexpr int kQ4kScales = 8 * 256, kQ4kD = kQ4kScales + 3 * 64, kQ6kHigh = 8 * 256, kQ6kScales = kQ6kHigh + 8 * 128,
              kQ6kD = kQ6kScales + 256;
inline int64_t tile_bytes(const Unit& unit, int64_t cols) { return (cols + unit.cols - 1) / unit.cols * unit.bytes; }

// At the start of a four-bit matrix.
struct FourBitHeader {
  float map[16];
  float offset;    // of the nested absmax
  int32_t block;   // columns that share an absmax: the largest power of two that divides the format's block and cols
  int32_t shift;   // log2 of the elements of a nested block
  int32_t groups;  // nested absmax values kept for a row
  int64_t tile_bytes;
  uint8_t padding[40];
  float nested_map[256];  // only where nested
};
static_assert(sizeof(FourBitHeader) == 128 + 1024);
constexpr int64_t kFourBitHeader = 128, kNestedHeader = 128 + 1024;
constexpr int64_t kLeastFourBitBlock = 8;  // narrower ones (cols not a multiple of 8) are kept as fp32

inline int64_t int8_tile(int64_t cols) { return kTile * static_cast<int64_t>(sizeof(float)) + round_up(cols, 32) * kTile; }

// At the start of a matrix of int4 or int8_group.
struct GroupHeader {
  int64_t group;  // columns that share a scale
  uint8_t padding[56];
};
static_assert(sizeof(GroupHeader) == 64);
constexpr int64_t group_bytes(int bits, int64_t group) {
  return group * kTile * bits / 8 + 2 * kTile * static_cast<int64_t>(sizeof(float));
}

// At the start of a matrix of fp8.
struct Fp8Header {
  int32_t shift;  // log2 of the columns that share a scale
  uint8_t padding[60];
};
static_assert(sizeof(Fp8Header) == 64);
constexpr int kAllColumns = 62;
inline int64_t fp8_scale_bytes(int shift, int64_t cols) {
  return (((cols - 1) >> shift) + 1) * kTile * static_cast<int64_t>(sizeof(float));
}

// resident, pack and row of each layout, as LinearKernel wants them.
struct Layout {
  LinearKernel::Bytes (*resident)(const Format& format, int64_t rows, int64_t cols);
  void (*pack)(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination);
  void (*row)(const std::byte* resident, int64_t rows, int64_t cols, int64_t r, float* out);
};
extern const Layout kQ40Layout, kQ41Layout, kQ80Layout, kQ4kLayout, kQ6kLayout;
extern const Layout kFourBitLayout, kNestedLayout;  // nf4 and fp4; nf4_dq and fp4_dq
extern const Layout kInt8Layout, kInt4GroupLayout, kInt8GroupLayout, kFp8Layout;
extern const Layout kFp32Layout, kBf16Layout, kFp16Layout;
extern const Layout kWidenedLayout;  // any format, dequantized to fp32

}  // namespace tandem::cpu
