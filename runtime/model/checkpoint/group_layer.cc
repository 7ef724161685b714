#include "runtime/model/checkpoint/group_layer.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"
#include "kernels/formats/int4.h"

namespace tandem {
namespace {

constexpr uint64_t kPanel = 4 << 20;  // bytes made at a time
constexpr int64_t kStep = 8;          // outputs

// The bytes of a matrix whose rows [begin, end) are made on request.
using RowMaker = std::function<void(int64_t begin, int64_t end, std::byte* out)>;
std::function<void(ByteRange, std::byte*)> by_rows(int64_t rows, uint64_t row_bytes, RowMaker rows_of) {
  return [=](ByteRange range, std::byte* out) {
    if (range.size() == 0) return;
    const int64_t panel_rows = std::max<int64_t>(1, static_cast<int64_t>(kPanel / row_bytes) / kStep) * kStep;
    const int64_t last = std::min(rows, (static_cast<int64_t>((range.end - 1) / row_bytes) / kStep + 1) * kStep);
    std::vector<std::byte> panel;
    for (int64_t row = static_cast<int64_t>(range.begin / row_bytes) / kStep * kStep; row < last; row += panel_rows) {
      const int64_t end = std::min(last, row + panel_rows);
      panel.resize(static_cast<uint64_t>(end - row) * row_bytes);
      rows_of(row, end, panel.data());
      const uint64_t base = static_cast<uint64_t>(row) * row_bytes, from = std::max(base, range.begin),
                     to = std::min(base + panel.size(), range.end);
      std::memcpy(out + (from - range.begin), panel.data() + (from - base), to - from);
    }
  };
}

void add_groups(GroupLayer layer, const GroupInts& format, QuantizedModules& modules) {
  modules.begin(layer.module, format, layer.out, layer.in, *layer.codes);
  const auto shared = std::make_shared<const GroupLayer>(std::move(layer));
  modules.made(
      by_rows(shared->out, static_cast<uint64_t>(shared->in * shared->bits / 8), [shared](int64_t begin, int64_t end, std::byte* out) {
        shared->read_codes(begin, end, reinterpret_cast<uint32_t*>(out));  // little-endian words are our bytes
      }));
  const uint64_t row_bytes = static_cast<uint64_t>(shared->groups) * sizeof(float);
  modules.made(by_rows(shared->out, row_bytes, [shared](int64_t begin, int64_t end, std::byte* out) {
    const GroupValues values = shared->read_groups(begin, end);
    std::memcpy(out, values.scale.data(), values.scale.size() * sizeof(float));
  }));
  modules.made(by_rows(shared->out, row_bytes, [shared](int64_t begin, int64_t end, std::byte* out) {
    GroupValues values = shared->read_groups(begin, end);
    for (size_t i = 0; i < values.scale.size(); ++i) values.scale[i] *= values.zero[i];
    std::memcpy(out, values.scale.data(), values.scale.size() * sizeof(float));
  }));
}

void add_numbers(GroupLayer layer, QuantizedModules& modules) {
  const Format& dense = format(layer.scales->type);
  modules.begin(layer.module, dense, layer.out, layer.in, *layer.codes);
  const auto shared = std::make_shared<const GroupLayer>(std::move(layer));
  modules.made(by_rows(shared->out, static_cast<uint64_t>(shared->in) * size(dense.dtype()),
                       [shared, type = dense.dtype()](int64_t begin, int64_t end, std::byte* out) {
                         const int64_t width = end - begin, row_words = shared->in * shared->bits / 32;
                         const GroupValues values = shared->read_groups(begin, end);
                         std::vector<uint32_t> words(static_cast<size_t>(width * row_words));
                         shared->read_codes(begin, end, words.data());
                         const auto* bytes = reinterpret_cast<const uint8_t*>(words.data());
                         std::vector<float> row(static_cast<size_t>(shared->in));
                         for (int64_t o = 0; o < width; ++o, bytes += row_words * 4) {
                           for (int64_t i = 0; i < shared->in; ++i) {
                             const int code = shared->bits == 8 ? bytes[i] : bytes[i / 2] >> (i % 2 * 4) & 15;
                             const auto at = static_cast<size_t>(o * shared->groups + shared->group_of[static_cast<size_t>(i)]);
                             row[static_cast<size_t>(i)] = values.scale[at] * (static_cast<float>(code) - values.zero[at]);
                           }
                           narrow(type, row.data(), row.size(), out + static_cast<uint64_t>(o * shared->in) * size(type));
                         }
                       }));
}

}  // namespace

void read_columns(const TensorSource& files, const TensorInfo& tensor, int64_t columns, int64_t begin, int64_t end, int64_t size,
                  std::byte* out) {
  if (begin == 0 && end == columns) return files.read(tensor, {0, tensor.bytes}, out);
  const auto row = static_cast<uint64_t>(columns * size), from = static_cast<uint64_t>(begin * size),
             to = static_cast<uint64_t>(end * size);
  for (uint64_t at = 0; at < tensor.bytes; at += row, out += to - from) files.read(tensor, {at + from, at + to}, out);
}

std::vector<float> read_floats(const TensorSource& files, const TensorInfo& tensor, int64_t columns, int64_t begin, int64_t end) {
  const DType type = format(tensor.type).dtype();
  const auto count = static_cast<size_t>(static_cast<int64_t>(tensor.bytes / size(type)) / columns * (end - begin));
  std::vector<std::byte> raw(count * size(type));
  read_columns(files, tensor, columns, begin, end, static_cast<int64_t>(size(type)), raw.data());
  std::vector<float> values(count);
  widen(type, raw.data(), count, values.data());
  return values;
}

std::function<GroupValues(int64_t, int64_t)> transposed_groups(const GroupLayer& layer, const TensorInfo& zeros, int offset,
                                                               std::vector<uint8_t> place, const TensorSource& files) {
  return [&files, &zeros, offset, place = std::move(place), scales = layer.scales, out = layer.out, groups = layer.groups,
          bits = layer.bits](int64_t begin, int64_t end) {
    const int64_t per = 32 / bits, width = end - begin, first = begin / per, words = (end + per - 1) / per - first;
    const std::vector<float> scale = read_floats(files, *scales, out, begin, end);
    std::vector<uint32_t> packed(static_cast<size_t>(groups * words));
    read_columns(files, zeros, out / per, first, first + words, sizeof(uint32_t), reinterpret_cast<std::byte*>(packed.data()));
    GroupValues values;
    for (int64_t o = 0; o < width; ++o) {
      for (int64_t g = 0; g < groups; ++g) {
        const uint32_t word = packed[static_cast<size_t>(g * words + (begin + o) / per - first)];
        const uint32_t stored = word >> (bits * place[static_cast<size_t>((begin + o) % per)]) & ((1u << bits) - 1);
        values.scale.push_back(scale[static_cast<size_t>(g * width + o)]);
        values.zero.push_back(static_cast<float>(static_cast<int>(stored) + offset));
      }
    }
    return values;
  };
}

std::vector<int32_t> read_group_index(const std::string& name, const GroupLayer& layer, QuantizedModules& modules) {
  const TensorInfo& index = modules.take(name, *layer.codes, "i32", {layer.in});
  std::vector<int32_t> group_of = modules.values<int32_t>(index);
  for (const int32_t g : group_of) {
    if (g < 0 || g >= layer.groups)
      modules.bad(index, "names group " + std::to_string(g) + " (there are " + std::to_string(layer.groups) + ", counted from 0)");
  }
  return group_of;
}

int64_t group_size(const Config& config) {
  const int64_t group = config.integer("group_size", -1, kMostInputs, 128);
  if (group == 0) config.bad("group_size", "is 0 (must be -1, for whole rows, or the inputs of a group)");
  return group;
}

const Format& group_format(const Config& config, int bits) {
  const int64_t group = group_size(config);
  if (const GroupInts* found = group_ints(bits, group == -1 ? kWholeRow : group)) return *found;
  config.bad("group_size", "is " + std::to_string(group) + " (must be -1, 32, 64, ... or 1024)");
}

void add_group_layer(GroupLayer layer, QuantizedModules& modules) {
  if (layer.in < 1 || layer.in > kMostInputs || layer.out < 1 || layer.groups < 1 || layer.in % layer.groups != 0) {
    modules.bad(*layer.scales,
                "has " + std::to_string(layer.groups) + " groups for " + std::to_string(layer.in) + " inputs (which they must divide)");
  }
  const int64_t group = layer.in / layer.groups;
  bool neighbours = true;
  for (size_t i = 0; i < layer.group_of.size(); ++i) neighbours &= layer.group_of[i] == static_cast<int64_t>(i) / group;
  if (!neighbours) return add_numbers(std::move(layer), modules);
  const GroupInts* format = group_ints(layer.bits, layer.groups == 1 ? kWholeRow : group);  // a row can be cut anywhere
  if (format == nullptr)
    modules.bad(*layer.scales, "has groups of " + std::to_string(group) + " inputs (must be 32, 64, ..., 1024 or all of them)");
  add_groups(std::move(layer), *format, modules);
}

}  // namespace tandem
