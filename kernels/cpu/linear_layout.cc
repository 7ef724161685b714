#include "kernels/cpu/linear_layout.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/int4.h"
#include "kernels/formats/int8.h"
#include "kernels/formats/nf4.h"

namespace tandem::cpu {
namespace {

uint32_t dword(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}
void put(uint8_t* at, uint32_t value) { std::memcpy(at, &value, 4); }
void copy2(uint8_t* to, const uint8_t* from) { std::memcpy(to, from, 2); }

// Each GGUF type below: weights and scales of a unit, and both directions between a stored block and lane r of block b of a unit.

struct Q40 {
  static constexpr std::string_view kFormat = "q4_0";
  static constexpr Unit kUnit = kQ40Unit;
  static constexpr int kBlock = 32, kBlockBytes = 18, kScaleBytes = 64;
  static void pack(const uint8_t* from, int b, int r, uint8_t* unit) {
    for (int j = 0; j < 4; ++j) put(unit + b * 256 + j * 64 + r * 4, dword(from + 2 + 4 * j));
    copy2(unit + 512 + b * 32 + r * 2, from);
  }
  static void unpack(const uint8_t* unit, int b, int r, uint8_t* to) {
    for (int j = 0; j < 4; ++j) put(to + 2 + 4 * j, dword(unit + b * 256 + j * 64 + r * 4));
    copy2(to, unit + 512 + b * 32 + r * 2);
  }
};
struct Q41 {
  static constexpr std::string_view kFormat = "q4_1";
  static constexpr Unit kUnit = kQ41Unit;
  static constexpr int kBlock = 32, kBlockBytes = 20, kScaleBytes = 128;
  static void pack(const uint8_t* from, int b, int r, uint8_t* unit) {
    for (int j = 0; j < 4; ++j) put(unit + b * 256 + j * 64 + r * 4, dword(from + 4 + 4 * j));
    copy2(unit + 512 + b * 32 + r * 2, from);
    copy2(unit + 576 + b * 32 + r * 2, from + 2);
  }
  static void unpack(const uint8_t* unit, int b, int r, uint8_t* to) {
    for (int j = 0; j < 4; ++j) put(to + 4 + 4 * j, dword(unit + b * 256 + j * 64 + r * 4));
    copy2(to, unit + 512 + b * 32 + r * 2);
    copy2(to + 2, unit + 576 + b * 32 + r * 2);
  }
};
struct Q80 {
  static constexpr std::string_view kFormat = "q8_0";
  static constexpr Unit kUnit = kQ80Unit;
  static constexpr int kBlock = 32, kBlockBytes = 34, kScaleBytes = 64;
  static void pack(const uint8_t* from, int b, int r, uint8_t* unit) {
    for (int j = 0; j < 8; ++j) put(unit + b * 512 + j * 64 + r * 4, dword(from + 2 + 4 * j));
    copy2(unit + 1024 + b * 32 + r * 2, from);
  }
  static void unpack(const uint8_t* unit, int b, int r, uint8_t* to) {
    for (int j = 0; j < 8; ++j) put(to + 2 + 4 * j, dword(unit + b * 512 + j * 64 + r * 4));
    copy2(to, unit + 1024 + b * 32 + r * 2);
  }
};

// Nibbles of 64 columns as the k-quants store them (32 bytes: the first 32 columns low, the next 32 high) against two nibble blocks.
// Four bytes at a time: those at 4j and 16 + 4j.
void split_nibbles(const uint8_t* from, int j, uint32_t* first, uint32_t* second) {
  const uint32_t near = dword(from + 4 * j), far = dword(from + 16 + 4 * j);
  *first = (near & 0x0f0f0f0f) | (far & 0x0f0f0f0f) << 4;
  *second = (near >> 4 & 0x0f0f0f0f) | (far & 0xf0f0f0f0);
}

struct Q4k {
  static constexpr std::string_view kFormat = "q4_k";
  static constexpr Unit kUnit = kQ4kUnit;
  static constexpr int kBlock = 256, kBlockBytes = 144, kScaleBytes = 256;
  static void pack(const uint8_t* from, int, int r, uint8_t* unit) {
    for (int pair = 0; pair < 4; ++pair) {
      for (int j = 0; j < 4; ++j) {
        uint32_t first, second;
        split_nibbles(from + 16 + pair * 32, j, &first, &second);
        put(unit + pair * 512 + j * 64 + r * 4, first);
        put(unit + pair * 512 + 256 + j * 64 + r * 4, second);
      }
    }
    for (int j = 0; j < 3; ++j) put(unit + kQ4kScales + j * 64 + r * 4, dword(from + 4 + 4 * j));
    copy2(unit + kQ4kD + r * 2, from);
    copy2(unit + kQ4kD + 32 + r * 2, from + 2);
  }
  static void unpack(const uint8_t* unit, int, int r, uint8_t* to) {
    for (int pair = 0; pair < 4; ++pair) {
      for (int j = 0; j < 4; ++j) {
        const uint32_t first = dword(unit + pair * 512 + j * 64 + r * 4), second = dword(unit + pair * 512 + 256 + j * 64 + r * 4);
        put(to + 16 + pair * 32 + 4 * j, (first & 0x0f0f0f0f) | (second & 0x0f0f0f0f) << 4);
        put(to + 16 + pair * 32 + 16 + 4 * j, (first >> 4 & 0x0f0f0f0f) | (second & 0xf0f0f0f0));
      }
    }
    for (int j = 0; j < 3; ++j) put(to + 4 + 4 * j, dword(unit + kQ4kScales + j * 64 + r * 4));
    copy2(to, unit + kQ4kD + r * 2);
    copy2(to + 2, unit + kQ4kD + 32 + r * 2);
  }
};

// A Q6_K block is two halves of 128 columns; quarter q of a half (32 columns) has its low bits in bytes q % 2 * 32 of the half's 64,
// shifted by q / 2 * 4, and its high bits in all 32 bytes of the half's, shifted by 2q. Quarter q of half h is nibble block 4h + q.
struct Q6k {
  static constexpr std::string_view kFormat = "q6_k";
  static constexpr Unit kUnit = kQ6kUnit;
  static constexpr int kBlock = 256, kBlockBytes = 210, kScaleBytes = 256 + 64;
  static void pack(const uint8_t* from, int, int r, uint8_t* unit) {
    for (int s = 0; s < 8; ++s) {
      const int half = s / 4, quarter = s % 4;
      const uint8_t *low = from + half * 64 + quarter % 2 * 32, *high = from + 128 + half * 32;
      uint32_t bits[2] = {0, 0};
      for (int j = 0; j < 4; ++j) {
        const int shift = quarter / 2 * 4;
        const uint32_t near = dword(low + 4 * j) >> shift & 0x0f0f0f0f, far = dword(low + 16 + 4 * j) >> shift & 0x0f0f0f0f;
        put(unit + s * 256 + j * 64 + r * 4, near | far << 4);
        for (int h = 0; h < 2; ++h) bits[h] |= (dword(high + 16 * h + 4 * j) >> (2 * quarter) & 0x03030303) << (2 * j);
      }
      for (int h = 0; h < 2; ++h) put(unit + kQ6kHigh + s * 128 + h * 64 + r * 4, bits[h]);
    }
    for (int j = 0; j < 16; ++j) unit[kQ6kScales + j * 16 + r] = from[192 + j];
    copy2(unit + kQ6kD + r * 2, from + 208);
  }
  static void unpack(const uint8_t* unit, int, int r, uint8_t* to) {
    std::memset(to, 0, 192);
    for (int s = 0; s < 8; ++s) {
      const int half = s / 4, quarter = s % 4;
      uint8_t *low = to + half * 64 + quarter % 2 * 32, *high = to + 128 + half * 32;
      for (int j = 0; j < 4; ++j) {
        const uint32_t codes = dword(unit + s * 256 + j * 64 + r * 4);
        const int shift = quarter / 2 * 4;
        put(low + 4 * j, dword(low + 4 * j) | (codes & 0x0f0f0f0f) << shift);
        put(low + 16 + 4 * j, dword(low + 16 + 4 * j) | (codes >> 4 & 0x0f0f0f0f) << shift);
        for (int h = 0; h < 2; ++h) {
          uint8_t* at = high + 16 * h + 4 * j;
          put(at, dword(at) | (dword(unit + kQ6kHigh + s * 128 + h * 64 + r * 4) >> (2 * j) & 0x03030303) << (2 * quarter));
        }
      }
    }
    for (int j = 0; j < 16; ++j) to[192 + j] = unit[kQ6kScales + j * 16 + r];
    copy2(to + 208, unit + kQ6kD + r * 2);
  }
};

template <class Q>
LinearKernel::Bytes resident_blocks(const Format&, int64_t rows, int64_t cols) {
  const int64_t units = (cols + Q::kUnit.cols - 1) / Q::kUnit.cols * tiles_of(rows);
  return {static_cast<uint64_t>(units * (Q::kUnit.bytes - Q::kScaleBytes)), static_cast<uint64_t>(units * Q::kScaleBytes)};
}
template <class Q>
void pack_blocks(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination) {
  constexpr int64_t kPerUnit = Q::kUnit.cols / Q::kBlock;
  const int64_t blocks = slice.cols / Q::kBlock, bytes = tile_bytes(Q::kUnit, slice.cols);
  const auto* stored = reinterpret_cast<const uint8_t*>(slice.data[0]);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    auto* unit = reinterpret_cast<uint8_t*>(destination) + tile * bytes;
    const auto rows = static_cast<int>(std::min<int64_t>(kTile, slice.rows - tile * kTile));
    for (int64_t block = 0; block < blocks; block += kPerUnit, unit += Q::kUnit.bytes) {
      const auto here = static_cast<int>(std::min(kPerUnit, blocks - block));
      if (rows < kTile || here < kPerUnit) std::memset(unit, 0, Q::kUnit.bytes);
      for (int r = 0; r < rows; ++r) {
        const uint8_t* from = stored + ((tile * kTile + r) * blocks + block) * Q::kBlockBytes;
        for (int b = 0; b < here; ++b) Q::pack(from + b * Q::kBlockBytes, b, r, unit);
      }
    }
  }
}
template <class Q>
void row_blocks(const std::byte* resident, int64_t, int64_t cols, int64_t r, float* out) {
  static const Format& stored = format(Q::kFormat);
  constexpr int kPerUnit = Q::kUnit.cols / Q::kBlock;
  const auto* tile = reinterpret_cast<const uint8_t*>(resident) + r / kTile * tile_bytes(Q::kUnit, cols);
  uint8_t bytes[Q::kBlockBytes];
  QuantizedView view{&stored, 1, Q::kBlock};
  view.data[0] = reinterpret_cast<const std::byte*>(bytes);
  for (int64_t b = 0; b < cols / Q::kBlock; ++b) {
    Q::unpack(tile + b / kPerUnit * Q::kUnit.bytes, static_cast<int>(b % kPerUnit), static_cast<int>(r % kTile), bytes);
    stored.dequantize(view, 0, 1, out + b * Q::kBlock);
  }
}
template <class Q>
constexpr Layout kBlockLayout = {resident_blocks<Q>, pack_blocks<Q>, row_blocks<Q>};

// --- dense ---

LinearKernel::Bytes resident_fp32(const Format&, int64_t rows, int64_t cols) {
  return {static_cast<uint64_t>(tiles_of(rows) * cols * kTile) * 4, 0};
}
// Transposes 16 rows (those past `rows` are zero) of fp32 into [column][16].
void place_fp32(const float* const (&row)[kTile], int rows, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; ++k) {
    for (int r = 0; r < kTile; ++r) out[k * kTile + r] = r < rows ? row[r][k] : 0.0f;
  }
}
void pack_widened(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination) {
  std::vector<float> values(static_cast<size_t>(kTile * slice.cols));
  const float* row[kTile];
  for (int r = 0; r < kTile; ++r) row[r] = values.data() + r * slice.cols;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const auto rows = static_cast<int>(std::min<int64_t>(kTile, slice.rows - tile * kTile));
    slice.format->dequantize(slice, tile * kTile, rows, values.data());
    place_fp32(row, rows, slice.cols, reinterpret_cast<float*>(destination) + tile * kTile * slice.cols);
  }
}
void row_fp32(const std::byte* resident, int64_t, int64_t cols, int64_t r, float* out) {
  const auto* tile = reinterpret_cast<const float*>(resident) + r / kTile * kTile * cols + r % kTile;
  for (int64_t k = 0; k < cols; ++k) out[k] = tile[k * kTile];
}

