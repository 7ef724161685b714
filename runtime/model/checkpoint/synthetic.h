// Weights that no file holds: numbers from a seed, in whatever format a tensor is to be stored in, for measuring a model's speed and for
// tests of shapes whose weights are not at hand. A matrix is about normal with mean 0 and deviation 0.02, a norm's weight lies around 1,
// so that activations neither explode nor die. The bytes of a tensor depend on the seed, its name and its format alone: whoever reads
// which range sees the same ones, and no rank reads another's. The source is immutable; read() may be called from many threads and costs
// about as much as copying.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/formats/format.h"
#include "runtime/model/checkpoint/source.h"

namespace tandem {

struct SyntheticTensor {
  std::string name;
  int64_t rows = 1, cols = 0;
  bool vector = false;            // shape [rows * cols] instead of [rows, cols]
  bool around_one = false;        // a norm's weight
  const Format* format = nullptr;
};

// One tensor for each component of each format: "<name>" holds the codes, "<name>.absmax" and others (Component::suffix) what belongs to
// them, as a checkpoint does that was quantized before. Errors: Code::invalid_argument when a format cannot hold a shape;
// Code::internal, when it is read, for a format of which no values can be made.
std::unique_ptr<TensorSource> make_synthetic_source(uint64_t seed, const std::vector<SyntheticTensor>& tensors);

}  // namespace tandem
