#include "kernels/base/dtype.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/error.h"

namespace tandem {
namespace {

struct Row {
  size_t size;
  std::string_view name;
  bool is_float;
};
constexpr Row kTypes[] = {{4, "F32", true},  {2, "F16", true},  {2, "BF16", true}, {8, "F64", true},  {1, "F8_E4M3", true},
                          {1, "F8_E5M2", true}, {1, "I8", false}, {1, "U8", false},  {2, "I16", false}, {2, "U16", false},
                          {4, "I32", false}, {4, "U32", false}, {8, "I64", false}, {8, "U64", false}, {1, "BOOL", false}};

float e4m3_to_float(uint8_t bits) {  // OCP E4M3FN: bias 7, no infinity, 0x7f and 0xff are NaN
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return bits & 0x80 ? -value : value;
}

template <typename T, typename Convert>
void each(const void* source, size_t count, float* out, Convert convert) {
  const auto* bytes = static_cast<const unsigned char*>(source);
  for (size_t i = 0; i < count; ++i) {
    T element;  // file data need not be aligned
    std::memcpy(&element, bytes + i * sizeof(T), sizeof(T));
    out[i] = convert(element);
  }
}

}  // namespace

size_t size(DType type) { return kTypes[static_cast<int>(type)].size; }
std::string_view name(DType type) { return kTypes[static_cast<int>(type)].name; }
bool is_float(DType type) { return kTypes[static_cast<int>(type)].is_float; }

float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float value = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -value : value;
}

uint16_t float_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {                                             // below 2^-14: subnormal; the addition rounds to nearest even
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

void widen(DType from, const void* source, size_t count, float* out) {
  switch (from) {
    case DType::f32: std::memcpy(out, source, count * 4); return;
    case DType::f16: return each<uint16_t>(source, count, out, f16_to_float);
    case DType::bf16: return each<uint16_t>(source, count, out, bf16_to_float);
    case DType::f64: return each<double>(source, count, out, [](double v) { return static_cast<float>(v); });
    case DType::f8_e4m3: return each<uint8_t>(source, count, out, e4m3_to_float);
    case DType::f8_e5m2: return each<uint8_t>(source, count, out, [](uint8_t v) { return f16_to_float(static_cast<uint16_t>(v << 8)); });
    case DType::i8: return each<int8_t>(source, count, out, [](int8_t v) { return static_cast<float>(v); });
    case DType::boolean:
    case DType::u8: return each<uint8_t>(source, count, out, [](uint8_t v) { return static_cast<float>(v); });
    case DType::i16: return each<int16_t>(source, count, out, [](int16_t v) { return static_cast<float>(v); });
    case DType::u16: return each<uint16_t>(source, count, out, [](uint16_t v) { return static_cast<float>(v); });
    case DType::i32: return each<int32_t>(source, count, out, [](int32_t v) { return static_cast<float>(v); });
    case DType::u32: return each<uint32_t>(source, count, out, [](uint32_t v) { return static_cast<float>(v); });
    case DType::i64: return each<int64_t>(source, count, out, [](int64_t v) { return static_cast<float>(v); });
    case DType::u64: return each<uint64_t>(source, count, out, [](uint64_t v) { return static_cast<float>(v); });
  }
}

void narrow(DType to, const float* source, size_t count, void* out) {
  auto* halves = static_cast<uint16_t*>(out);
  switch (to) {
    case DType::f32: std::memcpy(out, source, count * 4); return;
    case DType::f16:
      for (size_t i = 0; i < count; ++i) halves[i] = float_to_f16(source[i]);
      return;
    case DType::bf16:
      for (size_t i = 0; i < count; ++i) halves[i] = float_to_bf16(source[i]);
      return;
    default: fail(Code::internal, std::string(name(to)), "floats are narrowed to F32, F16 or BF16 only");
  }
}

}  // namespace tandem
