#include "launch/solution.h"

#include <algorithm>
#include <cstdio>
#include <functional>

#include "sharding/paragraph.h"

namespace tandem {
namespace {

constexpr const char* kSchema = "tandem.solve/1";

nlohmann::ordered_json row_json(const SolutionRow& row) {
  return {{"context", row.context},           {"batch", row.batch},
          {"format", row.format},             {"gpus", row.gpus},
          {"devices", row.devices},           {"verdict", name(row.verdict)},
          {"device_bytes", row.device_bytes}, {"used_bytes", row.used_bytes},
          {"decode_tokens_per_second", row.decode_tokens_per_second}, {"binding", row.binding}};
}

template <class T>
nlohmann::ordered_json or_null(const std::optional<T>& value, nlohmann::ordered_json (*json)(const T&)) {
  return value ? json(*value) : nlohmann::ordered_json(nullptr);
}

std::string rate(double tokens_per_second) {
  if (tokens_per_second <= 0) return "";
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", tokens_per_second);
  return text;
}

std::string words(Verdict verdict) { return verdict == Verdict::no ? "does not fit" : std::string(name(verdict)); }

// What stops a row, short enough for a column: the first thing without its bytes.
std::string brief(const std::string& binding) { return binding.substr(0, std::min(binding.find(", which lacks"), binding.find(';'))); }

struct Column {
  const char* title;
  bool right, always;  // not always: only where rows differ
  std::string (*text)(const SolutionRow&);
};
constexpr Column kColumns[] = {
    {"context", true, true, [](const SolutionRow& r) { return std::to_string(r.context); }},
    {"batch", true, true, [](const SolutionRow& r) { return std::to_string(r.batch); }},
    {"format", false, false, [](const SolutionRow& r) { return r.format; }},
    {"gpus", false, false, [](const SolutionRow& r) { return r.gpus; }},
    {"used", true, true, [](const SolutionRow& r) { return human_bytes(r.used_bytes); }},
    {"tokens/s", true, true, [](const SolutionRow& r) { return rate(r.decode_tokens_per_second); }},
    {"verdict", false, true, [](const SolutionRow& r) { return words(r.verdict); }},
    {"stopped by", false, true, [](const SolutionRow& r) { return brief(r.binding); }},
};

}  // namespace

nlohmann::ordered_json to_json(const Solution& solution) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const SolutionRow& row : solution.rows) rows.push_back(row_json(row));
  return {{"schema", kSchema},
          {"solve", solution.question},
          {"verdict", name(solution.verdict)},
          {"answer", or_null(solution.answer, row_json)},
          {"next", or_null(solution.next, row_json)},
          {"binding", solution.binding},
          {"rows", rows},
          {"plan", or_null<Plan>(solution.plan, to_json)}};
}

std::string table(const Solution& solution, int columns) {
  const size_t width = static_cast<size_t>(std::clamp(columns, 60, 400));
  std::string out;
  wrap(out, solution.headline, width, 2);
  out += "\n";
  std::vector<SolutionRow> rows = solution.rows;
  // Beside a value that does not fit it says why; what stops the next of a value that fits is said where each row is an answer.
  const auto fits = [](const SolutionRow& row) { return row.verdict == Verdict::fits; };
  if (!std::all_of(rows.begin(), rows.end(), fits)) {
    for (SolutionRow& row : rows) row.binding = fits(row) ? "" : row.binding;
  }
  std::vector<std::string> lines(rows.size() + 1);
  for (const Column& column : kColumns) {
    std::vector<std::string> cells = {column.title};
    size_t widest = 0, wide = cells[0].size();
    for (const SolutionRow& row : rows) {
      cells.push_back(column.text(row));
      widest = std::max(widest, cells.back().size());
    }
    const bool differ = std::adjacent_find(cells.begin() + 1, cells.end(), std::not_equal_to<>()) != cells.end();
    if (widest == 0 || !(column.always || differ)) continue;
    wide = std::max(wide, widest);
    for (size_t i = 0; i < cells.size(); ++i) lines[i] += "  " + pad(cells[i], wide, column.right);
  }
  for (const std::string& line : lines) {
    const std::string shown = line.substr(0, width);
    out += shown.substr(0, shown.find_last_not_of(' ') + 1) + "\n";
  }
  out += "\n";
  if (!solution.binding.empty()) wrap(out, "binding: " + solution.binding + (solution.answer && solution.next ? " (beside the reserve)" : ""), width, 2);
  if (solution.plan) {
    const Plan& plan = *solution.plan;
    if (!plan.binding.empty()) wrap(out, "the plan's fullest: " + plan.binding, width, 2);
    for (const Remedy& remedy : plan.remedies) {
      wrap(out, remedy.change + ": gains " + human_bytes(remedy.gains_bytes) + (remedy.enough ? ", enough" : ", not enough alone"), width, 4, 2);
    }
  }
  return out;
}

}  // namespace tandem
