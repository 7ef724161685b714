// GGUF's block types (ggml-common.h, the gguf Python package). Every multiplication and addition below is rounded as there; values
// agree bit for bit.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"

namespace tandem {
namespace {

using Dequantize = void (*)(const uint8_t* block, float* out);
using Quantize = void (*)(const float* values, uint8_t* block);

float half_at(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return f16_to_float(bits);
}
void put_half(uint8_t* at, float value) {
  const uint16_t bits = float_to_f16(value);
  std::memcpy(at, &bits, 2);
}

// Nibbles of a block of 32: the low halves are elements 0 .. 15, the high halves 16 .. 31.
int nibble(const uint8_t* codes, int i) { return i < 16 ? codes[i] & 15 : codes[i - 16] >> 4; }
int fifth_bit(const uint8_t* bits, int i) { return (bits[i / 8] >> (i % 8) & 1) << 4; }

void q4_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(b + 2, i) - 8);
}
void q4_1(const uint8_t* b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(b + 4, i)) + m;
}
void q5_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>((nibble(b + 6, i) | fifth_bit(b + 2, i)) - 16);
}
void q5_1(const uint8_t* b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(b + 8, i) | fifth_bit(b + 4, i)) + m;
}
void q8_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(b[2 + i])) * d;
}
constexpr int8_t kNonLinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
void iq4_nl(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(kNonLinear[nibble(b + 2, i)]);
}
// f16 d, u16 high bits of eight 6-bit scales, four bytes with their low nibbles, 128 bytes of codes.
void iq4_xs(const uint8_t* b, float* out) {
  const float d = half_at(b);
  const int high = b[2] | b[3] << 8;
  for (int part = 0; part < 8; ++part) {
    const int scale = (b[4 + part / 2] >> 4 * (part % 2) & 15) | (high >> 2 * part & 3) << 4;
    const float step = d * static_cast<float>(scale - 32);
    for (int i = 0; i < 32; ++i) out[32 * part + i] = step * static_cast<float>(kNonLinear[nibble(b + 8 + 16 * part, i)]);
  }
}

