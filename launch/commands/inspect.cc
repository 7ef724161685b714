// tandem inspect: what a model is made of and what it costs; its tensors as numbers, and what formats do to them.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "kernels/base/error.h"
#include "kernels/cpu/backend.h"
#include "kernels/formats/quantized_copy.h"
#include "launch/commands/commands.h"
#include "launch/histogram_picture.h"
#include "launch/module_tree.h"
#include "launch/npy.h"
#include "launch/options.h"
#include "launch/output_file.h"
#include "launch/terminal.h"
#include "launch/weight_survey.h"
#include "runtime/model/loader.h"
#include "sharding/cluster.h"

namespace tandem {
namespace {

struct Options {
  ModelOptions model;
  std::string tensor, output, compare, histogram, html, svg;
  bool dequantize = false, json = false, tensors = false;
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
    if (through && through != slice.view.format) round_trip(*through, values.data(), rows, cols, values.data());
    file.write(values);
  }
  file.finish();
  return 0;
}

// ---- all tensors

// The weights as the files hold them, whatever --format says: that is what formats are held against.
Blueprint originals(const Options& o) {
  if (!o.model.weights.empty()) bad_input("--weights", "is given together with --tensors, --compare or --histogram (which look at the files' own)");
  return make_blueprint(o.model.model, {}, arithmetic_of(o.model, false));
}

// Some formats are read from files and cannot be made from numbers.
void check_makes(const Format& format, const std::string& asked) {
  const std::vector<float> zeros(static_cast<size_t>(format.block()));
  try {
    quantized_copy(format, zeros.data(), 1, format.block());
  } catch (const Error& error) {
    bad_input("--format", "is " + asked + ": " + error.message);
  }
}

// What `format` makes of each weight; null where it stays as it is.
std::vector<const Format*> held_in(const Blueprint& blueprint, const std::string& format, bool double_quant) {
  std::vector<const Format*> held = choose_formats(*blueprint.model, blueprint.checkpoint, {format, double_quant}).held;
  for (WeightId id = 0; id < blueprint.model->weights.size(); ++id) {
    const auto i = static_cast<size_t>(id);
    const Origin& origin = blueprint.checkpoint.dialect == Dialect::gguf ? blueprint.model->weights[id].gguf : blueprint.model->weights[id].huggingface;
    if (held[i] == blueprint.formats.stored[i] || origin.plus != 0) held[i] = nullptr;
    if (held[i] != nullptr) check_makes(*held[i], format);
  }
  return held;
}

void print(const std::string& text) { write_now(stdout, text); }

int show_tensors(const Options& o) {
  const Blueprint blueprint = originals(o);
  std::vector<SurveyedWeight> weights = weights_of(blueprint);
  if (o.model.format != "keep") {
    const auto held = held_in(blueprint, o.model.format, o.model.double_quant);
    for (SurveyedWeight& weight : weights) weight.formats = {held[static_cast<size_t>(weight.id)]};
  }
  survey(blueprint, weights);
  print(o.json ? nlohmann::ordered_json{{"tensors", tensor_json(blueprint, weights)}}.dump() + "\n" : tensor_table(blueprint, weights));
  return 0;
}

int compare_formats(const Options& o) {
  if (o.model.format != "keep") bad_input("--compare", "is given together with --format (it names the formats itself)");
  const std::vector<std::string> names = split_formats(o.compare, "--compare");
  const Blueprint blueprint = originals(o);
  std::vector<SurveyedWeight> weights;
  for (SurveyedWeight& weight : weights_of(blueprint)) {
    const Role role = blueprint.model->weights[weight.id].role;
    if (role == Role::linear || role == Role::router) weights.push_back(weight);
  }
  for (const std::string& name : names) {
    if (find_format(name) == nullptr) format(name);  // refuses, and lists what is known
    const auto held = held_in(blueprint, name, o.model.double_quant);
    for (SurveyedWeight& weight : weights) {
      const Format* format = held[static_cast<size_t>(weight.id)];
      weight.formats.push_back(format ? format : blueprint.formats.stored[static_cast<size_t>(weight.id)]);
    }
  }
  survey(blueprint, weights);
  print(o.json ? nlohmann::ordered_json{{"formats", format_json(names, weights)}}.dump() + "\n"
               : "the " + std::to_string(weights.size()) + " linear layers of " + blueprint.checkpoint.name + ", quantized and back, against what is stored (" + blueprint.formats.label + ")\n\n" + format_table(names, weights));
  return 0;
}

// ---- distributions

constexpr size_t kBins = 128;
constexpr double kReach = 5;  // deviations from zero, at most

NumberBins empty_bins(const NumberStatistics& n, bool quantized) {
  const double finite = static_cast<double>(n.count - n.not_finite), most = std::max(std::fabs(n.min), std::fabs(n.max));
  const double edge = finite > 0 ? std::min(most, kReach * std::sqrt(n.squares / finite)) : 0;
  return {-edge, edge, std::vector<uint64_t>(kBins), std::vector<uint64_t>(quantized ? kBins : 0)};
}

HistogramPicture picture_of(const std::string& title, const std::string& about, const std::string& format, const NumberStatistics& n, const FormatError* error, NumberBins bins) {
  char caption[240];
  if (error) {
    std::snprintf(caption, sizeof caption, "%s, %.4g to %.4g; %s: largest error %.4g, rms %.4g, SQNR %.2f dB", about.c_str(), n.min, n.max, format.c_str(), error->largest, error->rms(), error->sqnr());
  } else {
    std::snprintf(caption, sizeof caption, "%s, %.4g to %.4g, mean %.4g", about.c_str(), n.min, n.max, n.mean());
  }
  return {title, caption, format, std::move(bins)};
}

int show_histograms(const Options& o) {
  const Blueprint blueprint = originals(o);
  std::vector<SurveyedWeight> weights = weights_of(blueprint, o.histogram, "--histogram");
  const bool all = o.histogram == "all", quantized = o.model.format != "keep";
  if (quantized) {
    const auto held = held_in(blueprint, o.model.format, o.model.double_quant);
    const auto stays = [&](const SurveyedWeight& weight) { return held[static_cast<size_t>(weight.id)] == nullptr; };
    if (all) std::erase_if(weights, stays);  // what the format does not touch has nothing to show
    if (weights.empty() || std::any_of(weights.begin(), weights.end(), stays)) bad_input("--format", "is " + o.model.format + ", which leaves " + o.histogram + " as it is (name a weight that it changes)");
    for (SurveyedWeight& weight : weights) weight.formats = {held[static_cast<size_t>(weight.id)]};
  }
  std::vector<SurveyedWeight> ranges = weights;
  for (SurveyedWeight& weight : ranges) weight.formats.clear();
  survey(blueprint, ranges);
  NumberStatistics together;
  for (const SurveyedWeight& weight : ranges) together.add(weight.report.numbers);

  std::vector<HistogramPicture> pictures;
  if (all) {  // on one scale, to be added up
    std::vector<NumberBins> bins(weights.size(), empty_bins(together, quantized));
    survey(blueprint, weights, &bins);
    NumberBins sum = empty_bins(together, quantized);
    FormatError error;
    for (size_t i = 0; i < bins.size(); ++i) {
      for (size_t b = 0; b < kBins; ++b) {
        sum.original[b] += bins[i].original[b];
        if (quantized) sum.quantized[b] += bins[i].quantized[b];
      }
      if (quantized) error.add(weights[i].report.errors[0]);
    }
    pictures.push_back(picture_of("all " + std::to_string(weights.size()) + " weights together", std::to_string(together.count) + " numbers", quantized ? o.model.format : "", together, quantized ? &error : nullptr, std::move(sum)));
  }
  if (!all || !o.html.empty() || !o.svg.empty()) {
    std::vector<NumberBins> bins;
    for (const SurveyedWeight& weight : ranges) bins.push_back(empty_bins(weight.report.numbers, quantized));
    survey(blueprint, weights, &bins);
    for (size_t i = 0; i < weights.size(); ++i) {
      const WeightRow& row = blueprint.model->weights[weights[i].id];
      const std::string about = "[" + std::to_string(row.rows.size()) + ", " + std::to_string(row.cols.size()) + "] " + std::string(blueprint.formats.stored[static_cast<size_t>(weights[i].id)]->name());
      pictures.push_back(picture_of(row.name, about, quantized ? std::string(weights[i].formats[0]->name()) : "", weights[i].report.numbers, quantized ? &weights[i].report.errors[0] : nullptr, std::move(bins[i])));
    }
  }
  for (const auto& [option, path] : {std::pair<std::string, std::string>{"--html", o.html}, {"--svg", o.svg}}) {
    if (path.empty()) continue;
    OutputFile file(option, path);
    file.write(option == "--html" ? histogram_html(blueprint.checkpoint.name + (quantized ? " in " + o.model.format : ""), pictures) : histogram_svg(pictures));
    file.finish();
  }
  if (o.json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const HistogramPicture& p : pictures) list.push_back({{"name", p.title}, {"format", p.format}, {"low", p.bins.low}, {"high", p.bins.high}, {"original", p.bins.original}, {"quantized", p.bins.quantized}});
    print(nlohmann::ordered_json{{"histograms", list}}.dump() + "\n");
  } else if (o.html.empty() && o.svg.empty()) {
    for (const HistogramPicture& p : pictures) print(histogram_bars(p, columns(stdout)) + "\n");
  }
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
  const int views = !o.tensor.empty() + o.tensors + !o.compare.empty() + !o.histogram.empty();
  if (views > 1) bad_input("--tensors", "is given with another view (one of --tensor, --tensors, --compare, --histogram)");
  if (o.histogram.empty() && (!o.html.empty() || !o.svg.empty())) bad_input("--histogram", "is missing (which weight to draw, or all)");
  if (!o.tensor.empty()) return write_tensor(o);
  if (views > 0 && (o.dequantize || !o.output.empty())) bad_input("--dequantize", "goes with --tensor NAME alone");
  if (o.tensors) return show_tensors(o);
  if (!o.compare.empty()) return compare_formats(o);
  if (!o.histogram.empty()) return show_histograms(o);
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
  command->add_flag("--tensors", o.tensors, "a line a tensor: range, mean, outliers; with --format what it changes (SQNR: signal over error)");
  command->add_option("--compare", o.compare, "formats held against each other over the linear layers: nf4,int8,absmax,zeropoint");
  command->add_option("--histogram", o.histogram, "how a weight's numbers lie, or all weights': bars; with --format before and after");
  command->add_option("--html", o.html, "--histogram as a page, all: every weight's");
  command->add_option("--svg", o.svg, "--histogram as a picture");
  command->add_flag("--json", o.json, "for machines");
  command->footer("Examples: tandem inspect preset:llama-3.1-8b --format nf4\n"
                  "          tandem inspect SmolLM2-135M --compare nf4,fp4,int8,absmax\n"
                  "          tandem inspect SmolLM2.gguf --tensor blk.0.attn_q.weight --dequantize -o q.npy");
  return {command, [options] { return inspect(*options); }};
}

}  // namespace tandem
