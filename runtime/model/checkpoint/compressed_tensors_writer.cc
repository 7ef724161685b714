// The keys of compressed_tensors.cc and fp8.cc: weights alone are quantized, activations stay as they are.
#include <algorithm>
#include <cstring>
#include <map>

#include "kernels/formats/fp8.h"
#include "kernels/formats/int4.h"
#include "runtime/model/checkpoint/quantized_writer.h"

namespace tandem {
namespace {

using nlohmann::ordered_json;

bool is_symmetric(const Format& format) {
  const auto* ints = dynamic_cast<const GroupInts*>(&format);
  return ints && ints->symmetric();
}
const Fp8* float8(const Format& format) { return dynamic_cast<const Fp8*>(&format); }

std::vector<FilePiece> packed_pieces(const WrittenModule& m) {
  const auto& ints = dynamic_cast<const GroupInts&>(*m.format);
  const int64_t sides[] = {m.rows, m.cols};
  std::vector<std::byte> shape(sizeof sides);
  std::memcpy(shape.data(), sides, sizeof sides);
  return {component_piece(m.name + ".weight_packed", DType::i32, {m.rows, m.cols * ints.bits() / 32}, 0),
          component_piece(m.name + ".weight_scale", DType::bf16, {m.rows, m.cols / ints.group(m.cols)}, 1, Recoding::to_bf16),  // they are bf16
          constant_piece(m.name + ".weight_shape", DType::i64, {2}, std::move(shape))};
}

std::vector<FilePiece> float_pieces(const WrittenModule& m) {
  const bool rows = float8(*m.format)->scales() == Fp8Scales::row;
  return {component_piece(m.name + ".weight", DType::f8_e4m3, {m.rows, m.cols}, 0),
          component_piece(m.name + ".weight_scale", DType::f32, rows ? std::vector<int64_t>{m.rows, 1} : std::vector<int64_t>{1}, 1)};
}

ordered_json scheme(const Format& format) {
  ordered_json weights = {{"num_bits", 8}, {"type", "float"}, {"symmetric", true}, {"strategy", "channel"}, {"group_size", nullptr}, {"dynamic", false}, {"actorder", nullptr}};
  if (const Fp8* fp8 = float8(format)) {
    if (fp8->scales() == Fp8Scales::tensor) weights["strategy"] = "tensor";
    return weights;
  }
  const auto& ints = dynamic_cast<const GroupInts&>(format);
  weights["num_bits"] = ints.bits();
  weights["type"] = "int";
  if (ints.group(0) != 0) {
    weights["strategy"] = "group";
    weights["group_size"] = ints.group(0);
  }
  return weights;
}

ordered_json config(const char* form, std::span<const WrittenModule> modules, const std::vector<std::string>& left_alone) {
  std::map<std::string_view, std::vector<const WrittenModule*>> by_format;
  for (const WrittenModule& module : modules) by_format[module.format->name()].push_back(&module);
  ordered_json groups = ordered_json::object();
  for (const auto& [name, members] : by_format) {
    std::vector<std::string> targets = {"Linear"};
    if (by_format.size() > 1) {
      targets.clear();
      for (const WrittenModule* module : members) targets.push_back(module->name);
    }
    groups["group_" + std::to_string(groups.size())] = {{"targets", targets}, {"weights", scheme(*members[0]->format)}, {"input_activations", nullptr}, {"output_activations", nullptr}};
  }
  return {{"quant_method", "compressed-tensors"}, {"format", form}, {"quantization_status", "compressed"}, {"config_groups", groups},
          {"ignore", left_alone}, {"kv_cache_scheme", nullptr}};
}

// DeepSeek's and transformers' FineGrainedFP8.
std::vector<FilePiece> block_pieces(const WrittenModule& m) {
  const auto blocks = [](int64_t n) { return (n + kFp8Block - 1) / kFp8Block; };
  return {component_piece(m.name + ".weight", DType::f8_e4m3, {m.rows, m.cols}, 0),
          component_piece(m.name + ".weight_scale_inv", DType::f32, {blocks(m.rows), blocks(m.cols)}, 1)};
}
ordered_json block_config(std::span<const WrittenModule>, const std::vector<std::string>& left_alone) {
  return {{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {kFp8Block, kFp8Block}}, {"modules_to_not_convert", left_alone}};
}

template <const char* kForm>
ordered_json config_of(std::span<const WrittenModule> modules, const std::vector<std::string>& left_alone) {
  return config(kForm, modules, left_alone);
}
constexpr char kPacked[] = "pack-quantized", kFloat[] = "float-quantized";

}  // namespace

const QuantizedWriter kPackedWriter = {"compressed-tensors, pack-quantized", is_symmetric, packed_pieces, config_of<kPacked>};
const QuantizedWriter kFloatWriter = {"compressed-tensors, float-quantized",
                                      [](const Format& f) { return float8(f) && float8(f)->scales() != Fp8Scales::block; }, float_pieces, config_of<kFloat>};
const QuantizedWriter kFp8BlockWriter = {"fp8 in blocks", [](const Format& f) { return float8(f) && float8(f)->scales() == Fp8Scales::block; }, block_pieces, block_config};

}  // namespace tandem
