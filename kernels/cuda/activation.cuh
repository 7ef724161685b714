// The activations of records, in fp32 on the device.
#pragma once
#include "kernels/program/record.h"

namespace tandem::cuda {

__device__ __forceinline__ float activated(Activation activation, float v) {
  switch (activation) {
    case Activation::silu: return v / (1 + __expf(-v));
    case Activation::gelu: return 0.5f * v * (1 + erff(v * 0.70710678118654752f));
    case Activation::gelu_tanh: return 0.5f * v * (1 + tanhf(0.79788456080286536f * (v + 0.044715f * v * v * v)));
    case Activation::relu: return fmaxf(v, 0);
    default: return v;
  }
}

}  // namespace tandem::cuda
