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

// Words of eight outputs of one input each into words of eight inputs of one output each: nibbles change places in halves, quarters, pairs.
void turn(const uint32_t* from, int64_t stride, uint32_t* to, int64_t to_stride) {
  uint32_t words[8];
  for (int i = 0; i < 8; ++i) words[i] = from[i * stride];
  constexpr uint32_t kMask[3] = {0x0000ffff, 0x00ff00ff, 0x0f0f0f0f};
  for (int step = 0, apart = 4; step < 3; ++step, apart /= 2) {
    for (int i = 0; i < 8; ++i) {
      if ((i & apart) != 0) continue;
      const uint32_t differ = (words[i] >> (4 * apart) ^ words[i + apart]) & kMask[step];
      words[i + apart] ^= differ;
      words[i] ^= differ << (4 * apart);
    }
  }
  for (int c = 0; c < 8; ++c) to[c * to_stride] = words[kPlace[c]];
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
      modules.bad(*layer.scales, "has " + std::to_string(layer.groups) + " groups for " + std::to_string(layer.in) +
                                     " inputs (they must be groups of " + std::to_string(group) + ", the group_size)");
    }
    layer.read_groups = transposed_groups(layer, zeros, 0, {std::begin(kPlace), std::end(kPlace)}, modules.files());
    modules.use(codes);
    layer.read_codes = [&files = modules.files(), &codes, in = layer.in, out_words](int64_t begin, int64_t end, uint32_t* words) {
      const int64_t first = begin / 8, width = (end - begin) / 8, row_words = in / 8;
      std::vector<uint32_t> as_stored(static_cast<size_t>(in * width));
      read_columns(files, codes, out_words, first, first + width, sizeof(uint32_t), reinterpret_cast<std::byte*>(as_stored.data()));
      constexpr int64_t kBlock = 8;  // what is written stays in a near cache
      for (int64_t block = 0; block < width; block += kBlock) {
        for (int64_t i = 0; i < row_words; ++i) {
          for (int64_t w = block; w < std::min(width, block + kBlock); ++w) {
            turn(as_stored.data() + i * 8 * width + w, width, words + w * 8 * row_words + i, row_words);
          }
        }
      }
    };
    add_group_layer(std::move(layer), modules);
  }
}

}  // namespace

const QuantizedMethod kAwq = {"awq", {"modules_to_not_convert", ""}, declared, find};

}  // namespace tandem
