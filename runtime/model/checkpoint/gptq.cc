// GPTQ's checkpoints (AutoGPTQ, GPTQModel): M.qweight words [in * bits / 32, out] along the inputs, lowest bits first; M.qzeros words
// [groups, out * bits / 32] along the outputs, one less than the zero in the "gptq" checkpoint_format and the zero itself in "gptq_v2";
// M.scales [groups, out]; M.g_idx [in], the group of each input. w = scales * (code - zero).
#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/formats/int4.h"
#include "runtime/model/checkpoint/packed_words.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {
namespace {

constexpr int64_t kMostInputs = 1 << 24;

int64_t group_size(const Config& config) {
  const int64_t group = config.integer("group_size", -1, kMostInputs, 128);
  if (group == 0) config.bad("group_size", "is 0 (must be -1, for whole columns, or the inputs of a group)");
  return group;
}

int zero_offset(const Config& config) {
  const std::string form = config.text("checkpoint_format", "gptq");
  if (form == "gptq") return 1;
  if (form != "gptq_v2") config.bad("checkpoint_format", "is " + in_quotes(form) + " (must be gptq or gptq_v2)");
  return 0;
}

const Format& declared(const Config& config) {
  const int64_t bits = config.integer("bits", 1, 32), group = group_size(config);
  if (bits != 4 && bits != 8) config.bad("bits", "is " + std::to_string(bits) + " (4 and 8 are read)");
  zero_offset(config);
  if (config.boolean("desc_act", false) && group != -1) return format("fp16");
  if (const GroupInts* found = group_ints(static_cast<int>(bits), group == -1 ? kWholeRow : group)) return *found;
  config.bad("group_size", "is " + std::to_string(group) + " (must be -1, 32, 64, ... or 1024)");
}

void find(const Config& config, QuantizedModules& modules) {
  (void)declared(config);
  const bool by_module = config.has("dynamic");  // then bits and group_size are only the usual ones
  constexpr std::string_view kEnd = ".qweight";
  for (const TensorInfo& codes : modules.files().tensors()) {
    if (!codes.name.ends_with(kEnd)) continue;
    PackedLayer layer{.module = codes.name.substr(0, codes.name.size() - kEnd.size()), .codes = &codes};
    if (codes.type != "i32" || codes.shape.size() != 2) modules.bad(codes, "is no matrix of I32 words");
    layer.out = codes.shape[1];
    layer.scales = &modules.take_floats(layer.module + ".scales", codes, {-1, layer.out});
    layer.groups = layer.scales->shape[0];
    layer.zeros = &modules.take(layer.module + ".qzeros", codes, "i32", {layer.groups, -1});
    const int64_t zero_words = layer.zeros->shape[1];
    layer.bits = layer.out > 0 && zero_words * 8 == layer.out ? 4 : 8;
    if (layer.out == 0 || zero_words * 32 != layer.out * layer.bits || layer.out % 8 != 0) {
      modules.bad(*layer.zeros, "has " + std::to_string(zero_words) + " words a group (must be 4 or 8 bits for each of " + std::to_string(layer.out) + " outputs)");
    }
    if (!by_module && layer.bits != config.integer("bits", 1, 32)) {
      modules.bad(*layer.zeros, "holds " + std::to_string(layer.bits) + " bits an output (quantization_config.bits is " + std::to_string(config.integer("bits", 1, 32)) + ")");
    }
    layer.in = codes.shape[0] * 32 / layer.bits;
    const int64_t group = by_module ? layer.in / std::max<int64_t>(1, layer.groups) : group_size(config) == -1 ? layer.in : group_size(config);
    if (layer.in == 0 || layer.in > kMostInputs || layer.groups == 0 || group * layer.groups != layer.in) {
      modules.bad(*layer.scales, "has " + std::to_string(layer.groups) + " groups for " + std::to_string(layer.in) + " inputs (they must be groups of " + std::to_string(group) + ", the group_size)");
    }
    layer.zero_offset = zero_offset(config);
    for (int i = 0; i < 32 / layer.bits; ++i) layer.zero_place.push_back(static_cast<uint8_t>(i));
    modules.use(codes);
    const int64_t row_words = codes.shape[0], out_rows = layer.out;
    layer.read_codes = [&files = modules.files(), &codes, row_words, out_rows](int64_t begin, int64_t end, uint32_t* words) {
      const int64_t width = end - begin;
      std::vector<uint32_t> as_stored(static_cast<size_t>(row_words * width));
      read_columns(files, codes, out_rows, begin, end, sizeof(uint32_t), reinterpret_cast<std::byte*>(as_stored.data()));
      constexpr int64_t kBlock = 64;  // what is written stays in a near cache
      for (int64_t first = 0; first < width; first += kBlock) {
        const int64_t last = std::min(width, first + kBlock);
        for (int64_t w = 0; w < row_words; ++w) {
          for (int64_t o = first; o < last; ++o) words[o * row_words + w] = as_stored[static_cast<size_t>(w * width + o)];
        }
      }
    };
    if (modules.files().find(layer.module + ".g_idx")) {
      const TensorInfo& index = modules.take(layer.module + ".g_idx", codes, "i32", {layer.in});
      layer.group_of = modules.values<int32_t>(index);
      for (const int32_t g : layer.group_of) {
        if (g < 0 || g >= layer.groups) modules.bad(index, "names group " + std::to_string(g) + " (there are " + std::to_string(layer.groups) + ", counted from 0)");
      }
    }
    add_packed_layer(std::move(layer), modules);
  }
}

}  // namespace

const QuantizedMethod kGptq = {"gptq", {"", ""}, declared, find};

}  // namespace tandem
