// AWQ's checkpoints of the "gemm" version (AutoAWQ): M.qweight words [in, out / 8] and M.qzeros words [groups, out / 8], both along the
// outputs with neighbours in the order 0 2 4 6 1 3 5 7, M.scales [groups, out]. w = scales * (code - zero).
#include <algorithm>
#include <cctype>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/group_layer.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {
namespace {

constexpr uint8_t kPlace[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // of output 8j + c in word j: nibble kPlace[c]

const Format& declared(const Config& config) {
  const int64_t bits = config.integer("bits", 1, 32, 4);
  if (bits != 4) config.bad("bits", "is " + std::to_string(bits) + " (4 is read)");
  std::string version = config.text("version", "gemm");
  std::transform(version.begin(), version.end(), version.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (version != "gemm") config.bad("version", "is " + in_quotes(version) + " (gemm is read)");
  if (!config.boolean("zero_point", true)) config.bad("zero_point", "is false (weights with zero points are read)");
  return group_format(config, 4);
}

// Words of eight outputs of one input each into words of eight inputs of one output each.
void turn(const uint32_t* from, int64_t stride, uint32_t* to, int64_t to_stride) {
  for (int c = 0; c < 8; ++c) {
    uint32_t word = 0;
    for (int i = 0; i < 8; ++i) word |= (from[i * stride] >> (4 * kPlace[c]) & 15) << (4 * i);
    to[c * to_stride] = word;
  }
}

void find(const Config& config, QuantizedModules& modules) {
  (void)declared(config);
  constexpr std::string_view kEnd = ".qweight";
  for (const TensorInfo& codes : modules.files().tensors()) {
    if (!codes.name.ends_with(kEnd)) continue;
    GroupLayer layer{.module = codes.name.substr(0, codes.name.size() - kEnd.size()), .codes = &codes};
    if (codes.type != "i32" || codes.shape.size() != 2) modules.bad(codes, "is no matrix of I32 words");
    layer.in = codes.shape[0];
    const int64_t out_words = codes.shape[1];
    layer.out = out_words * 8;
    layer.scales = &modules.take_floats(layer.module + ".scales", codes, {-1, layer.out});
    layer.groups = layer.scales->shape[0];
    const TensorInfo& zeros = modules.take(layer.module + ".qzeros", codes, "i32", {layer.groups, out_words});
    const int64_t group = group_size(config) == -1 ? layer.in : group_size(config);
    if (group * layer.groups != layer.in) {
      modules.bad(*layer.scales, "has " + std::to_string(layer.groups) + " groups for " + std::to_string(layer.in) + " inputs (they must be groups of " + std::to_string(group) + ", the group_size)");
    }
    layer.read_groups = transposed_groups(layer, zeros, 0, {std::begin(kPlace), std::end(kPlace)}, modules.files());
    modules.use(codes);
    layer.read_codes = [&files = modules.files(), &codes, in = layer.in, out_words](int64_t begin, int64_t end, uint32_t* words) {
      const int64_t first = begin / 8, width = (end - begin) / 8, row_words = in / 8;
      std::vector<uint32_t> as_stored(static_cast<size_t>(in * width));
      read_columns(files, codes, out_words, first, first + width, sizeof(uint32_t), reinterpret_cast<std::byte*>(as_stored.data()));
      for (int64_t w = 0; w < width; ++w) {
        for (int64_t i = 0; i < row_words; ++i) turn(as_stored.data() + i * 8 * width + w, width, words + w * 8 * row_words + i, row_words);
      }
    };
    add_group_layer(std::move(layer), modules);
  }
}

}  // namespace

const QuantizedMethod kAwq = {"awq", {"modules_to_not_convert", ""}, declared, find};

}  // namespace tandem
