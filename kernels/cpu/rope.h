// Rotary position embedding (Su et al. 2021) in the order of Hugging Face: element i turns with element i + rotary / 2.
#pragma once
#include <cstdint>

#include "kernels/program/record.h"

namespace tandem::cpu {

// angles: float[rotary], cosines then sines of one position, times rope.scale. In fp32 as transformers computes them: the angle is
// the rounded product of position and frequency.
void rope_angles(const Rope& rope, int32_t position, float* angles);
// head: float[head_dim], its first `rotary` elements are turned.
void rotate(float* head, int64_t rotary, const float* angles);

}  // namespace tandem::cpu
