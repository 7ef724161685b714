// Element types of tensors in files and memory, and scalar conversions to and from float. Values only.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace tandem {

enum class DType : uint8_t { f32, f16, bf16, f64, f8_e4m3, f8_e5m2, i8, u8, i16, u16, i32, u32, i64, u64, boolean };

size_t size(DType type);            // bytes of one element
std::string_view name(DType type);  // safetensors spelling: "F32", "BF16", "F8_E4M3", "I8", "BOOL", ...
bool is_float(DType type);

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
// Round to nearest even; NaN stays NaN (quiet).
inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float f16_to_float(uint16_t bits);
uint16_t float_to_f16(float value);  // IEEE half, round to nearest even, subnormals kept

// [count] elements of `from` at `source` widened to float. Errors: none; integer types are converted by value.
void widen(DType from, const void* source, size_t count, float* out);
// [count] floats rounded (to nearest even) to f32, f16 or bf16. Other types: Code::internal.
void narrow(DType to, const float* source, size_t count, void* out);

}  // namespace tandem