int64_t half_tile(int64_t cols) { return round_up(cols, 2) * kTile; }  // in elements
LinearKernel::Bytes resident_half(const Format&, int64_t rows, int64_t cols) {
  return {static_cast<uint64_t>(tiles_of(rows) * half_tile(cols)) * 2, 0};
}
template <bool kPairs>
int64_t half_index(int64_t k, int r) {
  return kPairs ? k / 2 * 32 + r * 2 + k % 2 : k * kTile + r;
}
template <bool kPairs>
void pack_half(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination) {
  constexpr int64_t kStep = 128;  // columns at a time: what is written stays in the nearest cache until all 16 rows are there
  const int64_t cols = slice.cols, tile_size = half_tile(cols);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    auto* out = reinterpret_cast<uint16_t*>(destination) + tile * tile_size;
    const auto rows = static_cast<int>(std::min<int64_t>(kTile, slice.rows - tile * kTile));
    if (rows < kTile || cols % 2 != 0) std::fill_n(out, tile_size, uint16_t{0});
    for (int64_t begin = 0; begin < cols; begin += kStep) {
      const int64_t end = std::min(cols, begin + kStep);
      for (int r = 0; r < rows; ++r) {
        const std::byte* from = slice.data[0] + (tile * kTile + r) * cols * 2;
        for (int64_t k = begin; k < end; ++k) std::memcpy(out + half_index<kPairs>(k, r), from + k * 2, 2);
      }
    }
  }
}
template <bool kPairs>
void row_half(const std::byte* resident, int64_t, int64_t cols, int64_t r, float* out) {
  const auto* tile = reinterpret_cast<const uint16_t*>(resident) + r / kTile * half_tile(cols);
  for (int64_t k = 0; k < cols; ++k) {
    const uint16_t bits = tile[half_index<kPairs>(k, static_cast<int>(r % kTile))];
    out[k] = kPairs ? bf16_to_float(bits) : f16_to_float(bits);
  }
}

