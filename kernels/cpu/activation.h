// Activation functions between the two products of an MLP, element by element: the same bits however a row is cut.
#pragma once
#include <cstdint>

#include "kernels/program/record.h"

namespace tandem::cpu {

// gate = activation(gate) * up, float[width]; without up (null): gate = activation(gate).
void activate(Activation activation, float* gate, const float* up, int64_t width);

}  // namespace tandem::cpu
