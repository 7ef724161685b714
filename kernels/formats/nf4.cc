#include "kernels/formats/nf4.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"
#include "kernels/formats/wide.h"

namespace tandem {
namespace {

constexpr std::array<float, 16> kNf4 = {-1.0f,
                                        -0.6961928009986877f,
                                        -0.5250730514526367f,
                                        -0.39491748809814453f,
                                        -0.28444138169288635f,
                                        -0.18477343022823334f,
                                        -0.09105003625154495f,
                                        0.0f,
                                        0.07958029955625534f,
                                        0.16093020141124725f,
                                        0.24611230194568634f,
                                        0.33791524171829224f,
                                        0.44070982933044434f,
                                        0.5626170039176941f,
                                        0.7229568362236023f,
                                        1.0f};
constexpr std::array<float, 16> kFp4 = {
    0.0f, 0.0052083334885537624f,  0.6666666865348816f,  1.0f,  0.3333333432674408f,  0.5f,  0.1666666716337204f,  0.25f,
    0.0f, -0.0052083334885537624f, -0.6666666865348816f, -1.0f, -0.3333333432674408f, -0.5f, -0.1666666716337204f, -0.25f};
// Codes in ascending order of their values.
constexpr std::array<uint8_t, 16> kNf4Order = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr std::array<uint8_t, 16> kFp4Order = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};

// The positive half of bitsandbytes' dynamic map without its last value 1. torch.linspace made it, whose rounding depends on the
// vector length, hence literals.
constexpr float kDynamicHalf[127] = {
    5.5000004e-7f, 3.2500002e-6f, 7.75e-6f,     2.1249998e-5f, 4.375e-5f,    6.625e-5f,    8.875e-5f,    1.5625001e-4f, 2.6875004e-4f,
    3.8125002e-4f, 4.9375003e-4f, 6.062501e-4f, 7.1875006e-4f, 8.3125e-4f,   9.437501e-4f, .0012812499f, .00184375f,    .00240625f,
    .00296875f,    .0035312497f,  .00409375f,   .0046562497f,  .0052187503f, .00578125f,   .00634375f,   .00690625f,    .00746875f,
    .00803125f,    .00859375f,    .009156249f,  .00971875f,    .01140625f,   .01421875f,   .01703125f,   .019843752f,   .02265625f,
    .02546875f,    .028281251f,   .03109375f,   .03390625f,    .036718752f,  .03953125f,   .042343747f,  .04515625f,    .04796875f,
    .05078125f,    .05359375f,    .05640625f,   .059218753f,   .06203125f,   .06484375f,   .067656256f,  .070468746f,   .07328125f,
    .07609375f,    .07890625f,    .08171876f,   .08453125f,    .08734375f,   .09015625f,   .092968754f,  .09578126f,    .09859375f,
    .107031256f,   .12109375f,    .13515624f,   .14921875f,    .16328125f,   .17734376f,   .19140625f,   .20546874f,    .21953125f,
    .23359375f,    .24765624f,    .26171875f,   .27578127f,    .28984374f,   .30390626f,   .31796873f,   .33203125f,    .34609374f,
    .36015624f,    .37421876f,    .38828123f,   .40234375f,    .41640624f,   .43046874f,   .44453126f,   .45859373f,    .47265625f,
    .4867187f,     .50078124f,    .5148437f,    .5289062f,     .54296875f,   .5570313f,    .5710938f,    .58515626f,    .5992187f,
    .61328125f,    .6273438f,     .6414063f,    .65546876f,    .6695312f,    .68359375f,   .6976563f,    .7117188f,     .72578126f,
    .7398437f,     .75390625f,    .7679688f,    .78203124f,    .79609376f,   .8101562f,    .82421875f,   .8382813f,     .85234374f,
    .86640626f,    .8804687f,     .89453125f,   .9085938f,     .92265624f,   .93671876f,   .9507812f,    .96484375f,    .9789063f,
    .99296874f};

// The nearest code is the number of bounds between neighbouring values that lie below: all of them are compared, so that a loop over
// numbers has no branch. A NaN is above all, as in torch.bucketize.
constexpr int kBounds = 15;
struct Thresholds {
  std::array<float, kBounds> bounds;      // ascending
  std::array<uint8_t, 256> pair;          // of two counts, the first in the high half: two codes
};
Thresholds thresholds(Codebook book) {
  Thresholds t;
  const auto& values = code_values(book);
  const auto& order = book == Codebook::nf4 ? kNf4Order : kFp4Order;
  for (size_t i = 0; i < kBounds; ++i) t.bounds[i] = (values[order[i]] + values[order[i + 1]]) / 2.0f;
  for (size_t i = 0; i < 256; ++i) t.pair[i] = static_cast<uint8_t>(order[i >> 4] << 4 | order[i & 15]);
  return t;
}

TANDEM_INLINE inline float clamp_unit(float v) { return v < -1.0f ? -1.0f : v > 1.0f ? 1.0f : v; }

// One block: how many bounds lie below each number, two a byte (an odd count leaves a spare half, as of 0); returns its absmax.
constexpr int64_t kMostBlock = 4096;
TANDEM_INLINE inline float quantize_block(const float* __restrict x, int64_t size, bool whole, const std::array<float, kBounds>& all_bounds, uint8_t* __restrict codes) {
  const std::array<float, kBounds> bounds = all_bounds;
  uint32_t bits = 0;  // magnitudes are ordered as their bits are, NaNs above all
  for (int64_t i = 0; i < size; ++i) bits = std::max(bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffff);
  const float most = std::bit_cast<float>(bits), safe = most < 1e-38f ? 1e-38f : most, inverse = 1.0f / safe;
  int32_t below[kMostBlock];
  constexpr int64_t kAtOnce = 32;  // numbers whose counts stay in registers
  for (int64_t first = 0; first < size; first += kAtOnce) {
    float y[kAtOnce] = {};
    const int64_t n = std::min(kAtOnce, size - first);
    if (whole) {  // blocks are multiples of kAtOnce
      for (int64_t i = 0; i < kAtOnce; ++i) y[i] = clamp_unit(x[first + i] * inverse);
    } else {
      for (int64_t i = 0; i < n; ++i) y[i] = clamp_unit(x[first + i] / safe);
    }
    int32_t count[kAtOnce] = {};
    for (size_t k = 0; k < kBounds; ++k) {
      for (int64_t i = 0; i < kAtOnce; ++i) count[i] += y[i] <= bounds[k] ? 0 : 1;
    }
    for (int64_t i = 0; i < kAtOnce; ++i) below[first + i] = count[i];
  }
  for (int64_t i = 0; i < (size + 1) / 2; ++i) codes[i] = static_cast<uint8_t>(below[2 * i] << 4 | below[2 * i + 1]);
  return whole ? most : safe;
}

// bitsandbytes finds the nearest entry of the map through a table over 65,536 steps of [-1, 1]. Around zero the steps are wider than
// the map's, so these codes are not the nearest ones; they are bitsandbytes' ones.
const std::vector<uint8_t>& dynamic_steps() {
  static const std::vector<uint8_t> steps = [] {
    const auto& map = dynamic_map();
    std::vector<uint8_t> list(65536);
    int code = 0;
    for (int i = 0; i < 65536; ++i) {
      const float x = static_cast<float>(i);
      const float value = (x + x) / 65535.0f - 1.0f;
      while (code < 255 && value > (map[code] + map[code + 1]) * 0.5f) ++code;
      list[i] = static_cast<uint8_t>(code);
    }
    return list;
  }();
  return steps;
}

void quantize_dynamic(const float* values, int64_t count, uint8_t* codes, float* absmax) {
  const auto& steps = dynamic_steps();
  for (int64_t begin = 0; begin < count; begin += kNestedBlock) {
    const int64_t end = std::min(count, begin + kNestedBlock);
    float most = 0;
    for (int64_t i = begin; i < end; ++i) most = std::max(most, std::fabs(values[i]));
    *absmax++ = most;
    if (most == 0) {
      std::memset(codes + begin, 0, static_cast<size_t>(end - begin));
      continue;
    }
    const float inverse = 1.0f / most;
    for (int64_t i = begin; i < end; ++i) {
      const float half = (clamp_unit(values[i] * inverse) + 1.0f) * 0.5f;
      // Exact in double, so that this is the fused multiply-add of the original: one rounding to float.
      const auto step = static_cast<float>(static_cast<double>(half) * 65535.0 + 0.5);
      codes[i] = step == step ? steps[static_cast<size_t>(step) & 0xffff] : steps[0];
    }
  }
}

int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
T load(const std::byte* from, int64_t index) {
  T value;
  std::memcpy(&value, from + static_cast<size_t>(index) * sizeof(T), sizeof(T));
  return value;
}

enum Part { kCodes, kAbsmax, kQuantMap, kNestedAbsmax, kNestedMap, kNestedOffset };

}  // namespace

