// What a code of the format "int8" stands for; its kernels must say the same.
#pragma once
#include <cstdint>

namespace tandem {

constexpr float kInt8Step = 0.007874016f;  // bitsandbytes' 1 / 127

// Two roundings. row_max: the row's SCB.
inline float int8_value(int8_t code, float row_max) { return static_cast<float>(code) * row_max * kInt8Step; }

}  // namespace tandem
