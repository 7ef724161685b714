// GPTQ's checkpoints (AutoGPTQ, GPTQModel): M.qweight words [in * bits / 32, out] along the inputs, lowest bits first; M.qzeros words
// [groups, out * bits / 32] along the outputs, one less than the zero in the "gptq" checkpoint_format and the zero itself in "gptq_v2";
// M.scales [groups, out]; M.g_idx [in], the group of each input. w = scales * (code - zero).
#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/group_layer.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {
namespace {

int zero_offset(const Config& config) {
  const std::string form = config.text("checkpoint_format", "gptq");
  if (form == "gptq") return 1;
  if (form != "gptq_v2") config.bad("checkpoint_format", "is " + in_quotes(form) + " (must be gptq or gptq_v2)");
  return 0;
}

const Format& declared(const Config& config) {
  const int64_t bits = config.integer("bits", 1, 32);
  if (bits != 4 && bits != 8) config.bad("bits", "is " + std::to_string(bits) + " (4 and 8 are read)");
  zero_offset(config);
  if (config.boolean("desc_act", false) && group_size(config) != -1) return format("fp16");
  return group_format(config, static_cast<int>(bits));
}

void find(const Config& config, QuantizedModules& modules) {
  (void)declared(config);
  const bool by_module = config.has("dynamic");  // then bits and group_size are only the usual ones
  constexpr std::string_view kEnd = ".qweight";
  for (const TensorInfo& codes : modules.files().tensors()) {
    if (!codes.name.ends_with(kEnd)) continue;
    GroupLayer layer{.module = codes.name.substr(0, codes.name.size() - kEnd.size()), .codes = &codes};
    if (codes.type != "i32" || codes.shape.size() != 2) modules.bad(codes, "is no matrix of I32 words");
    layer.out = codes.shape[1];
    layer.scales = &modules.take_floats(layer.module + ".scales", codes, {-1, layer.out});
    layer.groups = layer.scales->shape[0];
    const TensorInfo& zeros = modules.take(layer.module + ".qzeros", codes, "i32", {layer.groups, -1});
    const int64_t zero_words = zeros.shape[1];
    layer.bits = layer.out > 0 && zero_words * 8 == layer.out ? 4 : 8;
    if (layer.out == 0 || zero_words * 32 != layer.out * layer.bits || layer.out % 8 != 0) {
      modules.bad(zeros, "has " + std::to_string(zero_words) + " words a group (must be 4 or 8 bits for each of " +
                             std::to_string(layer.out) + " outputs)");
    }
    if (!by_module && layer.bits != config.integer("bits", 1, 32)) {
      modules.bad(zeros, "holds " + std::to_string(layer.bits) + " bits an output (quantization_config.bits is " +
                             std::to_string(config.integer("bits", 1, 32)) + ")");
    }
    layer.in = codes.shape[0] * 32 / layer.bits;
    const int64_t group = by_module                  ? layer.in / std::max<int64_t>(1, layer.groups)
                          : group_size(config) == -1 ? layer.in
                                                     : group_size(config);
    if (group * layer.groups != layer.in) {
      modules.bad(*layer.scales, "has " + std::to_string(layer.groups) + " groups for " + std::to_string(layer.in) +
                                     " inputs (they must be groups of " + std::to_string(group) + ", the group_size)");
    }
    std::vector<uint8_t> place;
    for (int i = 0; i < 32 / layer.bits; ++i) place.push_back(static_cast<uint8_t>(i));
    layer.read_groups = transposed_groups(layer, zeros, zero_offset(config), std::move(place), modules.files());
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
    if (const std::string index = layer.module + ".g_idx"; modules.files().find(index))
      layer.group_of = read_group_index(index, layer, modules);
    add_group_layer(std::move(layer), modules);
  }
}

}  // namespace

const QuantizedMethod kGptq = {"gptq", {"", ""}, declared, find};

}  // namespace tandem