const std::array<float, 16>& code_values(Codebook book) { return book == Codebook::nf4 ? kNf4 : kFp4; }

const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> map = [] {
    std::array<float, 256> m{};
    for (int i = 0; i < 127; ++i) {
      m[128 + i] = kDynamicHalf[i];
      m[126 - i] = -kDynamicHalf[i];
    }
    m[255] = 1.0f;
    return m;
  }();
  return map;
}

float torch_mean(const float* values, int64_t count) {
  constexpr int kLanes = 8, kUnroll = 4, kWide = kLanes * kUnroll, kLevels = 4;
  const int64_t vectors = count / kLanes, rounds = vectors / kUnroll;
  float sums[kLevels][kWide] = {};
  const auto add = [&](int level, const float* from, int width) {
    for (int i = 0; i < width; ++i) sums[level][i] += from[i];
  };
  int bits = 0;
  while ((int64_t{1} << bits) < rounds) ++bits;
  const int level_bits = std::max(4, bits / kLevels);
  const int64_t step = int64_t{1} << level_bits;
  int64_t done = 0;
  while (done + step <= rounds) {
    for (int64_t j = 0; j < step; ++j, ++done) add(0, values + done * kWide, kWide);
    for (int level = 1; level < kLevels; ++level) {
      add(level, sums[level - 1], kWide);
      std::fill_n(sums[level - 1], kWide, 0.0f);
      if ((done & ((step - 1) << (level * level_bits))) != 0) break;
    }
  }
  for (; done < rounds; ++done) add(0, values + done * kWide, kWide);
  for (int level = 1; level < kLevels; ++level) add(0, sums[level], kWide);
  for (int64_t v = rounds * kUnroll; v < vectors; ++v) add(0, values + v * kLanes, kLanes);
  for (int k = 1; k < kUnroll; ++k) add(0, sums[0] + k * kLanes, kLanes);
  float total = 0;
  if (count < kLanes) {  // too short for a vector: four scalar sums
    float four[kUnroll] = {};
    const int64_t whole = count / kUnroll * kUnroll;
    for (int64_t i = 0; i < count; ++i) four[i < whole ? i % kUnroll : 0] += values[i];
    for (const float f : four) total += f;
    return total / static_cast<float>(count);
  }
  for (int64_t i = vectors * kLanes; i < count; ++i) total += values[i];
  for (int i = 0; i < kLanes; ++i) total += sums[0][i];
  return total / static_cast<float>(count);
}

