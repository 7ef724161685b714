// The keys of bitsandbytes.cc, written as transformers saves them (QuantState.as_dict(packed=True), Linear8bitLt's state_dict).
#include <algorithm>
#include <cstring>

#include "kernels/formats/nf4.h"
#include "runtime/model/checkpoint/quantized_writer.h"

namespace tandem {
namespace {

using nlohmann::ordered_json;

constexpr uint64_t kMostState = 512;  // bytes of the JSON text
constexpr int kNestedOffset = 5;      // component

const FourBit& four(const Format& format) { return dynamic_cast<const FourBit&>(format); }
std::string book_name(const Format& format) { return four(format).codebook() == Codebook::nf4 ? "nf4" : "fp4"; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// As Python's json.dumps writes it.
std::string state_text(const WrittenModule& m, const QuantizedView& weight) {
  std::string text = "{\"quant_type\": \"" + book_name(*m.format) + "\", \"blocksize\": " + std::to_string(m.format->block()) + ", \"dtype\": \"" +
                     torch_name(m.type) + "\", \"shape\": [" + std::to_string(m.rows) + ", " + std::to_string(m.cols) + "]";
  if (four(*m.format).nested()) {
    float offset;
    std::memcpy(&offset, weight.data[kNestedOffset], sizeof offset);
    text += ", \"nested_blocksize\": " + std::to_string(kNestedBlock) + ", \"nested_dtype\": \"float32\", \"nested_offset\": " +
            ordered_json(static_cast<double>(offset)).dump();
  }
  return text + "}";
}

std::vector<FilePiece> four_bit_pieces(const WrittenModule& m) {
  const std::string weight = m.name + ".weight";
  const bool nested = four(*m.format).nested();
  const int64_t count = m.rows * m.cols, blocks = ceil_div(count, m.format->block());
  std::vector<FilePiece> list = {component_piece(weight, DType::u8, {(count + 1) / 2, 1}, 0),
                                 component_piece(weight + ".absmax", nested ? DType::u8 : DType::f32, {blocks}, 1),
                                 component_piece(weight + ".quant_map", DType::f32, {16}, 2)};
  if (nested) {
    list.push_back(component_piece(weight + ".nested_absmax", DType::f32, {ceil_div(blocks, kNestedBlock)}, 3));
    list.push_back(component_piece(weight + ".nested_quant_map", DType::f32, {256}, 4));
  }
  list.push_back({.name = weight + ".quant_state.bitsandbytes__" + book_name(*m.format), .dtype = DType::u8, .shape = {}, .bytes = kMostState,
                  .text = [m](const QuantizedView& view) { return state_text(m, view); }});
  return list;
}

std::vector<FilePiece> int8_pieces(const WrittenModule& m) {
  return {component_piece(m.name + ".weight", DType::i8, {m.rows, m.cols}, 0), component_piece(m.name + ".SCB", DType::f32, {m.rows}, 1),
          constant_piece(m.name + ".weight_format", DType::u8, {}, {std::byte{0}})};  // row by row
}

ordered_json config(bool four_bits, const std::string& type, const std::string& compute, bool nested, const std::vector<std::string>& left_alone) {
  return {{"_load_in_4bit", four_bits},
          {"_load_in_8bit", !four_bits},
          {"bnb_4bit_compute_dtype", compute},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", type},
          {"bnb_4bit_use_double_quant", nested},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", left_alone},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", four_bits},
          {"load_in_8bit", !four_bits},
          {"quant_method", "bitsandbytes"}};
}

ordered_json four_bit_config(std::span<const WrittenModule> modules, const std::vector<std::string>& left_alone) {
  // A checkpoint may mix them; each tensor says its own, this is what most are.
  const auto most = [&](auto is) { return 2 * std::count_if(modules.begin(), modules.end(), is) > static_cast<int64_t>(modules.size()); };
  const bool nf4 = most([](const WrittenModule& m) { return four(*m.format).codebook() == Codebook::nf4; });
  const bool nested = most([](const WrittenModule& m) { return four(*m.format).nested(); });
  return config(true, nf4 ? "nf4" : "fp4", torch_name(modules[0].type), nested, left_alone);
}
ordered_json int8_config(std::span<const WrittenModule>, const std::vector<std::string>& left_alone) {
  return config(false, "fp4", "float32", false, left_alone);
}

}  // namespace

const QuantizedWriter kBitsandbytes4Writer = {"bitsandbytes in 4 bits", [](const Format& f) { return dynamic_cast<const FourBit*>(&f) != nullptr; },
                                              four_bit_pieces, four_bit_config};
const QuantizedWriter kBitsandbytes8Writer = {"bitsandbytes in 8 bits", [](const Format& f) { return f.name() == "int8"; }, int8_pieces, int8_config};

}  // namespace tandem