// --- int8 rows ---

LinearKernel::Bytes resident_int8(const Format&, int64_t rows, int64_t cols) {
  const auto tiles = static_cast<uint64_t>(tiles_of(rows)), scales = uint64_t{kTile} * sizeof(float);
  return {tiles * (static_cast<uint64_t>(int8_tile(cols)) - scales), tiles * scales};
}
void pack_int8(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination) {
  const int64_t cols = slice.cols, bytes = int8_tile(cols);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    std::byte* out = destination + tile * bytes;
    const int64_t rows = std::min<int64_t>(kTile, slice.rows - tile * kTile);
    if (rows < kTile || cols % 32 != 0) std::memset(out, 0, static_cast<size_t>(bytes));
    std::memcpy(out, slice.data[1] + tile * kTile * 4, static_cast<size_t>(rows) * 4);
    for (int64_t r = 0; r < rows; ++r) {
      const std::byte* from = slice.data[0] + (tile * kTile + r) * cols;
      for (int64_t k = 0; k < cols; k += 4) std::memcpy(out + 64 + k * kTile + r * 4, from + k, static_cast<size_t>(std::min<int64_t>(4, cols - k)));
    }
  }
}
void row_int8(const std::byte* resident, int64_t, int64_t cols, int64_t r, float* out) {
  const std::byte* tile = resident + r / kTile * int8_tile(cols);
  const float row_max = std::bit_cast<float>(dword(reinterpret_cast<const uint8_t*>(tile) + r % kTile * 4));
  for (int64_t k = 0; k < cols; ++k) out[k] = int8_value(static_cast<int8_t>(tile[64 + k / 4 * 64 + r % kTile * 4 + k % 4]), row_max);
}