std::vector<Component> FourBit::components(int64_t rows, int64_t cols) const {
  const int64_t count = element_count(name_, rows, cols), blocks = ceil_div(count, block_);
  const auto bytes = [](int64_t n) { return static_cast<uint64_t>(n); };
  std::vector<Component> list = {{"", DType::u8, bytes((count + 1) / 2), false}};
  list.push_back({".absmax", nested_ ? DType::u8 : DType::f32, bytes(blocks * (nested_ ? 1 : 4)), true});
  list.push_back({".quant_map", DType::f32, 64, true});
  if (nested_) {
    list.push_back({".nested_absmax", DType::f32, bytes(ceil_div(blocks, kNestedBlock) * 4), true});
    list.push_back({".nested_quant_map", DType::f32, 1024, true});
    list.push_back({".nested_offset", DType::f32, 4, true});
  }
  return list;
}

Grain FourBit::grain(int64_t, int64_t cols) const {
  if (cols <= 0 || cols % block_ == 0) return {1, block_};
  return {block_ / gcd(cols, block_), cols};
}

std::vector<std::vector<ByteRange>> FourBit::ranges(int64_t rows, int64_t cols, const Rectangle& part) const {
  std::vector<std::vector<ByteRange>> list;
  for (const Component& component : components(rows, cols)) list.push_back({{0, component.bytes}});
  list[kCodes].clear();
  list[kAbsmax].clear();
  if (part.rows() <= 0 || part.cols() <= 0) return list;
  const uint64_t scale = nested_ ? 1 : 4;
  const auto piece = [&](int64_t begin, int64_t end) {
    list[kCodes].push_back({static_cast<uint64_t>(begin / 2), static_cast<uint64_t>((end + 1) / 2)});
    list[kAbsmax].push_back({static_cast<uint64_t>(begin / block_) * scale, static_cast<uint64_t>(ceil_div(end, block_)) * scale});
  };
  if (part.cols() == cols) {
    piece(part.row_begin * cols, part.row_end * cols);
  } else {
    for (int64_t r = part.row_begin; r < part.row_end; ++r) piece(r * cols + part.col_begin, r * cols + part.col_end);
  }
  return list;
}