// Twelve bytes hold eight 6-bit scales and eight 6-bit minimums.
void scale_and_min(const uint8_t* s, int j, int* scale, int* minimum) {
  *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
  *minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
}
void q2_k(const uint8_t* b, float* out) {
  const float d = half_at(b + 80), dmin = half_at(b + 82);
  for (int i = 0; i < 256; ++i) {
    const uint8_t scales = b[i / 16];
    const int code = b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    out[i] = d * static_cast<float>(scales & 15) * static_cast<float>(code) - dmin * static_cast<float>(scales >> 4);
  }
}
void q3_k(const uint8_t* b, float* out) {
  const uint8_t *high = b, *low = b + 32, *s = b + 96;
  const float d = half_at(b + 108);
  for (int i = 0; i < 256; ++i) {
    const int j = i / 16;
    const int scale = ((j < 8 ? s[j] & 15 : s[j - 8] >> 4) | (s[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
    const int code = (low[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) - ((high[i % 32] >> (i / 32) & 1) != 0 ? 0 : 4);
    out[i] = d * static_cast<float>(scale) * static_cast<float>(code);
  }
}
void q4_k(const uint8_t* b, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  for (int j = 0; j < 8; ++j) {
    int scale, minimum;
    scale_and_min(b + 4, j, &scale, &minimum);
    const float ds = d * static_cast<float>(scale), dm = dmin * static_cast<float>(minimum);
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = b[16 + j / 2 * 32 + i];
      out[j * 32 + i] = ds * static_cast<float>(j % 2 == 0 ? byte & 15 : byte >> 4) - dm;
    }
  }
}
void q5_k(const uint8_t* b, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  for (int j = 0; j < 8; ++j) {
    int scale, minimum;
    scale_and_min(b + 4, j, &scale, &minimum);
    const float ds = d * static_cast<float>(scale), dm = dmin * static_cast<float>(minimum);
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = b[48 + j / 2 * 32 + i];
      const int code = (j % 2 == 0 ? byte & 15 : byte >> 4) | (b[16 + i] >> j & 1) << 4;
      out[j * 32 + i] = ds * static_cast<float>(code) - dm;
    }
  }
}
void q6_k(const uint8_t* b, float* out) {
  const auto* scales = reinterpret_cast<const int8_t*>(b + 192);
  const float d = half_at(b + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, in_half = i % 128, quarter = in_half / 32, l = in_half % 32;
    const uint8_t low = b[half * 64 + in_half % 64], high = b[128 + half * 32 + l];
    const int code = ((quarter < 2 ? low & 15 : low >> 4) | (high >> (quarter * 2) & 3) << 4) - 32;
    out[i] = d * static_cast<float>(scales[i / 16]) * static_cast<float>(code);
  }
}

// Truncation to 0 .. top; what no block can stand for (NaN) becomes 0.
int truncated(float value, int top) { return !(value > 0) ? 0 : value >= static_cast<float>(top) ? top : static_cast<int>(value); }

template <typename Code>
void put_nibbles(uint8_t* at, Code code) {
  for (int i = 0; i < 16; ++i) at[i] = static_cast<uint8_t>(code(i) | code(i + 16) << 4);
}
void make_q4_0(const float* x, uint8_t* b) {
  float extreme = 0;  // the value of largest magnitude, the first of equals
  for (int i = 0; i < 32; ++i) {
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  }
  const float d = extreme / -8.0f, inverse = d == 0 ? 0.0f : 1.0f / d;
  put_half(b, d);
  put_nibbles(b + 2, [&](int i) { return truncated(x[i] * inverse + 8.5f, 15); });
}
void make_q4_1(const float* x, uint8_t* b) {
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float minimum = *low, d = (*high - *low) / 15.0f, inverse = d == 0 ? 0.0f : 1.0f / d;
  put_half(b, d);
  put_half(b + 2, minimum);
  put_nibbles(b + 4, [&](int i) { return truncated((x[i] - minimum) * inverse + 0.5f, 15); });
}
void make_q8_0(const float* x, uint8_t* b) {
  float most = 0;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::fabs(x[i]));
  const float d = most / 127.0f, inverse = d == 0 ? 0.0f : 1.0f / d;
  put_half(b, d);
  for (int i = 0; i < 32; ++i) {
    const float rounded = std::round(x[i] * inverse);  // halves away from zero
    b[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(rounded >= 127       ? 127
                                                        : rounded > -128     ? static_cast<int>(rounded)
                                                        : rounded == rounded ? -128
                                                                             : 0));
  }
}

class GgufBlock final : public RowBlockFormat {
 public:
  GgufBlock(std::string_view name, int64_t block, int64_t bytes, Dequantize dequantize, Quantize quantize)
      : RowBlockFormat(name, DType::u8, block, bytes), dequantize_(dequantize), quantize_(quantize), bytes_(bytes) {}

  void quantize(const float* source, int64_t rows, int64_t cols, std::span<std::byte* const> out) const override {
    if (quantize_ == nullptr) {
      fail(Code::failed_precondition, std::string(name()), "can be read but not made (make q4_0, q4_1 or q8_0)");
    }
    auto* to = reinterpret_cast<uint8_t*>(out[0]);
    for (int64_t b = 0; b < rows * cols / block(); ++b) quantize_(source + b * block(), to + b * bytes_);
  }
  void dequantize(const QuantizedView& matrix, int64_t row, int64_t count, float* out) const override {
    const auto* from = reinterpret_cast<const uint8_t*>(matrix.data[0]) + static_cast<uint64_t>(row) * row_bytes(matrix.cols);
    for (int64_t b = 0; b < count * matrix.cols / block(); ++b) dequantize_(from + b * bytes_, out + b * block());
  }

 private:
  Dequantize dequantize_;
  Quantize quantize_;
  int64_t bytes_;
};

const GgufBlock kBlocks[] = {{"q4_0", 32, 18, q4_0, make_q4_0}, {"q4_1", 32, 20, q4_1, make_q4_1},  {"q5_0", 32, 22, q5_0, nullptr},
                             {"q5_1", 32, 24, q5_1, nullptr},   {"q8_0", 32, 34, q8_0, make_q8_0},  {"q2_k", 256, 84, q2_k, nullptr},
                             {"q3_k", 256, 110, q3_k, nullptr}, {"q4_k", 256, 144, q4_k, nullptr},  {"q5_k", 256, 176, q5_k, nullptr},
                             {"q6_k", 256, 210, q6_k, nullptr}, {"iq4_nl", 32, 18, iq4_nl, nullptr},
                             {"iq4_xs", 256, 136, iq4_xs, nullptr}};

}  // namespace

std::span<const Format* const> gguf_block_formats() {
  static const std::vector<const Format*> list = [] {
    std::vector<const Format*> all;
    for (const GgufBlock& block : kBlocks) all.push_back(&block);
    return all;
  }();
  return list;
}

}  // namespace tandem
