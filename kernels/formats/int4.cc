#include "kernels/formats/int4.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"
#include "kernels/formats/wide.h"

namespace tandem {
namespace {

constexpr int64_t kUsualGroup = 128;
enum Part { kCodes, kScale, kShift };

float load(const std::byte* from, int64_t index) {
  float value;
  std::memcpy(&value, from + index * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}
void store(std::byte* to, int64_t index, float value) {
  std::memcpy(to + index * static_cast<int64_t>(sizeof value), &value, sizeof value);
}

struct ScaleAndShift { float scale = 0, shift = 0; };

// One group, a code a byte.
TANDEM_INLINE inline ScaleAndShift quantize_group(const float* __restrict x, int64_t size, bool symmetric, float most, uint8_t* __restrict codes) {
  float low = x[0], high = x[0];
  for (int64_t i = 1; i < size; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float zero = symmetric ? (most + 1) / 2 : 0.0f;
  float scale = (high - low) / most, shift = -low;
  if (symmetric) {
    scale = std::max(std::fabs(low), std::fabs(high)) * 2.0f / most;
    scale = scale > 0 ? bf16_to_float(float_to_bf16(scale)) : 1.0f;
    shift = scale * zero;
  }
  const float before = symmetric ? 0.0f : shift;
  for (int64_t i = 0; i < size; ++i) {
    const float exact = (x[i] + before) / scale;
    float code = round_even(exact) + zero;  // beyond 2^22 it is not whole, but out of bounds all the same
    code = code > 0 ? code : 0.0f;          // no number, where all values are one: code 0
    code = code < most ? code : most;
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(code));
  }
  return {scale, shift};
}

}  // namespace

std::vector<Component> GroupInts::components(int64_t rows, int64_t cols) const {
  const int64_t count = element_count(name_, rows, cols), group = std::max<int64_t>(1, this->group(cols));
  if (cols % block() != 0) {
    bad_input(name_, "cannot hold [" + std::to_string(rows) + ", " + std::to_string(cols) + "]: " + std::to_string(cols) +
                         " is not a multiple of " + std::to_string(block()));
  }
  const uint64_t scales = static_cast<uint64_t>(rows * (cols / group)) * sizeof(float);
  return {{"", DType::u8, static_cast<uint64_t>(count / 8 * bits_), false},
          {".scale", DType::f32, scales, true},
          {".shift", DType::f32, scales, true}};
}

std::vector<std::vector<ByteRange>> GroupInts::ranges(int64_t, int64_t cols, const Rectangle& part) const {
  std::vector<std::vector<ByteRange>> list(3);
  if (part.rows() <= 0 || part.cols() <= 0) return list;
  // Bytes [begin, end) of every row of `row` bytes.
  const auto add = [&](size_t component, int64_t row, int64_t begin, int64_t end) {
    const auto range = [&](int64_t from, int64_t to) {
      list[component].push_back({static_cast<uint64_t>(from), static_cast<uint64_t>(to)});
    };
    if (begin == 0 && end == row) return range(part.row_begin * row, part.row_end * row);
    for (int64_t r = part.row_begin; r < part.row_end; ++r) range(r * row + begin, r * row + end);
  };
  add(kCodes, cols * bits_ / 8, part.col_begin * bits_ / 8, part.col_end * bits_ / 8);
  const int64_t group = this->group(cols), bytes = sizeof(float);
  for (const Part scales : {kScale, kShift})
    add(scales, cols / group * bytes, part.col_begin / group * bytes, (part.col_end + group - 1) / group * bytes);
  return list;
}

void GroupInts::quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const {
  const int64_t group = std::max<int64_t>(1, this->group(cols));
  const auto most = static_cast<float>((1 << bits_) - 1);
  auto* codes = reinterpret_cast<uint8_t*>(out[kCodes]);
  std::vector<uint8_t> wide(static_cast<size_t>(group));  // one code a byte
  for (int64_t g = 0; g < rows * cols / group; ++g) {
    const float* x = source + g * group;
    uint8_t *to = codes + g * group * bits_ / 8, *bytes = bits_ == 8 ? to : wide.data();
    ScaleAndShift made;
    ScaleAndShift* into = &made;
    const bool symmetric = symmetric_;
    in_wide_vectors([=]() TANDEM_INLINE { *into = quantize_group(x, group, symmetric, most, bytes); });
    if (bits_ == 4) {
      for (int64_t i = 0; i < group / 2; ++i) to[i] = static_cast<uint8_t>(wide[static_cast<size_t>(2 * i)] | wide[static_cast<size_t>(2 * i + 1)] << 4);
    }
    store(out[kScale], g, made.scale);
    store(out[kShift], g, made.shift);
  }
}

void GroupInts::dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const {
  const int64_t group = this->group(matrix.cols), groups = group > 0 ? matrix.cols / group : 0;
  const auto* codes = reinterpret_cast<const uint8_t*>(matrix.data[kCodes]);
  for (int64_t g = row * groups; g < (row + count) * groups; ++g) {
    const float scale = load(matrix.data[kScale], g), shift = load(matrix.data[kShift], g);
    for (int64_t at = g * group; at < (g + 1) * group; ++at) {
      const int code = bits_ == 8 ? codes[at] : at % 2 == 0 ? codes[at / 2] & 15 : codes[at / 2] >> 4;
      const float product = scale * static_cast<float>(code);
      *out++ = product - shift;
    }
  }
}

const GroupInts* group_ints(int bits, int64_t group, bool symmetric) {
  static const std::vector<GroupInts> all = [] {
    std::vector<GroupInts> list;
    const auto add = [&list](const std::string& name, int b, int64_t usual, bool sym) {
      for (int64_t size = 32; size <= 1024; size *= 2) list.emplace_back(size == usual ? name : name + ":" + std::to_string(size), b, size, sym);
      list.emplace_back(usual == kWholeRow ? name : name + ":row", b, kWholeRow, sym);
    };
    add("int4", 4, kUsualGroup, false);
    add("int8_group", 8, kUsualGroup, false);
    add("int4_sym", 4, kUsualGroup, true);
    add("int8_sym", 8, kWholeRow, true);
    return list;
  }();
  for (const GroupInts& format : all) {
    if (format.bits_ == bits && format.group_ == group && format.symmetric_ == symmetric) return &format;
  }
  return nullptr;
}

const Format* GroupInts::with_block(int64_t block) const { return group_ints(bits_, block, symmetric_); }

std::span<const Format* const> group_int_formats() {
  static const Format* const list[] = {group_ints(4, kUsualGroup), group_ints(8, kUsualGroup), group_ints(4, kUsualGroup, true),
                                       group_ints(8, kWholeRow, true)};
  return list;
}

}  // namespace tandem
