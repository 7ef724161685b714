#include "launch/weight_survey.h"

#include <algorithm>
#include <atomic>
#include <cstdio>

#include "kernels/base/error.h"
#include "kernels/base/threads.h"
#include "launch/progress.h"

namespace tandem {
namespace {

using nlohmann::ordered_json;

std::vector<int64_t> shape_of(const WeightRow& row) {
  if (row.role == Role::norm || row.role == Role::bias) return {row.elements()};
  return {row.rows.size(), row.cols.size()};
}

std::string shape_text(const WeightRow& row) {
  std::string text = "[";
  for (const int64_t side : shape_of(row)) text += (text.size() > 1 ? ", " : "") + std::to_string(side);
  return text + "]";
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

std::string decibels(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", value);
  return text;
}

// Columns as wide as what is in them; the first to the left, the others to the right.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - row[i].size(), ' ');
      line += i == 0 ? row[i] + space : "  " + space + row[i];
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

const Format* tried(const SurveyedWeight& weight) { return weight.formats.empty() ? nullptr : weight.formats[0]; }

FormatError total(const std::vector<SurveyedWeight>& weights, size_t format) {
  FormatError sum;
  for (const SurveyedWeight& weight : weights) {
    if (weight.formats.at(format) != nullptr) sum.add(weight.report.errors[format]);
  }
  return sum;
}

double bits(const FormatError& error) { return error.count > 0 ? 8.0 * static_cast<double>(error.bytes) / static_cast<double>(error.count) : 0; }

}  // namespace

std::vector<SurveyedWeight> weights_of(const Blueprint& blueprint) {
  std::vector<SurveyedWeight> list;
  for (WeightId id = 0; id < blueprint.model->weights.size(); ++id) {
    if (blueprint.model->weights[id].tied_to == kNoWeight) list.push_back({id});
  }
  return list;
}

std::vector<SurveyedWeight> weights_of(const Blueprint& blueprint, const std::string& name, const std::string& option) {
  if (name == "all") return weights_of(blueprint);
  std::vector<SurveyedWeight> list;
  for (const SurveyedWeight& weight : weights_of(blueprint)) {
    const WeightRow& row = blueprint.model->weights[weight.id];
    if (row.name == name || row.gguf.tensor == name || row.huggingface.tensor == name) list.push_back(weight);
  }
  if (list.empty()) bad_input(option, "is " + name + ", which this model does not have (all, or a name as model.layers.0.self_attn.q_proj.weight)");
  return list;
}

void survey(const Blueprint& blueprint, std::vector<SurveyedWeight>& weights, std::vector<NumberBins>* histograms) {
  if (!blueprint.checkpoint.tensors) bad_input(blueprint.checkpoint.path, "holds no weights (a directory with safetensors or a .gguf file has some)");
  uint64_t total = 0;
  for (const SurveyedWeight& weight : weights) total += static_cast<uint64_t>(blueprint.model->weights[weight.id].elements());
  Progress progress("weights", 1, "numbers");
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done{0};
  Team team(static_cast<int>(std::clamp<size_t>(weights.size(), 1, static_cast<size_t>(allowed_cores()))));
  team.run([&](int) {
    for (size_t i; (i = next++) < weights.size();) {
      weights[i].report = examine_weight(blueprint, weights[i].id, weights[i].formats, histograms ? &(*histograms)[i] : nullptr);
      progress.update(0, done += static_cast<uint64_t>(blueprint.model->weights[weights[i].id].elements()), total);
    }
  });
}

std::string tensor_table(const Blueprint& blueprint, const std::vector<SurveyedWeight>& weights) {
  const bool errors = std::any_of(weights.begin(), weights.end(), [](const SurveyedWeight& w) { return tried(w) != nullptr; });
  std::vector<std::vector<std::string>> rows = {{"tensor", "dtype", "shape", "min", "max", "mean", "|x|>6"}};
  if (errors) rows[0].insert(rows[0].end(), {"format", "largest error", "rms error", "SQNR dB"});
  for (const SurveyedWeight& weight : weights) {
    const WeightRow& row = blueprint.model->weights[weight.id];
    const NumberStatistics& n = weight.report.numbers;
    rows.push_back({row.name, std::string(blueprint.formats.stored[static_cast<size_t>(weight.id)]->name()), shape_text(row), number(n.min), number(n.max), number(n.mean()), std::to_string(n.outliers)});
    if (!errors) continue;
    if (tried(weight) == nullptr) {
      rows.back().insert(rows.back().end(), {"", "", "", ""});
      continue;
    }
    const FormatError& e = weight.report.errors[0];
    rows.back().insert(rows.back().end(), {std::string(tried(weight)->name()), number(e.largest), number(e.rms()), decibels(e.sqnr())});
  }
  return table(rows);
}

ordered_json tensor_json(const Blueprint& blueprint, const std::vector<SurveyedWeight>& weights) {
  ordered_json list = ordered_json::array();
  for (const SurveyedWeight& weight : weights) {
    const WeightRow& row = blueprint.model->weights[weight.id];
    const NumberStatistics& n = weight.report.numbers;
    list.push_back({{"name", row.name}, {"dtype", blueprint.formats.stored[static_cast<size_t>(weight.id)]->name()}, {"shape", shape_of(row)}, {"min", n.min}, {"max", n.max}, {"mean", n.mean()},
                    {"outliers", n.outliers}, {"not_finite", n.not_finite}});
    if (tried(weight) == nullptr) continue;
    const FormatError& e = weight.report.errors[0];
    list.back().update({{"format", tried(weight)->name()}, {"bits", bits(e)}, {"error_max", e.largest}, {"error_rms", e.rms()}, {"sqnr_db", e.sqnr()}});
  }
  return list;
}

std::string format_table(const std::vector<std::string>& names, const std::vector<SurveyedWeight>& weights) {
  std::vector<std::vector<std::string>> rows = {{"format", "bytes", "bits a weight", "largest error", "rms error", "SQNR dB"}};
  for (size_t i = 0; i < names.size(); ++i) {
    const FormatError e = total(weights, i);
    rows.push_back({names[i], std::to_string(e.bytes), decibels(bits(e)), number(e.largest), number(e.rms()), decibels(e.sqnr())});
  }
  return table(rows);
}

ordered_json format_json(const std::vector<std::string>& names, const std::vector<SurveyedWeight>& weights) {
  ordered_json list = ordered_json::array();
  for (size_t i = 0; i < names.size(); ++i) {
    const FormatError e = total(weights, i);
    list.push_back({{"format", names[i]}, {"weights", e.count}, {"bytes", e.bytes}, {"bits", bits(e)}, {"error_max", e.largest}, {"error_rms", e.rms()}, {"sqnr_db", e.sqnr()}});
  }
  return list;
}

std::vector<std::string> split_formats(const std::string& list, const std::string& option) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    names.push_back(list.substr(begin, end - begin));
    begin = end + 1;
    if (names.back().empty()) bad_input(option, "is '" + list + "' (must be formats, as nf4,int8)");
    if (names.size() > 64) bad_input(option, "names more than 64 formats (must be a few)");
  }
  return names;
}

}  // namespace tandem