// --- codes of 4 or 8 bits in groups ---

template <int kBits>
LinearKernel::Bytes resident_group(const Format& format, int64_t rows, int64_t cols) {
  const int64_t group = static_cast<const GroupInts&>(format).group(cols), groups = tiles_of(rows) * (group > 0 ? cols / group : 0);
  const uint64_t scales = static_cast<uint64_t>(groups) * 2 * kTile * sizeof(float);
  return {static_cast<uint64_t>(groups * group_bytes(kBits, group)) - scales, scales + sizeof(GroupHeader)};
}
template <int kBits>
void pack_group(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination) {
  const int64_t cols = slice.cols, group = static_cast<const GroupInts&>(*slice.format).group(cols), groups = group > 0 ? cols / group : 0;
  if (tile_begin == 0) {
    const GroupHeader header{group, {}};
    std::memcpy(destination, &header, sizeof header);
  }
  const auto* codes = reinterpret_cast<const uint8_t*>(slice.data[0]);
  const int64_t bytes = group_bytes(kBits, group), code_bytes = group * kTile * kBits / 8;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    auto* out = reinterpret_cast<uint8_t*>(destination) + sizeof(GroupHeader) + tile * groups * bytes;
    const auto rows = static_cast<int>(std::min<int64_t>(kTile, slice.rows - tile * kTile));
    if (rows < kTile) std::memset(out, 0, static_cast<size_t>(groups * bytes));
    for (int64_t g = 0; g < groups; ++g, out += bytes) {
      for (int r = 0; r < rows; ++r) {
        const int64_t row = tile * kTile + r;
        const uint8_t* from = codes + (row * cols + g * group) * kBits / 8;
        for (int64_t k = 0; k < group; k += 32) {
          uint8_t* block = out + k * kTile * kBits / 8 + r * 4;
          for (int64_t i = 0; i < 32; ++i) {
            if (kBits == 8) {
              block[i / 4 * 64 + i % 4] = from[k + i] ^ 0x80;
            } else {
              const uint8_t code = i % 2 == 0 ? from[(k + i) / 2] & 15 : from[(k + i) / 2] >> 4;
              uint8_t& to = block[i % 16 / 4 * 64 + i % 4];
              to = static_cast<uint8_t>(i < 16 ? code : to | code << 4);
            }
          }
        }
        for (int part = 0; part < 2; ++part) std::memcpy(out + code_bytes + part * 64 + r * 4, slice.data[1 + part] + (row * groups + g) * 4, 4);
      }
    }
  }
}
template <int kBits>
void row_group(const std::byte* resident, int64_t, int64_t cols, int64_t r, float* out) {
  GroupHeader header;
  std::memcpy(&header, resident, sizeof header);
  const int64_t group = header.group, groups = group > 0 ? cols / group : 0, bytes = group_bytes(kBits, group), lane = r % kTile * 4;
  const auto* at = reinterpret_cast<const uint8_t*>(resident) + sizeof header + r / kTile * groups * bytes;
  for (int64_t g = 0; g < groups; ++g, at += bytes) {
    const uint8_t* scales = at + group * kTile * kBits / 8;
    const float scale = std::bit_cast<float>(dword(scales + lane)), shift = std::bit_cast<float>(dword(scales + 64 + lane));
    for (int64_t k = 0; k < group; ++k) {
      const int64_t i = k % 32;
      const uint8_t* block = at + (k - i) * kTile * kBits / 8 + lane;
      const int code = kBits == 8 ? block[i / 4 * 64 + i % 4] ^ 0x80 : block[i % 16 / 4 * 64 + i % 4] >> (i < 16 ? 0 : 4) & 15;
      const float product = scale * static_cast<float>(code);
      *out++ = product - shift;  // two roundings
    }
  }
}

