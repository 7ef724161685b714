#include "runtime/model/checkpoint/config.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {
namespace {

using nlohmann::json;

// The parser itself keeps its state on the heap, but what walks the document afterwards recurses.
int depth(std::string_view text) {
  int open = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++open);
    } else if (c == '}' || c == ']') {
      --open;
    }
  }
  return deepest;
}

std::string spelled(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

// The value as a message shows it.
std::string shown(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  if (value.is_string()) return "the text " + in_quotes(value.get_ref<const std::string&>());
  return value.dump();
}

std::string range(int64_t least, int64_t most) { return std::to_string(least) + " to " + std::to_string(most); }

std::optional<int64_t> as_integer(const json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {  // some writers put 4096.0
    const double number = value.get<double>();
    if (std::abs(number) < 0x1p53 && number == std::floor(number)) return static_cast<int64_t>(number);
  }
  return std::nullopt;
}

}  // namespace

json parse_json(std::string_view text, const std::string& where) {
  if (depth(text) > kMaxJsonDepth) bad_input(where, "JSON values are nested deeper than " + std::to_string(kMaxJsonDepth) + " (at most that deep)");
  if (text.find('\0') != std::string_view::npos) bad_input(where, "the JSON text has a NUL byte (the parser would stop there)");
  try {
    return json::parse(text);
  } catch (const json::parse_error& error) {
    bad_input(where, "the JSON text is broken at its byte " + std::to_string(error.byte) + " (it must be UTF-8 and complete)");
  } catch (const json::exception& error) {
    bad_input(where, "the JSON text has a value that cannot be held (" + std::string(error.what()) + ")");
  }
}

json read_json_object(const std::string& path, uint64_t limit) {
  json value = parse_json(read_text(path, limit), path);
  if (!value.is_object()) bad_input(path, "is " + shown(value) + " (must be a JSON object)");
  return value;
}

Config::Config(json object, std::string file) : object_(std::move(object)), file_(std::move(file)) {
  if (!object_.is_object()) bad_input(file_, "is " + shown(object_) + " (must be a JSON object)");
}

void Config::bad(std::string_view key, const std::string& message) const { bad_input(file_ + ": " + prefix_ + std::string(key), message); }

const json* Config::find(std::string_view key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const json& Config::require(std::string_view key, const std::string& right) const {
  const json* value = find(key);
  if (!value) bad(key, "is missing (must be " + right + ")");
  return *value;
}

int64_t Config::integer(std::string_view key, int64_t least, int64_t most) const {
  const json& value = require(key, "a whole number from " + range(least, most));
  const auto number = as_integer(value);
  if (!number) bad(key, "is " + shown(value) + " (must be a whole number from " + range(least, most) + ")");
  if (*number < least || *number > most) bad(key, "is " + std::to_string(*number) + " (must be " + range(least, most) + ")");
  return *number;
}
int64_t Config::integer(std::string_view key, int64_t least, int64_t most, int64_t fallback) const {
  return has(key) ? integer(key, least, most) : fallback;
}

double Config::number(std::string_view key, double least, double most) const {
  const json& value = require(key, "a number from " + spelled(least) + " to " + spelled(most));
  const double number = value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(number >= least && number <= most)) {
    bad(key, "is " + shown(value) + " (must be a number from " + spelled(least) + " to " + spelled(most) + ")");
  }
  return number;
}
double Config::number(std::string_view key, double least, double most, double fallback) const {
  return has(key) ? number(key, least, most) : fallback;
}

bool Config::boolean(std::string_view key, bool fallback) const {
  const json* value = find(key);
  if (!value) return fallback;
  if (!value->is_boolean()) bad(key, "is " + shown(*value) + " (must be true or false)");
  return value->get<bool>();
}

std::string Config::text(std::string_view key) const {
  const json& value = require(key, "text");
  if (!value.is_string()) bad(key, "is " + shown(value) + " (must be text)");
  return value.get<std::string>();
}
std::string Config::text(std::string_view key, std::string_view fallback) const { return has(key) ? text(key) : std::string(fallback); }

std::vector<int64_t> Config::integers(std::string_view key, int64_t least, int64_t most, size_t longest) const {
  const json* value = find(key);
  if (!value) return {};
  if (!value->is_array()) return {integer(key, least, most)};
  if (value->size() > longest) bad(key, "has " + std::to_string(value->size()) + " elements (at most " + std::to_string(longest) + ")");
  std::vector<int64_t> out;
  for (const json& element : *value) {
    const auto number = as_integer(element);
    if (!number || *number < least || *number > most)
      bad(key, "holds " + shown(element) + " (must be whole numbers from " + range(least, most) + ")");
    out.push_back(*number);
  }
  return out;
}

std::vector<double> Config::numbers(std::string_view key, double least, double most, size_t longest) const {
  const json* value = find(key);
  if (!value) return {};
  if (!value->is_array()) return {number(key, least, most)};
  if (value->size() > longest) bad(key, "has " + std::to_string(value->size()) + " elements (at most " + std::to_string(longest) + ")");
  std::vector<double> out;
  for (const json& element : *value) {
    const double number = element.is_number() ? element.get<double>() : std::numeric_limits<double>::quiet_NaN();
    if (!(number >= least && number <= most)) {
      bad(key, "holds " + shown(element) + " (must be numbers from " + spelled(least) + " to " + spelled(most) + ")");
    }
    out.push_back(number);
  }
  return out;
}

std::vector<std::string> Config::texts(std::string_view key, size_t longest) const {
  const json* value = find(key);
  if (!value) return {};
  if (!value->is_array()) return {text(key)};
  if (value->size() > longest) bad(key, "has " + std::to_string(value->size()) + " elements (at most " + std::to_string(longest) + ")");
  std::vector<std::string> out;
  for (const json& element : *value) {
    if (!element.is_string()) bad(key, "holds " + shown(element) + " (must be text)");
    out.push_back(element.get<std::string>());
  }
  return out;
}

Config Config::object(std::string_view key) const {
  const json* value = find(key);
  if (value && !value->is_object()) bad(key, "is " + shown(*value) + " (must be an object)");
  Config inner(value ? *value : json::object(), file_);
  inner.prefix_ = prefix_ + std::string(key) + ".";
  return inner;
}

Config Config::rope() const {
  const bool has_new = has("rope_parameters");
  Config out = object(has_new ? "rope_parameters" : "rope_scaling");
  json& parameters = out.object_;
  if (!parameters.contains("rope_type")) parameters["rope_type"] = parameters.contains("type") ? parameters["type"] : json("default");
  parameters.erase("type");
  // rope_theta stays beside rope_scaling in the old spelling; some files of the new one still have both.
  for (const char* key : {"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}) {
    if (!parameters.contains(key) && has(key)) parameters[key] = object_.at(key);
  }
  return out;
}

std::optional<DType> Config::dtype() const {
  const std::string_view key = has("torch_dtype") ? "torch_dtype" : "dtype";
  if (!has(key)) return std::nullopt;
  std::string name = text(key);
  if (name.starts_with("torch.")) name.erase(0, 6);
  if (name == "float32") return DType::f32;
  if (name == "float16") return DType::f16;
  if (name == "bfloat16") return DType::bf16;
  bad(key, "is " + in_quotes(name) + " (must be float32, float16 or bfloat16)");
}

}  // namespace tandem
