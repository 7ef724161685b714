// Reads the fields of a JSON object and refuses wrong ones by name: "<file>: <path of the field>". Unknown fields are ignored. Borrows
// the object.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/base/error.h"

namespace tandem {

class Fields {
 public:
  // `path` names the object inside the file: "" for the whole, "devices[2]".
  Fields(const nlohmann::json& object, std::string file, std::string path)
      : object_(object), file_(std::move(file)), path_(std::move(path)) {
    if (!object.is_object()) refuse("", "an object");
  }

  bool has(const char* name) const { return object_.contains(name); }
  std::string where(const std::string& name) const {
    const std::string path = name.empty() ? path_ : path_.empty() ? name : path_ + "." + name;
    return path.empty() ? file_ : file_ + ": " + path;
  }
  [[noreturn]] void refuse(const std::string& name, const std::string& right) const {
    const bool there = name.empty() || object_.contains(name);
    std::string is =
        there ? (name.empty() ? object_ : object_.at(name)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) : "";
    if (is.size() > 40) is = is.substr(0, 40) + "...";
    bad_input(where(name), (there ? "is " + is : "is missing") + " (must be " + right + ")");
  }

  // The value of a field. T: bool, an integer, double, std::string or a vector of these. Numbers must lie in [least, most].
  template <class T>
  T get(const char* name, double least = 0, double most = 9e18) const {
    const auto found = object_.find(name);
    if (found == object_.end()) refuse(name, kind<T>(least, most));
    return convert<T>(*found, name, kind<T>(least, most), least, most);
  }
  template <class T>
  T get_or(const char* name, T otherwise, double least = 0, double most = 9e18) const {
    return has(name) ? get<T>(name, least, most) : otherwise;
  }
  Fields object(const char* name) const {
    const auto found = object_.find(name);
    if (found == object_.end()) refuse(name, "an object");
    return {*found, file_, path_.empty() ? name : path_ + "." + name};
  }
  std::vector<Fields> objects(const char* name) const {
    const auto found = object_.find(name);
    if (found == object_.end() || !found->is_array()) refuse(name, "a list of objects");
    std::vector<Fields> all;
    for (size_t i = 0; i < found->size(); ++i) {
      all.emplace_back((*found)[i], file_, (path_.empty() ? "" : path_ + ".") + name + "[" + std::to_string(i) + "]");
    }
    return all;
  }
  const nlohmann::json& json() const { return object_; }

 private:
  template <class T>
  struct IsVector : std::false_type {};
  template <class T>
  struct IsVector<std::vector<T>> : std::true_type {};

  static std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, value == std::floor(value) && std::fabs(value) < 1e15 ? "%.0f" : "%g", value);
    return text;
  }
  template <class T>
  static std::string kind(double least, double most) {
    if constexpr (std::is_same_v<T, bool>) {
      return "true or false";
    } else if constexpr (std::is_same_v<T, std::string>) {
      return "a text";
    } else if constexpr (IsVector<T>::value) {
      return "a list, each of it " + kind<typename T::value_type>(least, most);
    } else {
      return std::string(std::is_integral_v<T> ? "a whole number" : "a number") + " from " + number(least) +
             (most < 9e18 ? " to " + number(most) : " up");
    }
  }
  template <class T>
  T convert(const nlohmann::json& value, const char* name, const std::string& right, double least, double most) const {
    if constexpr (std::is_same_v<T, bool>) {
      if (value.is_boolean()) return value.get<bool>();
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (value.is_string()) return value.get<std::string>();
    } else if constexpr (IsVector<T>::value) {
      if (value.is_array()) {
        T all;
        for (const auto& one : value) all.push_back(convert<typename T::value_type>(one, name, right, least, most));
        return all;
      }
    } else if (value.is_number()) {
      const double wide = value.get<double>();
      most = std::min(most, static_cast<double>(std::numeric_limits<T>::max()));
      const bool whole = value.is_number_integer() || (wide == std::floor(wide) && std::fabs(wide) < 9e15);
      if (std::isfinite(wide) && wide >= least && wide <= most && (!std::is_integral_v<T> || whole)) return value.get<T>();
    }
    refuse(name, right);
  }

  const nlohmann::json& object_;
  std::string file_, path_;
};

}  // namespace tandem