// --- fp8 ---

int fp8_shift(const Format& format) { return static_cast<const Fp8&>(format).scales() == Fp8Scales::block ? std::countr_zero(static_cast<uint64_t>(kFp8Block)) : kAllColumns; }
LinearKernel::Bytes resident_fp8(const Format& format, int64_t rows, int64_t cols) {
  const auto tiles = static_cast<uint64_t>(tiles_of(rows));
  return {tiles * static_cast<uint64_t>(round_up(cols, 32) * kTile), tiles * static_cast<uint64_t>(fp8_scale_bytes(fp8_shift(format), cols)) + sizeof(Fp8Header)};
}
void pack_fp8(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination) {
  const auto& format = static_cast<const Fp8&>(*slice.format);
  const int64_t cols = slice.cols, scales = fp8_scale_bytes(fp8_shift(format), cols), bytes = scales + round_up(cols, 32) * kTile;
  if (tile_begin == 0) {
    const Fp8Header header{fp8_shift(format), {}};
    std::memcpy(destination, &header, sizeof header);
  }
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    std::byte* out = destination + sizeof(Fp8Header) + tile * bytes;
    const int64_t rows = std::min<int64_t>(kTile, slice.rows - tile * kTile);
    if (rows < kTile || cols % 32 != 0) std::memset(out, 0, static_cast<size_t>(bytes));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = tile * kTile + r;
      const std::byte* from = slice.data[0] + row * cols;
      for (int64_t g = 0; g < scales / 64; ++g) {
        const int64_t begin = g * kFp8Block, end = g + 1 < scales / 64 ? begin + kFp8Block : cols;
        const bool numbers = std::none_of(from + begin, from + end, [](std::byte code) { return (code & std::byte{0x7f}) == std::byte{0x7f}; });
        const float scale = numbers ? format.scale(slice, row, begin) : std::numeric_limits<float>::quiet_NaN();
        std::memcpy(out + g * 64 + r * 4, &scale, sizeof scale);
      }
      for (int64_t k = 0; k < cols; k += 4) std::memcpy(out + scales + k * kTile + r * 4, from + k, static_cast<size_t>(std::min<int64_t>(4, cols - k)));
    }
  }
}
void row_fp8(const std::byte* resident, int64_t, int64_t cols, int64_t r, float* out) {
  Fp8Header header;
  std::memcpy(&header, resident, sizeof header);
  const int64_t scales = fp8_scale_bytes(header.shift, cols);
  const auto* tile = reinterpret_cast<const uint8_t*>(resident) + sizeof header + r / kTile * (scales + round_up(cols, 32) * kTile);
  const int64_t lane = r % kTile * 4;
  for (int64_t k = 0; k < cols; ++k) {
    widen(DType::f8_e4m3, tile + scales + k / 4 * 64 + lane + k % 4, 1, out + k);
    out[k] *= std::bit_cast<float>(dword(tile + (k >> header.shift) * 64 + lane));
  }
}

