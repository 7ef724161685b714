// A matrix quantized into memory of its own.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/formats/format.h"

namespace tandem {

struct QuantizedCopy {
  std::vector<std::vector<std::byte>> components;
  QuantizedView view;  // of them: moving the copy keeps it good
};
// values: float[rows, cols]. Errors: as Format::quantize (failed_precondition: this format is only read).
QuantizedCopy quantized_copy(const Format& format, const float* values, int64_t rows, int64_t cols);
// out: float[rows, cols], what a model in this format computes with; may be `values`.
void round_trip(const Format& format, const float* values, int64_t rows, int64_t cols, float* out);

}  // namespace tandem
