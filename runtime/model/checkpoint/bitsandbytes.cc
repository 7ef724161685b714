// bitsandbytes' keys, as transformers saves them (bitsandbytes/functional.py, QuantState.as_dict). Four bits: M.weight holds the codes in
// whatever type bnb_4bit_quant_storage named, M.weight.absmax, .quant_map, .nested_absmax, .nested_quant_map are tensors, and the rest is
// JSON text in M.weight.quant_state.bitsandbytes__nf4 (or __fp4). Eight bits: M.weight is int8, M.SCB holds the absmax of its rows. The
// tensors say which modules are quantized and how; two modules of one checkpoint may differ.
#include <bit>
#include <cstring>

#include "kernels/formats/nf4.h"
#include "runtime/model/checkpoint/quantized_method.h"

namespace tandem {
namespace {

constexpr std::string_view kState = ".quant_state.bitsandbytes__";
constexpr uint64_t kStateLimit = 64 << 10;
constexpr int64_t kLargestSide = int64_t{1} << 40;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void four_bit_module(const TensorInfo& described, QuantizedModules& modules) {
  const std::string weight = described.name.substr(0, described.name.find(kState)),
                    quant_type = described.name.substr(weight.size() + kState.size());
  const std::string module = weight.substr(0, weight.size() - std::string_view(".weight").size());
  if (!weight.ends_with(".weight"))
    modules.bad(described, "describes no weight (its name must be MODULE.weight" + std::string(kState) + "nf4)");
  if (described.type != "u8" || described.bytes > kStateLimit)
    modules.bad(described, "is no text of at most " + std::to_string(kStateLimit) + " bytes in a U8 tensor");
  modules.use(described);
  const std::vector<char> text = modules.values<char>(described);
  const std::string where = modules.files().file_name(described) + ": " + described.name;
  const Config state(parse_json({text.data(), text.size()}, where), where);

  const std::string type = state.text("quant_type");
  if (type != quant_type || (type != "nf4" && type != "fp4"))
    state.bad("quant_type", "is " + type + " (must be nf4 or fp4, as the tensor's name says)");
  const std::vector<int64_t> shape = state.integers("shape", 0, kLargestSide, 8);
  if (shape.size() != 2) state.bad("shape", "has " + std::to_string(shape.size()) + " dimensions (must be [out, in])");
  const bool nested = state.has("nested_blocksize");
  const Codebook book = type == "nf4" ? Codebook::nf4 : Codebook::fp4;
  const FourBit* format = four_bit(book, nested, state.integer("blocksize", 32, 4096));
  if (format == nullptr)
    state.bad("blocksize", "is " + std::to_string(state.integer("blocksize", 32, 4096)) + " (must be a power of two, 32 to 4096)");

  const TensorInfo* codes = modules.files().find(weight);
  if (codes == nullptr) modules.bad(described, "has no " + weight + " beside it (which holds the codes)");
  modules.begin(module, *format, shape[0], shape[1], *codes);
  modules.same(*codes);
  const int64_t blocks = ceil_div(shape[0] * shape[1], format->block());
  modules.same(modules.take(weight + ".absmax", *codes, nested ? "u8" : "fp32", {blocks}));
  modules.same(modules.take(weight + ".quant_map", *codes, "fp32", {16}));
  if (!nested) return;
  state.integer("nested_blocksize", kNestedBlock, kNestedBlock);
  modules.same(modules.take(weight + ".nested_absmax", *codes, "fp32", {ceil_div(blocks, kNestedBlock)}));
  modules.same(modules.take(weight + ".nested_quant_map", *codes, "fp32", {256}));
  const auto offset = static_cast<float>(state.number("nested_offset", -3e38, 3e38));
  std::vector<std::byte> bytes(sizeof offset);
  std::memcpy(bytes.data(), &offset, sizeof offset);
  modules.constant(std::move(bytes));
}

void int8_module(const TensorInfo& codes, QuantizedModules& modules) {
  const std::string module = codes.name.substr(0, codes.name.size() - std::string_view(".weight").size());
  if (codes.shape.size() != 2) modules.bad(codes, "has " + std::to_string(codes.shape.size()) + " dimensions (must be [out, in])");
  if (const TensorInfo* layout = modules.files().find(module + ".weight_format")) {
    if (layout->bytes != 1 || modules.values<uint8_t>(*layout)[0] != 0) {
      modules.bad(*layout,
                  "is of an older layout for one kind of GPU (must be 0, row by row: load and save the model with a newer bitsandbytes)");
    }
    modules.use(*layout);
  }
  modules.begin(module, format("int8"), codes.shape[0], codes.shape[1], codes);
  modules.same(codes);
  modules.same(modules.take(module + ".SCB", codes, "fp32", {codes.shape[0]}));
}

bool four_bits(const Config& config) { return config.boolean("load_in_4bit", config.boolean("_load_in_4bit", false)); }

const Format& declared(const Config& config) {
  if (config.boolean("load_in_8bit", config.boolean("_load_in_8bit", false))) return format("int8");
  if (!four_bits(config)) config.bad("load_in_4bit", "is not true, nor is load_in_8bit (one of them must be)");
  const std::string type = config.text("bnb_4bit_quant_type", "fp4");
  if (type != "nf4" && type != "fp4") config.bad("bnb_4bit_quant_type", "is " + type + " (must be nf4 or fp4)");
  return *four_bit(type == "nf4" ? Codebook::nf4 : Codebook::fp4, config.boolean("bnb_4bit_use_double_quant", false), 64);
}

void find(const Config& config, QuantizedModules& modules) {
  (void)declared(config);  // refuses what it cannot mean
  for (const TensorInfo& tensor : modules.files().tensors()) {
    if (tensor.name.find(kState) != std::string::npos) four_bit_module(tensor, modules);
    if (tensor.type == "i8" && tensor.name.ends_with(".weight")) int8_module(tensor, modules);
  }
}

}  // namespace

const QuantizedMethod kBitsandbytes = {"bitsandbytes", {"llm_int8_skip_modules", ""}, declared, find};

}  // namespace tandem