// --- four bits, blocks over the flattened matrix ---

const FourBit& four_bit(const Format& format) { return static_cast<const FourBit&>(format); }
int64_t shared_block(const FourBit& format, int64_t cols) {
  const int64_t power = cols & -cols;  // the largest power of two that divides cols
  return std::min(format.block(), power);
}
bool too_narrow(const FourBit& format, int64_t cols) { return shared_block(format, cols) < kLeastFourBitBlock; }
int64_t nested_groups(const FourBit& format, int64_t cols) {  // a row may start anywhere in a nested block
  const int64_t elements = format.block() * kNestedBlock;
  return (cols + elements - 2) / elements + 1;
}
struct FourBitSizes {
  int64_t codes, scales;  // of a tile
};
FourBitSizes four_bit_tile(const FourBit& format, int64_t cols) {
  const int64_t blocks = cols / shared_block(format, cols);
  const int64_t scales = format.nested() ? round_up(blocks * kTile, 64) + 64 + nested_groups(format, cols) * 64 : blocks * 64;
  return {cols * kTile / 2, scales};
}
LinearKernel::Bytes resident_four_bit(const Format& f, int64_t rows, int64_t cols) {
  const FourBit& format = four_bit(f);
  const uint64_t header = format.nested() ? kNestedHeader : kFourBitHeader;
  if (too_narrow(format, cols)) return {resident_fp32(f, rows, cols).weights, header};
  const auto sizes = four_bit_tile(format, cols);
  const auto tiles = static_cast<uint64_t>(tiles_of(rows));
  return {tiles * static_cast<uint64_t>(sizes.codes), tiles * static_cast<uint64_t>(sizes.scales) + header};
}

