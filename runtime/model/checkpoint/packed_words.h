// What GPTQ's and AWQ's checkpoints have in common: codes of 4 or 8 bits in 32-bit words beside scales and zeros of groups of inputs, all
// transposed against how weights lie here. Pure functions over a source; memory is a few megabytes whatever the tensor's size.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/model/checkpoint/quantized_method.h"

namespace tandem {

// A matrix whose rows are made on request. rows_of(begin, end, out) makes rows [begin, end), both multiples of `step` or the end.
using RowMaker = std::function<void(int64_t begin, int64_t end, std::byte* out)>;
std::function<void(ByteRange, std::byte*)> by_rows(int64_t rows, uint64_t row_bytes, int64_t step, RowMaker rows_of);

// A linear layer [out, in]: w[o, i] = scales[group(i), o] * (code(i, o) - zero(group(i), o)), where group(i) = i / (in / groups) unless
// `group_of` names it. Codes come as 32-bit words [out, in * bits / 32], the first input in the lowest bits.
struct PackedLayer {
  std::string module;
  const TensorInfo *codes = nullptr, *scales = nullptr, *zeros = nullptr;  // scales: float [groups, out]; zeros: words [groups, out * bits / 32]
  int64_t out = 0, in = 0, groups = 0;
  int bits = 4;
  int zero_offset = 0;              // what is added to a stored zero
  std::vector<uint8_t> zero_place;  // of output o among the 32 / bits of its word
  std::function<void(int64_t begin, int64_t end, uint32_t* words)> read_codes;  // of outputs [begin, end), multiples of 8
  std::vector<int32_t> group_of;    // [in], or empty
};

// Adds the layer as "<module>.weight": in groups (int4.h) as it is, or, where inputs of a group are no neighbours, as numbers of the scales'
// type, each scale * (code - zero) rounded once. Errors: Code::invalid_argument naming file and tensor.
void add_packed_layer(PackedLayer layer, QuantizedModules& modules);

// Columns [begin, end) of a tensor [rows, columns] of elements of `size` bytes, row after row.
void read_columns(const TensorSource& files, const TensorInfo& tensor, int64_t columns, int64_t begin, int64_t end, int64_t size, std::byte* out);

}  // namespace tandem
