// JSON that comes from outside, read with bounds: every value is asked for with its type and range, and what is wrong is said with file
// and key. Values only; any thread.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"

namespace tandem {

constexpr uint64_t kConfigLimit = 4 << 20;
constexpr int kMaxJsonDepth = 64;

// Errors: Code::invalid_argument naming `where` when the text is broken or nested deeper than kMaxJsonDepth.
nlohmann::json parse_json(std::string_view text, const std::string& where);
// A file that holds one JSON object. Errors: those of read_text and parse_json; Code::invalid_argument when it is no object.
nlohmann::json read_json_object(const std::string& path, uint64_t limit = kConfigLimit);

// An object whose values are asked for. A key that is absent or null takes the fallback; without one it is an error.
// Errors: Code::invalid_argument, "config.json: num_hidden_layers: is -3 (must be 1 to 1024)".
class Config {
 public:
  Config(nlohmann::json object, std::string file);

  bool has(std::string_view key) const { return find(key) != nullptr; }  // present and not null
  int64_t integer(std::string_view key, int64_t least, int64_t most) const;
  int64_t integer(std::string_view key, int64_t least, int64_t most, int64_t fallback) const;
  double number(std::string_view key, double least, double most) const;
  double number(std::string_view key, double least, double most, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string text(std::string_view key) const;
  std::string text(std::string_view key, std::string_view fallback) const;
  // One value or a list of them; empty when absent. Errors: also when there are more than `longest`.
  std::vector<int64_t> integers(std::string_view key, int64_t least, int64_t most, size_t longest) const;
  std::vector<double> numbers(std::string_view key, double least, double most, size_t longest) const;
  std::vector<std::string> texts(std::string_view key, size_t longest) const;
  Config object(std::string_view key) const;  // an empty one when absent

  // Both spellings of a configuration. Rotary parameters as one object: {"rope_type", "rope_theta" (if given), "factor", ...}, whether
  // the file has rope_theta + rope_scaling or rope_parameters.
  Config rope() const;
  std::optional<DType> dtype() const;  // torch_dtype or dtype

  [[noreturn]] void bad(std::string_view key, const std::string& message) const;
  const nlohmann::json& raw() const { return object_; }
  const std::string& file() const { return file_; }

 private:
  const nlohmann::json* find(std::string_view key) const;
  const nlohmann::json& require(std::string_view key, const std::string& right) const;

  nlohmann::json object_;
  std::string file_;    // for messages
  std::string prefix_;  // "rope_scaling." in an inner object
};

}  // namespace tandem