void pack_four_bit(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination) {
  const FourBit& format = four_bit(*slice.format);
  const int64_t cols = slice.cols, header_bytes = format.nested() ? kNestedHeader : kFourBitHeader;
  const bool narrow = too_narrow(format, cols);
  const int64_t block = narrow ? 0 : shared_block(format, cols), blocks = narrow ? 0 : cols / block;
  const int64_t nested_elements = format.block() * kNestedBlock;
  const FourBitSizes sizes = narrow ? FourBitSizes{} : four_bit_tile(format, cols);
  if (tile_begin == 0) {
    FourBitHeader header{};
    std::memcpy(header.map, slice.data[2], 64);
    header.block = static_cast<int32_t>(block);
    header.tile_bytes = sizes.codes + sizes.scales;
    if (format.nested()) {
      header.shift = std::countr_zero(static_cast<uint64_t>(nested_elements));
      header.groups = static_cast<int32_t>(narrow ? 0 : nested_groups(format, cols));
      std::memcpy(header.nested_map, slice.data[4], 1024);
      std::memcpy(&header.offset, slice.data[5], 4);
    }
    std::memcpy(destination, &header, static_cast<size_t>(header_bytes));
  }
  std::byte* tiles = destination + header_bytes;
  if (narrow) return pack_widened(slice, tile_begin, tile_end, tiles);
  const auto* codes = reinterpret_cast<const uint8_t*>(slice.data[0]);
  const int64_t whole_cols = slice.whole_cols > 0 ? slice.whole_cols : cols;
  const int64_t nested_count = format.nested() ? nested_groups(format, cols) : 0;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    auto* out = reinterpret_cast<uint8_t*>(tiles) + tile * (sizes.codes + sizes.scales);
    const auto rows = static_cast<int>(std::min<int64_t>(kTile, slice.rows - tile * kTile));
    if (rows < kTile) std::memset(out, 0, static_cast<size_t>(sizes.codes + sizes.scales));
    const int64_t block_bytes = block * 8 + (format.nested() ? 0 : 64);
    for (int64_t b = 0; b < blocks; ++b) {
      uint8_t* to = out + b * block_bytes;
      for (int r = 0; r < rows; ++r) {
        const int64_t element = (tile * kTile + r) * cols + b * block;
        for (int64_t j = 0; j < block / 8; ++j) put(to + j * 64 + r * 4, dword(codes + element / 2 + j * 4));
        if (format.nested()) {
          out[sizes.codes + b * kTile + r] = static_cast<uint8_t>(slice.data[1][element / format.block()]);
        } else {
          std::memcpy(to + block * 8 + r * 4, slice.data[1] + element / format.block() * 4, 4);
        }
      }
    }
    if (!format.nested()) continue;
    // Where each row starts counts from the nested block that its first element is in.
    uint8_t* starts = out + sizes.codes + round_up(blocks * kTile, 64);
    const int64_t last = (slice.first_element + (slice.rows - 1) * whole_cols + cols - 1) / nested_elements;
    for (int r = 0; r < rows; ++r) {
      const int64_t element = slice.first_element + (tile * kTile + r) * whole_cols;
      put(starts + r * 4, static_cast<uint32_t>(element % nested_elements));
      for (int64_t g = 0; g < nested_count; ++g) {
        const int64_t index = std::min(last, element / nested_elements + g);
        put(starts + 64 + g * 64 + r * 4, dword(reinterpret_cast<const uint8_t*>(slice.data[3]) + index * 4));
      }
    }
  }
}