void FourBit::quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const {
  const int64_t count = rows * cols, blocks = ceil_div(count, block_);
  const Thresholds t = thresholds(book_);
  std::vector<float> absmax(static_cast<size_t>(blocks));
  auto* codes = reinterpret_cast<uint8_t*>(out[kCodes]);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * block_, size = std::min(count, begin + block_) - begin;
    const bool whole = size == block_;
    float* most = &absmax[static_cast<size_t>(b)];
    uint8_t* to = codes + begin / 2;
    const float* x = source + begin;
    in_wide_vectors([=, &t]() TANDEM_INLINE { *most = quantize_block(x, size, whole, t.bounds, to); });
    if (book_ == Codebook::nf4) continue;  // whose codes are in order
    for (int64_t i = 0; i < (size + 1) / 2; ++i) to[i] = t.pair[to[i]];
  }
  std::memcpy(out[kQuantMap], code_values(book_).data(), 64);
  if (!nested_) {
    std::memcpy(out[kAbsmax], absmax.data(), absmax.size() * 4);
    return;
  }
  const float offset = torch_mean(absmax.data(), blocks);
  for (float& a : absmax) a -= offset;
  std::vector<float> nested_absmax(static_cast<size_t>(ceil_div(blocks, kNestedBlock)));
  quantize_dynamic(absmax.data(), blocks, reinterpret_cast<uint8_t*>(out[kAbsmax]), nested_absmax.data());
  std::memcpy(out[kNestedAbsmax], nested_absmax.data(), nested_absmax.size() * 4);
  std::memcpy(out[kNestedMap], dynamic_map().data(), 1024);
  std::memcpy(out[kNestedOffset], &offset, 4);
}

void FourBit::absmax(const QuantizedView& matrix, int64_t first, int64_t count, float* out) const {
  if (!nested_) {
    std::memcpy(out, matrix.data[kAbsmax] + first * 4, static_cast<size_t>(count) * 4);
    return;
  }
  const int64_t whole_cols = matrix.whole_cols > 0 ? matrix.whole_cols : matrix.cols;
  const bool cut = whole_cols != matrix.cols;  // then every row starts at a block
  const int64_t row_blocks = cut ? matrix.cols / block_ : 1;
  const float offset = load<float>(matrix.data[kNestedOffset], 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t b = first + i;
    const int64_t index =
        cut ? (matrix.first_element + b / row_blocks * whole_cols) / block_ + b % row_blocks : matrix.first_element / block_ + b;
    const float value = load<float>(matrix.data[kNestedMap], load<uint8_t>(matrix.data[kAbsmax], b)) *
                        load<float>(matrix.data[kNestedAbsmax], index / kNestedBlock);
    out[i] = value + offset;  // two roundings, as bitsandbytes has them
  }
}

void FourBit::dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const {
  const auto* codes = reinterpret_cast<const uint8_t*>(matrix.data[kCodes]);
  float map[16];
  std::memcpy(map, matrix.data[kQuantMap], 64);
  const int64_t end = (row + count) * matrix.cols;
  for (int64_t i = row * matrix.cols; i < end;) {
    const int64_t b = i / block_, stop = std::min(end, (b + 1) * block_);
    float scale = 0;
    absmax(matrix, b, 1, &scale);
    for (; i < stop; ++i) *out++ = map[i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15] * scale;
  }
}

const FourBit* four_bit(Codebook book, bool nested, int64_t block) {
  static const std::vector<FourBit> all = [] {
    std::vector<FourBit> list;
    for (const Codebook b : {Codebook::nf4, Codebook::fp4}) {
      for (const bool n : {false, true}) {
        const std::string name = std::string(b == Codebook::nf4 ? "nf4" : "fp4") + (n ? "_dq" : "");
        for (int64_t size = 32; size <= 4096; size *= 2) list.emplace_back(size == 64 ? name : name + ":" + std::to_string(size), b, n, size);
      }
    }
    return list;
  }();
  for (const FourBit& format : all) {
    if (format.codebook() == book && format.nested() == nested && format.block() == block) return &format;
  }
  return nullptr;
}

const Format* FourBit::with_block(int64_t block) const { return four_bit(book_, nested_, block); }

std::span<const Format* const> four_bit_formats() {
  static const Format* const list[] = {four_bit(Codebook::nf4, false, 64), four_bit(Codebook::nf4, true, 64),
                                       four_bit(Codebook::fp4, false, 64), four_bit(Codebook::fp4, true, 64)};
  return list;
}

}  // namespace tandem
