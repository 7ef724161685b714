// Typed reading of untrusted JSON: a value with the name of its file and its path, so that every refusal says where. Borrows the
// value; belongs to one thread.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tandem {

class JsonField {
 public:
  JsonField(const nlohmann::json& value, std::string file, std::string path)
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& file() const { return file_; }
  const std::string& path() const { return path_; }
  [[noreturn]] void refuse(std::string_view what) const;  // "<file>: <path> <what>"

  bool has(std::string_view name) const;  // an object that has this member, not null
  JsonField at(std::string_view name) const;
  std::vector<JsonField> elements() const;  // of an array

  std::string text() const;
  bool flag() const;
  int64_t integer(int64_t low, int64_t high) const;
  std::string text(std::string_view name, std::string_view absent) const { return has(name) ? at(name).text() : std::string(absent); }
  bool flag(std::string_view name, bool absent) const { return has(name) ? at(name).flag() : absent; }
  int64_t integer(std::string_view name, int64_t absent, int64_t low, int64_t high) const {
    return has(name) ? at(name).integer(low, high) : absent;
  }

 private:
  const nlohmann::json* value_;
  std::string file_, path_;
};

}  // namespace tandem