template <bool kNested>
void row_four_bit(const std::byte* resident, int64_t rows, int64_t cols, int64_t r, float* out) {
  FourBitHeader header;
  std::memcpy(&header, resident, kNested ? kNestedHeader : kFourBitHeader);
  const std::byte* tiles = resident + (kNested ? kNestedHeader : kFourBitHeader);
  if (header.block == 0) return row_fp32(tiles, rows, cols, r, out);
  const auto* tile = reinterpret_cast<const uint8_t*>(tiles) + r / kTile * header.tile_bytes;
  const int64_t lane = r % kTile, block_bytes = header.block * 8 + (kNested ? 0 : 64);
  const uint8_t* scales = tile + cols * kTile / 2;
  const uint8_t* starts = scales + round_up(cols / header.block * kTile, 64);
  for (int64_t b = 0; b < cols / header.block; ++b) {
    const uint8_t* from = tile + b * block_bytes;
    float absmax;
    if (kNested) {
      const int64_t group = (dword(starts + lane * 4) + b * header.block) >> header.shift;
      const float product = header.nested_map[scales[b * kTile + lane]] * std::bit_cast<float>(dword(starts + 64 + group * 64 + lane * 4));
      absmax = product + header.offset;  // two roundings
    } else {
      absmax = std::bit_cast<float>(dword(from + header.block * 8 + lane * 4));
    }
    for (int64_t i = 0; i < header.block; ++i) {
      const uint8_t byte = from[i / 8 * 64 + lane * 4 + i % 8 / 2];
      *out++ = header.map[i % 2 == 0 ? byte >> 4 : byte & 15] * absmax;
    }
  }
}

}  // namespace

const Layout kQ40Layout = kBlockLayout<Q40>, kQ41Layout = kBlockLayout<Q41>, kQ80Layout = kBlockLayout<Q80>, kQ4kLayout = kBlockLayout<Q4k>,
             kQ6kLayout = kBlockLayout<Q6k>;
const Layout kFourBitLayout = {resident_four_bit, pack_four_bit, row_four_bit<false>};
const Layout kNestedLayout = {resident_four_bit, pack_four_bit, row_four_bit<true>};
const Layout kInt8Layout = {resident_int8, pack_int8, row_int8};
const Layout kInt4GroupLayout = {resident_group<4>, pack_group<4>, row_group<4>}, kInt8GroupLayout = {resident_group<8>, pack_group<8>, row_group<8>};
const Layout kFp8Layout = {resident_fp8, pack_fp8, row_fp8};
const Layout kFp32Layout = {resident_fp32, pack_widened, row_fp32}, kWidenedLayout = kFp32Layout;
const Layout kBf16Layout = {resident_half, pack_half<true>, row_half<true>};
const Layout kFp16Layout = {resident_half, pack_half<false>, row_half<false>};

}  // namespace tandem::cpu
