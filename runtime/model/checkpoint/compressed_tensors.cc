// Checkpoints of compressed-tensors (llm-compressor, vLLM): "pack-quantized": M.weight_packed words [out, in * bits / 32] along the inputs,
// lowest bits first, a code being its number + 2^(bits - 1); M.weight_scale [out, groups]; asymmetric: M.weight_zero_point words
// [out * bits / 32, groups] along the outputs; act-order: M.weight_g_idx [in]. "int-quantized": M.weight int8. "float-quantized": E4M3, as
// in fp8.cc. Of activations only the float ones are computed with.
#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/int4.h"
#include "runtime/model/checkpoint/group_layer.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {
namespace {

// What a config group says of weights.
const Format& format_of(const Config& weights) {
  const std::string type = weights.text("type", "int"), strategy = weights.text("strategy", "tensor");
  const int64_t bits = weights.integer("num_bits", 1, 64);
  if (type == "float" && bits == 8) {
    if (strategy == "tensor") return fp8(Fp8Scales::tensor);
    if (strategy == "channel") return fp8(Fp8Scales::row);
    if (strategy == "block") return fp8(Fp8Scales::block);
  }
  if (type == "int" && (bits == 4 || bits == 8)) {
    if (strategy == "tensor" || strategy == "channel") return *group_ints(static_cast<int>(bits), kWholeRow);
    if (strategy == "group") return group_format(weights, static_cast<int>(bits));
  }
  weights.bad("num_bits", "is " + std::to_string(bits) + " of type " + type + " by " + strategy +
                              " (4 and 8 bits of int by tensor, channel or group and 8 of float by tensor, channel or block are read)");
}

const Format& declared(const Config& config) {
  constexpr std::string_view kRead[] = {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized"};
  const std::string form = config.text("format");
  if (std::find(std::begin(kRead), std::end(kRead), form) == std::end(kRead)) {
    config.bad("format", "is " + in_quotes(form) + " (pack-quantized, int-quantized, float-quantized and naive-quantized are read)");
  }
  const Config groups = config.object("config_groups");
  const Format* first = nullptr;
  for (const auto& [name, unused] : groups.raw().items()) {
    const Format& format = format_of(groups.object(name).object("weights"));
    if (first == nullptr) first = &format;
  }
  if (first == nullptr) config.bad("config_groups", "is empty (must say how weights are quantized)");
  return *first;
}

// scale and zero of each output and group. Both are small beside the codes: read whole.
std::function<GroupValues(int64_t, int64_t)> groups_of(const GroupLayer& layer, const TensorInfo* zeros, bool zeros_packed,
                                                       const TensorSource& files) {
  return [&files, zeros, zeros_packed, scales = layer.scales, groups = layer.groups, bits = layer.bits](int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * groups, per = 32 / bits;
    GroupValues values;
    const std::vector<float> all = read_floats(files, *scales, 1, 0, 1);
    const auto of = [&](int64_t i) { return all.size() == 1 ? all[0] : all[static_cast<size_t>(begin * groups + i)]; };
    for (int64_t i = 0; i < count; ++i) values.scale.push_back(of(i));
    values.zero.assign(static_cast<size_t>(count), static_cast<float>(1 << (bits - 1)));
    if (zeros == nullptr) return values;
    if (zeros_packed) {
      std::vector<uint32_t> words(zeros->bytes / sizeof(uint32_t));
      files.read(*zeros, {0, zeros->bytes}, words.data());
      for (int64_t i = 0; i < count; ++i) {
        const int64_t o = begin + i / groups;
        values.zero[static_cast<size_t>(i)] =
            static_cast<float>(words[static_cast<size_t>(o / per * groups + i % groups)] >> (o % per * bits) & ((1u << bits) - 1));
      }
    } else {
      std::vector<int8_t> numbers(zeros->bytes);
      files.read(*zeros, {0, zeros->bytes}, numbers.data());
      for (int64_t i = 0; i < count; ++i)
        values.zero[static_cast<size_t>(i)] +=
            static_cast<float>(numbers.size() == 1 ? numbers[0] : numbers[static_cast<size_t>(begin * groups + i)]);
    }
    return values;
  };
}

// weight_scale: [out, groups], or one number.
void take_scales(GroupLayer& layer, QuantizedModules& modules) {
  const std::string name = layer.module + ".weight_scale";
  const TensorInfo* there = modules.files().find(name);
  const bool one = there != nullptr && std::all_of(there->shape.begin(), there->shape.end(), [](int64_t n) { return n == 1; });
  layer.scales = &modules.take_floats(name, *layer.codes, one ? there->shape : std::vector<int64_t>{layer.out, -1});
  layer.groups = one ? 1 : layer.scales->shape[1];
}

void packed_module(const TensorInfo& codes, const std::string& module, QuantizedModules& modules) {
  GroupLayer layer{.module = module, .codes = &codes};
  if (codes.type != "i32" || codes.shape.size() != 2) modules.bad(codes, "is no matrix of I32 words");
  const TensorInfo& shape = modules.take(module + ".weight_shape", codes, "i64", {2});
  const std::vector<int64_t> sides = modules.values<int64_t>(shape);
  layer.out = sides[0], layer.in = sides[1];
  const int64_t words = codes.shape[1];
  layer.bits = words * 8 == layer.in ? 4 : 8;
  if (layer.out != codes.shape[0] || layer.in < 1 || layer.in > kMostInputs || words * 32 != layer.in * layer.bits) {
    modules.bad(shape, "is [" + std::to_string(layer.out) + ", " + std::to_string(layer.in) + "] (weight_packed has " +
                           std::to_string(codes.shape[0]) + " rows of " + std::to_string(words) +
                           " words: 4 or 8 bits a number, in whole words)");
  }
  take_scales(layer, modules);
  const TensorInfo* zeros = modules.files().find(module + ".weight_zero_point");
  const int64_t per = 32 / layer.bits;
  if (zeros != nullptr) zeros = &modules.take(zeros->name, codes, "i32", {(layer.out + per - 1) / per, layer.groups});
  layer.read_groups = groups_of(layer, zeros, true, modules.files());
  layer.read_codes = [&files = modules.files(), &codes, row = static_cast<uint64_t>(words) * sizeof(uint32_t)](int64_t begin, int64_t end,
                                                                                                               uint32_t* out) {
    files.read(codes, {static_cast<uint64_t>(begin) * row, static_cast<uint64_t>(end) * row}, out);
  };
  if (const std::string index = module + ".weight_g_idx"; modules.files().find(index))
    layer.group_of = read_group_index(index, layer, modules);
  modules.use(codes);
  add_group_layer(std::move(layer), modules);
}

void int8_module(const TensorInfo& codes, const std::string& module, QuantizedModules& modules) {
  GroupLayer layer{.module = module, .codes = &codes};
  if (codes.shape.size() != 2) modules.bad(codes, "has " + std::to_string(codes.shape.size()) + " dimensions (must be [out, in])");
  layer.out = codes.shape[0], layer.in = codes.shape[1], layer.bits = 8;
  take_scales(layer, modules);
  const TensorInfo* zeros = modules.files().find(module + ".weight_zero_point");
  if (zeros != nullptr) zeros = &modules.take(zeros->name, codes, "i8", layer.scales->shape);
  layer.read_groups = groups_of(layer, zeros, false, modules.files());
  layer.read_codes = [&files = modules.files(), &codes, row = static_cast<uint64_t>(layer.in)](int64_t begin, int64_t end, uint32_t* out) {
    auto* bytes = reinterpret_cast<uint8_t*>(out);
    const uint64_t count = static_cast<uint64_t>(end - begin) * row;
    files.read(codes, {static_cast<uint64_t>(begin) * row, static_cast<uint64_t>(begin) * row + count}, bytes);
    for (uint64_t i = 0; i < count; ++i) bytes[i] ^= 0x80;  // a number + 128
  };
  modules.use(codes);
  add_group_layer(std::move(layer), modules);
}

void find(const Config& config, QuantizedModules& modules) {
  (void)declared(config);
  constexpr std::string_view kPacked = ".weight_packed", kWeight = ".weight";
  for (const TensorInfo& tensor : modules.files().tensors()) {
    add_fp8_module(tensor, modules);
    if (tensor.name.ends_with(kPacked)) packed_module(tensor, tensor.name.substr(0, tensor.name.size() - kPacked.size()), modules);
    if (tensor.type == "i8" && tensor.name.ends_with(kWeight))
      int8_module(tensor, tensor.name.substr(0, tensor.name.size() - kWeight.size()), modules);
  }
}

}  // namespace

const QuantizedMethod kCompressedTensors = {"compressed-tensors", {"ignore", ""}, declared, find};

}  // namespace tandem
