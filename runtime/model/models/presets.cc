#include "runtime/model/models/presets.h"

#include <algorithm>
#include <cctype>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/models/model.h"

namespace tandem {
namespace {

using nlohmann::json;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// Levenshtein's distance.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j < row.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string near_names(const std::string& asked) {
  constexpr size_t kShown = 3;
  const size_t owner = asked.rfind('/');
  const std::string name = owner == std::string::npos ? asked : asked.substr(owner + 1);
  std::vector<std::pair<size_t, std::string>> order;
  for (const PresetFile& file : preset_files()) order.push_back({distance(name, file.name), std::string(file.name)});
  std::sort(order.begin(), order.end());
  std::string near;
  for (size_t i = 0; i < std::min(kShown, order.size()); ++i) near += (i ? ", " : "") + order[i].second;
  return near;
}

json parse(const PresetFile& file) { return parse_json(file.text, "preset:" + std::string(file.name)); }

bool is_repository(const json& config, const std::string& asked) {
  const json& ids = config["repositories"];
  return std::any_of(ids.begin(), ids.end(), [&asked](const json& id) { return lower(id) == asked; });
}

}  // namespace

json preset_config(const std::string& name) {
  const std::string asked = lower(name);
  const bool full_id = asked.find('/') != std::string::npos;
  for (const PresetFile& file : preset_files()) {
    if (!full_id && asked != file.name) continue;
    json config = parse(file);
    if (full_id && !is_repository(config, asked)) continue;
    config.erase("repositories");
    return config;
  }
  fail(Code::not_found, "preset:" + name, "is not known (near: " + near_names(asked) + "; all: tandem plan --list-presets)");
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const PresetFile& file : preset_files()) names.emplace_back(file.name);
  return names;
}

}  // namespace tandem
