#include "runtime/model/format_choice.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "kernels/base/error.h"
#include "kernels/formats/nf4.h"
#include "runtime/model/checkpoint/quantized.h"

namespace tandem {
namespace {

struct Rule { std::string module; const Format* format; };  // format null: keep

struct Rules {
  const Format* all = nullptr;
  std::vector<Rule> modules;
};

const Format* parse_format(const std::string& name, bool double_quant) { return name == "keep" ? nullptr : &named_format(name, double_quant); }

Rules parse(const FormatOptions& options) {
  Rules rules;
  bool whole = false;
  for (size_t begin = 0; begin <= options.format.size();) {
    const size_t end = std::min(options.format.find(',', begin), options.format.size());
    const std::string part = options.format.substr(begin, end - begin);
    begin = end + 1;
    const size_t equals = part.find('=');
    if (part.empty() || equals == 0) bad_input("--format", "is '" + options.format + "' (such as nf4 or nf4,lm_head=bf16)");
    if (equals == std::string::npos) {
      if (whole) bad_input("--format", "names two formats for the whole model in " + options.format + " (one, and MODULE=FORMAT for others)");
      whole = true;
      rules.all = parse_format(part, options.double_quant);
    } else {
      rules.modules.push_back({part.substr(0, equals), parse_format(part.substr(equals + 1), options.double_quant)});
    }
  }
  if (options.double_quant && options.format.find("nf4") == std::string::npos && options.format.find("fp4") == std::string::npos) {
    bad_input("--double-quant", "has nothing to quantize with --format " + options.format + " (use it with --format nf4 or fp4)");
  }
  return rules;
}

// "mlp.experts" matches "model.layers.3.mlp.experts.0.w1.weight"; "gate" matches the component "gate", not "gate_proj".
bool matches(const std::string& name, const std::string& module) {
  const std::string dotted = "." + name + ".";
  return dotted.find("." + module + ".") != std::string::npos;
}

// As the format of a whole model these quantize every parameter; the others what transformers and bitsandbytes replace.
bool takes_every_parameter(const Format& format) {
  constexpr std::string_view kNames[] = {"absmax", "absmax_row", "zeropoint", "minmax"};
  return std::find(std::begin(kNames), std::end(kNames), format.name()) != std::end(kNames);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void check_shape(const WeightRow& row, const Origin& origin, const TensorInfo& tensor, const std::string& file) {
  std::vector<int64_t> wanted;
  const bool vector = row.role == Role::norm || row.role == Role::bias;
  const int64_t rows = origin.fused_rows > 0 ? origin.fused_rows : row.rows.size();
  if (vector) {
    wanted = {rows * row.cols.size()};
  } else if (origin.transposed) {
    wanted = {row.cols.size(), rows};
  } else {
    wanted = {rows, row.cols.size()};
  }
  std::vector<int64_t> found = tensor.shape;
  if (origin.stacked >= 0) {
    if (found.size() != 3 || origin.stacked >= found[0]) {
      bad_input(file + ": " + tensor.name, "has shape " + shape_text(found) + " (must hold matrix " + std::to_string(origin.stacked) + " of a stack)");
    }
    found.erase(found.begin());
  }
  if (found != wanted) bad_input(file + ": " + tensor.name, "has shape " + shape_text(found) + " (config.json says " + shape_text(wanted) + ")");
}

bool all_zero(const TensorSource& source, const TensorInfo& tensor) {
  std::vector<std::byte> piece(std::min<uint64_t>(tensor.bytes, 1 << 20));
  for (uint64_t at = 0; at < tensor.bytes; at += piece.size()) {
    piece.resize(std::min<uint64_t>(piece.size(), tensor.bytes - at));
    source.read(tensor, {at, at + piece.size()}, piece.data());
    if (std::any_of(piece.begin(), piece.end(), [](std::byte b) { return b != std::byte{0}; })) return false;
  }
  return true;
}

// What the file holds besides, where leaving it out would change answers: layers and biases that the config does not speak of.
void check_unused(const Model& model, const Checkpoint& checkpoint, const std::set<std::string_view>& used) {
  const bool gguf = checkpoint.dialect == Dialect::gguf;
  const std::string layer_prefix = gguf ? "blk." : model.modules.layers;
  for (const TensorInfo& tensor : checkpoint.tensors->tensors()) {
    if (used.contains(tensor.name)) continue;
    const std::string where = checkpoint.tensors->file_name(tensor) + ": " + tensor.name;
    if (tensor.name.starts_with(layer_prefix)) {
      const int layer = std::atoi(tensor.name.c_str() + layer_prefix.size());
      if (layer >= model.shape.layers) {
        bad_input(where, "is of layer " + std::to_string(layer) + " (" + (gguf ? "block_count" : "num_hidden_layers") + " is " + std::to_string(model.shape.layers) + ": at most layer " +
                             std::to_string(model.shape.layers - 1) + ")");
      }
    }
    const bool bias = tensor.name.ends_with("_proj.bias") || (gguf && tensor.name.ends_with(".bias"));
    if (bias && !all_zero(*checkpoint.tensors, tensor)) {  // AutoGPTQ writes zeros for biases that a model does not have
      bad_input(where, "is a bias, and this " + std::string(model.family()) + " model has none there (attention_bias or mlp_bias in config.json, or another family)");
    }
  }
}

}  // namespace

const Format& config_format(const nlohmann::json& config) {
  for (const char* key : {"torch_dtype", "dtype"}) {
    if (!config.contains(key) || !config[key].is_string()) continue;
    const std::string type = config[key];
    if (type == "float32") return dense_format(DType::f32);
    if (type == "float16") return dense_format(DType::f16);
  }
  return dense_format(DType::bf16);
}

const Format& named_format(const std::string& name, bool double_quant) {
  const Format& plain = format(name);
  const auto* four = dynamic_cast<const FourBit*>(&plain);
  return double_quant && four ? *four_bit(four->codebook(), true, four->block()) : plain;
}

WeightFormats choose_formats(const Model& model, const Checkpoint& checkpoint, const FormatOptions& options) {
  const Rules rules = parse(options);
  std::vector<bool> used(rules.modules.size(), false);
  WeightFormats result;
  std::map<std::string, uint64_t> held_bytes;
  std::set<std::string_view> names;
  const Format* fallback = &config_format(checkpoint.config);
  const auto declared = checkpoint.tensors ? std::nullopt : declared_quantization(checkpoint);
  for (WeightId id = 0; id < model.weights.size(); ++id) {
    const WeightRow& row = model.weights[id];
    const TensorInfo* tensor = nullptr;
    const Format* stored = fallback;
    const Origin& origin = checkpoint.dialect == Dialect::gguf ? row.gguf : row.huggingface;
    if (checkpoint.tensors) {
      tensor = checkpoint.tensors->find(origin.tensor);
      // A checkpoint of the model without its head has names without the first part ("transformer.h.0..." is "h.0...").
      if (tensor == nullptr) tensor = checkpoint.tensors->find(origin.tensor.substr(origin.tensor.find('.') + 1));
      if (tensor == nullptr) {
        bad_input(checkpoint.path, "has no tensor " + origin.tensor + " (config.json asks for it: " + std::to_string(model.shape.layers) +
                                       " layers of family " + std::string(model.family()) + ")");
      }
      names.insert(tensor->name);
      check_shape(row, origin, *tensor, checkpoint.tensors->file_name(*tensor));
      stored = find_format(tensor->type);
      if (stored == nullptr) {
        bad_input(checkpoint.tensors->file_name(*tensor) + ": " + tensor->name, "is of type " + tensor->type + " (floating point, a GGUF block type or what quantization_config describes is needed)");
      }
    }
    const bool quantizable = row.role == Role::linear || row.role == Role::router;
    if (declared && quantizable && std::none_of(declared->skipped.begin(), declared->skipped.end(), [&](const auto& module) { return matches(row.name, module); })) {
      stored = declared->format;
    }
    const Format* held = stored;
    const bool vector = row.role == Role::norm || row.role == Role::bias;
    if (origin.transposed && !stored->is_dense()) {
      bad_input(checkpoint.path + ": " + origin.tensor, "is " + std::string(stored->name()) + " and stored [in, out] (floating point is needed)");
    }
    if (origin.plus != 0) held = &dense_format(DType::f32);  // the sum would be rounded
    if (rules.all && (quantizable || (takes_every_parameter(*rules.all) && origin.plus == 0))) held = rules.all;
    for (size_t i = 0; i < rules.modules.size(); ++i) {
      if (!matches(row.name, rules.modules[i].module)) continue;
      used[i] = true;
      if (!vector) held = rules.modules[i].format ? rules.modules[i].format : stored;
    }
    if (row.tied_to != kNoWeight) held = result.held[row.tied_to];  // one copy, one format
    (void)held->components(row.rows.size(), row.cols.size());        // refuses a shape that the format cannot hold
    if (!vector) held_bytes[std::string(held->name())] += stored_bytes(*held, row.rows.size(), row.cols.size());
    result.stored.push_back(stored);
    result.held.push_back(held);
    result.tensors.push_back(tensor);
  }
  if (checkpoint.tensors) check_unused(model, checkpoint, names);
  for (size_t i = 0; i < used.size(); ++i) {
    if (!used[i]) bad_input("--format", "names module " + rules.modules[i].module + ", which this model does not have (try lm_head, mlp, self_attn)");
  }
  std::vector<std::pair<uint64_t, std::string>> order;
  for (const auto& [name, bytes] : held_bytes) order.push_back({bytes, name});
  std::sort(order.rbegin(), order.rend());
  for (const auto& [bytes, name] : order) result.label += (result.label.empty() ? "" : " + ") + name;
  return result;
}

}  // namespace tandem
