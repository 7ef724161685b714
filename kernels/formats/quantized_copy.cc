#include "kernels/formats/quantized_copy.h"

namespace tandem {

QuantizedCopy quantized_copy(const Format& format, const float* values, int64_t rows, int64_t cols) {
  QuantizedCopy copy{{}, {&format, rows, cols, {}}};
  std::vector<std::byte*> to;
  for (const Component& component : format.components(rows, cols)) {
    std::byte* const data = copy.components.emplace_back(component.bytes).data();
    copy.view.data[to.size()] = data;
    to.push_back(data);
  }
  format.quantize(values, rows, cols, to);
  return copy;
}

void round_trip(const Format& format, const float* values, int64_t rows, int64_t cols, float* out) {
  format.dequantize(quantized_copy(format, values, rows, cols).view, 0, rows, out);
}

}  // namespace tandem
