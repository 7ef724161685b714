// What GPTQ's, AWQ's and compressed-tensors' integers have in common: codes of 4 or 8 bits with a scale and a zero for each group of
// inputs. They differ in how these lie in the file; here they become int4.h's groups, put in order when they are read. Memory is a few
// megabytes whatever the tensor's size.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/model/checkpoint/quantized_method.h"

namespace tandem {

constexpr int64_t kMostInputs = 1 << 24;  // of a layer

// Of outputs [begin, end): [end - begin, groups] each.
struct GroupValues {
  std::vector<float> scale, zero;
};

// A linear layer [out, in]: w[o, i] = scale[o, group(i)] * (code[o, i] - zero[o, group(i)]), where group(i) = i / (in / groups) unless
// `group_of` names it. Outputs are asked for from a multiple of 8 to another, or to the end.
struct GroupLayer {
  std::string module;
  const TensorInfo *codes = nullptr, *scales = nullptr;  // for messages; scales: also the type of numbers
  int64_t out = 0, in = 0, groups = 0;
  int bits = 4;
  std::function<void(int64_t begin, int64_t end, uint32_t* words)> read_codes;  // in * bits / 32 words an output, the first input lowest
  std::function<GroupValues(int64_t begin, int64_t end)> read_groups;
  std::vector<int32_t> group_of;  // [in], or empty
};

// Adds the layer as "<module>.weight": in groups as it is, or, where inputs of a group are no neighbours, as numbers of the scales' type,
// each scale * (code - zero) rounded once. Errors: Code::invalid_argument naming file and tensor: groups that do not divide the inputs or
// have a size that is not read.
void add_group_layer(GroupLayer layer, QuantizedModules& modules);

// The tensor of each input's group, checked. Errors: as QuantizedModules::take; an index that is no group.
std::vector<int32_t> read_group_index(const std::string& name, const GroupLayer& layer, QuantizedModules& modules);

// group_size of a configuration: -1 for whole rows. Errors: 0 or less than -1.
int64_t group_size(const Config& config);
// The format for it. Errors: a size that is not read.
const Format& group_format(const Config& config, int bits);

// GPTQ's and AWQ's scales [groups, out] and zeros, words [groups, out * bits / 32] that hold output o at place[o % (32 / bits)]; `offset`
// is added to a stored zero.
std::function<GroupValues(int64_t, int64_t)> transposed_groups(const GroupLayer& layer, const TensorInfo& zeros, int offset,
                                                               std::vector<uint8_t> place, const TensorSource& files);

// Columns [begin, end) of a tensor [rows, columns] of elements of `size` bytes, row after row.
void read_columns(const TensorSource& files, const TensorInfo& tensor, int64_t columns, int64_t begin, int64_t end, int64_t size,
                  std::byte* out);
std::vector<float> read_floats(const TensorSource& files, const TensorInfo& tensor, int64_t columns, int64_t begin,
                               int64_t end);  // the same as floats

}  // namespace tandem
