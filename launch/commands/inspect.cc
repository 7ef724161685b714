// tandem inspect: what a model is made of and what it costs; one tensor as numbers.
#include <cstdio>

#include "kernels/base/error.h"
#include "kernels/cpu/backend.h"
#include "launch/commands/commands.h"
#include "launch/module_tree.h"
#include "launch/npy.h"
#include "launch/options.h"
#include "launch/terminal.h"
#include "runtime/model/loader.h"
#include "sharding/cluster.h"

namespace tandem {
namespace {

struct Options {
  ModelOptions model;
  std::string tensor, output;
  bool dequantize = false, json = false;
};

// ---- one tensor

struct Found {                  // a matrix of the model, or all experts' matrices of one GGUF tensor
  std::vector<WeightId> rows;
  std::vector<int64_t> shape;
};

std::vector<int64_t> shape_of(const WeightRow& row) {
  if (row.role == Role::norm || row.role == Role::bias) return {row.elements()};
  return {row.rows.size(), row.cols.size()};
}

Found find_tensor(const Model& model, const std::string& name) {
  if (const WeightId id = model.weights.find(name); id != kNoWeight) return {{id}, shape_of(model.weights[id])};
  Found found;
  for (WeightId id = 0; id < model.weights.size(); ++id) {
    const WeightRow& row = model.weights[id];
    if (row.gguf.tensor != name || row.tied_to != kNoWeight) continue;
    found.rows.push_back(id);
    found.shape = shape_of(row);
    if (row.gguf.stacked < 0) return found;
  }
  if (found.rows.empty()) {
    bad_input("--tensor", "is " + name + ", which this model does not have (a name as model.layers.0.self_attn.q_proj.weight or blk.0.attn_q.weight)");
  }
  found.shape.insert(found.shape.begin(), static_cast<int64_t>(found.rows.size()));
  return found;
}

const Format* asked_format(const Options& o) {
  if (o.model.format == "keep") return nullptr;
  if (o.model.format.find_first_of(",=") != std::string::npos) bad_input("--format", "is " + o.model.format + " (one format for the one tensor)");
  const Format& asked = named_format(o.model.format, o.model.double_quant);
  if (o.model.double_quant && asked.reach() != Reach::whole) bad_input("--double-quant", "has nothing to quantize with --format " + o.model.format + " (use it with --format nf4 or fp4)");
  return &asked;
}

// Through `format` and back, as a model quantized so would compute with them.
void round_trip(const Format& format, int64_t rows, int64_t cols, std::vector<float>& values) {
  std::vector<std::vector<std::byte>> stored;
  std::vector<std::byte*> out;
  QuantizedView view{&format, rows, cols, {}};
  for (const Component& component : format.components(rows, cols)) stored.emplace_back(component.bytes);
  for (size_t i = 0; i < stored.size(); ++i) {
    out.push_back(stored[i].data());
    view.data[i] = stored[i].data();
  }
  format.quantize(values.data(), rows, cols, out);
  format.dequantize(view, 0, rows, values.data());
}

int write_tensor(const Options& o) {
  if (!o.dequantize || o.output.empty()) bad_input("--tensor", "is given without --dequantize and -o (as in --tensor NAME --dequantize -o FILE.npy)");
  const Format* const through = asked_format(o);
  // Files hold what they hold; made-up weights are made in the format that is asked for.
  const auto seed = synthetic_seed(o.model);
  const FormatOptions formats = seed ? FormatOptions{o.model.format, o.model.double_quant} : FormatOptions{};
  const Blueprint blueprint = make_blueprint(o.model.model, formats, arithmetic_of(o.model, false), seed);
  const Model& model = *blueprint.model;
  const Found found = find_tensor(model, o.tensor);
  if (!blueprint.checkpoint.tensors) bad_input(o.model.model, "holds no weights (a directory with safetensors or a .gguf file has some)");
  NpyWriter file(o.output, found.shape);
  std::vector<float> values;
  for (const WeightId id : found.rows) {
    const WeightRow& row = model.weights[id];
    const int64_t rows = row.rows.size(), cols = row.cols.size();
    const LoadedSlice slice = load_slice(blueprint, id, {0, rows, 0, cols});
    values.resize(static_cast<size_t>(rows * cols));
    slice.view.format->dequantize(slice.view, 0, rows, values.data());
    if (through && through != slice.view.format) round_trip(*through, rows, cols, values);
    file.write(values);
  }
  file.finish();
  return 0;
}

// ---- the model

nlohmann::ordered_json to_json(const Blueprint& blueprint, const std::vector<ModuleRow>& rows, uint64_t device_bytes) {
  nlohmann::ordered_json json;
  json["parameters"] = parameters(*blueprint.model);
  json["footprint_bytes"] = footprint_bytes(blueprint);
  json["device_bytes"] = device_bytes;
  json["modules"] = nlohmann::ordered_json::array();
  for (const ModuleRow& row : rows) {
    json["modules"].push_back({{"name", row.name}, {"class", row.class_name}, {"shape", row.shape}, {"dtype", row.dtype}, {"format", row.format},
                               {"footprint_bytes", row.footprint_bytes}, {"device_bytes", row.device_bytes}});
  }
  return json;
}

std::string grouped(uint64_t number) {
  std::string text = std::to_string(number);
  for (size_t at = text.size(); at > 3; at -= 3) text.insert(at - 3, ",");
  return text;
}

int inspect(const Options& o) {
  if (!o.tensor.empty()) return write_tensor(o);
  if (o.dequantize || !o.output.empty()) bad_input("--tensor", "is missing (which tensor to write)");
  const Blueprint blueprint = make_blueprint(o.model, false);
  const auto backend = cpu::make_cpu_backend(1);
  const std::vector<ModuleRow> rows = module_rows(blueprint, *backend);
  uint64_t device_bytes = 0;
  for (const ModuleRow& row : rows) device_bytes += row.device_bytes;
  if (o.json) {
    write_now(stdout, to_json(blueprint, rows, device_bytes).dump() + "\n");
    return 0;
  }
  const uint64_t footprint = footprint_bytes(blueprint);
  std::string text = module_tree(blueprint, rows) + "\n\n";
  const auto line = [&text](const std::string& label, uint64_t number, const std::string& unit, const std::string& note) {
    char row[200];
    std::snprintf(row, sizeof row, "%-14s %18s%s  %s\n", label.c_str(), grouped(number).c_str(), unit.c_str(), note.c_str());
    text += row;
  };
  line("parameters", parameters(*blueprint.model), "      ", "tied ones once");
  line("footprint", footprint, " bytes", human_bytes(footprint) + ", as transformers' get_memory_footprint()");
  line("device bytes", device_bytes, " bytes", human_bytes(device_bytes) + ", weights and scales as this CPU's kernels hold them");
  text += "format         " + blueprint.formats.label + "\n";
  write_now(stdout, text);
  return 0;
}

}  // namespace

Command add_inspect(CLI::App& app) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* command = app.add_subcommand("inspect", "Modules, parameters and bytes of a model; one tensor as numbers");
  add_options(*command, o.model);
  command->get_option("MODEL")->description("Hugging Face directory, .gguf file, config.json or preset:NAME");
  command->add_option("--tensor", o.tensor, "a tensor by its Hugging Face or GGUF name; --format quantizes it on the way");
  command->add_flag("--dequantize", o.dequantize, "write it as float32, rows in Hugging Face's order");
  command->add_option("-o,--output", o.output, "NumPy file to write");
  command->add_flag("--json", o.json, "the modules as JSON");
  command->footer("Examples: tandem inspect preset:llama-3.1-8b --format nf4\n"
                  "          tandem inspect SmolLM2.gguf --tensor blk.0.attn_q.weight --dequantize -o q.npy");
  return {command, [options] { return inspect(*options); }};
}

}  // namespace tandem
