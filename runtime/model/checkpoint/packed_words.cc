#include "runtime/model/checkpoint/packed_words.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"
#include "kernels/formats/int4.h"

namespace tandem {
namespace {

constexpr uint64_t kPanel = 4 << 20;  // bytes made at a time

// scale and scale * zero of outputs [begin, end): [groups, end - begin] each, zero as a number.
struct GroupValues {
  std::vector<float> scale, zero;
};
GroupValues group_values(const TensorSource& files, const PackedLayer& layer, int64_t begin, int64_t end) {
  const int64_t per = 32 / layer.bits, width = end - begin, first = begin / per, words = (end + per - 1) / per - first;
  const DType type = format(layer.scales->type).dtype();
  std::vector<std::byte> raw(static_cast<size_t>(layer.groups * width) * size(type));
  read_columns(files, *layer.scales, layer.out, begin, end, static_cast<int64_t>(size(type)), raw.data());
  GroupValues values;
  values.scale.resize(static_cast<size_t>(layer.groups * width));
  widen(type, raw.data(), values.scale.size(), values.scale.data());
  std::vector<uint32_t> zeros(static_cast<size_t>(layer.groups * words));
  read_columns(files, *layer.zeros, layer.out / per, first, first + words, sizeof(uint32_t), reinterpret_cast<std::byte*>(zeros.data()));
  values.zero.reserve(values.scale.size());
  const uint32_t mask = (1u << layer.bits) - 1;
  for (int64_t g = 0; g < layer.groups; ++g) {
    for (int64_t o = begin; o < end; ++o) {
      const uint32_t stored = zeros[static_cast<size_t>(g * words + o / per - first)] >> (layer.bits * layer.zero_place[static_cast<size_t>(o % per)]) & mask;
      values.zero.push_back(static_cast<float>(static_cast<int>(stored) + layer.zero_offset));
    }
  }
  return values;
}

void add_groups(const PackedLayer& layer, const GroupInts& format, QuantizedModules& modules) {
  modules.begin(layer.module, format, layer.out, layer.in, *layer.codes);
  const auto shared = std::make_shared<const PackedLayer>(layer);
  const TensorSource& files = modules.files();
  modules.made(by_rows(layer.out, static_cast<uint64_t>(layer.in * layer.bits / 8), 8, [shared](int64_t begin, int64_t end, std::byte* out) {
    shared->read_codes(begin, end, reinterpret_cast<uint32_t*>(out));  // little-endian words are our bytes
  }));
  for (const bool shift : {false, true}) {
    modules.made(by_rows(layer.out, static_cast<uint64_t>(layer.groups) * sizeof(float), 8, [shared, shift, &files](int64_t begin, int64_t end, std::byte* out) {
      const GroupValues values = group_values(files, *shared, begin, end);
      const int64_t width = end - begin;
      for (int64_t o = 0; o < width; ++o) {
        for (int64_t g = 0; g < shared->groups; ++g, out += sizeof(float)) {
          const float scale = values.scale[static_cast<size_t>(g * width + o)], value = shift ? scale * values.zero[static_cast<size_t>(g * width + o)] : scale;
          std::memcpy(out, &value, sizeof value);
        }
      }
    }));
  }
}

void add_numbers(const PackedLayer& layer, QuantizedModules& modules) {
  const Format& dense = format(layer.scales->type);
  modules.begin(layer.module, dense, layer.out, layer.in, *layer.codes);
  const auto shared = std::make_shared<const PackedLayer>(layer);
  const TensorSource& files = modules.files();
  modules.made(by_rows(layer.out, static_cast<uint64_t>(layer.in) * size(dense.dtype()), 8, [shared, &files, type = dense.dtype()](int64_t begin, int64_t end, std::byte* out) {
    const int64_t width = end - begin, row_words = shared->in * shared->bits / 32;
    const GroupValues values = group_values(files, *shared, begin, end);
    std::vector<uint32_t> words(static_cast<size_t>(width * row_words));
    shared->read_codes(begin, end, words.data());
    const auto* bytes = reinterpret_cast<const uint8_t*>(words.data());
    std::vector<float> row(static_cast<size_t>(shared->in));
    for (int64_t o = 0; o < width; ++o, bytes += row_words * 4) {
      for (int64_t i = 0; i < shared->in; ++i) {
        const int code = shared->bits == 8 ? bytes[i] : bytes[i / 2] >> (i % 2 * 4) & 15;
        const auto at = static_cast<size_t>(shared->group_of[static_cast<size_t>(i)] * width + o);
        row[static_cast<size_t>(i)] = values.scale[at] * (static_cast<float>(code) - values.zero[at]);
      }
      narrow(type, row.data(), row.size(), out + static_cast<uint64_t>(o * shared->in) * size(type));
    }
  }));
}

}  // namespace

std::function<void(ByteRange, std::byte*)> by_rows(int64_t rows, uint64_t row_bytes, int64_t step, RowMaker rows_of) {
  return [=](ByteRange range, std::byte* out) {
    if (range.size() == 0) return;
    const int64_t panel_rows = std::max<int64_t>(1, static_cast<int64_t>(kPanel / row_bytes) / step) * step;
    const int64_t last = std::min(rows, (static_cast<int64_t>((range.end - 1) / row_bytes) / step + 1) * step);
    std::vector<std::byte> panel;
    for (int64_t row = static_cast<int64_t>(range.begin / row_bytes) / step * step; row < last; row += panel_rows) {
      const int64_t end = std::min(last, row + panel_rows);
      panel.resize(static_cast<uint64_t>(end - row) * row_bytes);
      rows_of(row, end, panel.data());
      const uint64_t base = static_cast<uint64_t>(row) * row_bytes, from = std::max(base, range.begin), to = std::min(base + panel.size(), range.end);
      std::memcpy(out + (from - range.begin), panel.data() + (from - base), to - from);
    }
  };
}

void read_columns(const TensorSource& files, const TensorInfo& tensor, int64_t columns, int64_t begin, int64_t end, int64_t size, std::byte* out) {
  if (begin == 0 && end == columns) return files.read(tensor, {0, tensor.bytes}, out);
  const auto row = static_cast<uint64_t>(columns * size), from = static_cast<uint64_t>(begin * size), to = static_cast<uint64_t>(end * size);
  for (uint64_t at = 0; at < tensor.bytes; at += row, out += to - from) files.read(tensor, {at + from, at + to}, out);
}

void add_packed_layer(PackedLayer layer, QuantizedModules& modules) {
  const int64_t group = layer.in / layer.groups;
  bool neighbours = true;
  for (size_t i = 0; i < layer.group_of.size(); ++i) neighbours &= layer.group_of[i] == static_cast<int64_t>(i) / group;
  if (!neighbours) return add_numbers(layer, modules);
  const GroupInts* format = group_ints(layer.bits, layer.groups == 1 ? kWholeRow : group);  // a row can be cut anywhere
  if (format == nullptr) modules.bad(*layer.scales, "has groups of " + std::to_string(group) + " inputs (must be 32, 64, ..., 1024 or all of them)");
  add_groups(layer, *format, modules);
}

}  // namespace tandem
