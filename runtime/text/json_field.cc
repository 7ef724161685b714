#include "runtime/text/json_field.h"

#include "kernels/base/error.h"

namespace tandem {

void JsonField::refuse(std::string_view what) const {
  bad_input(file_, (path_.empty() ? std::string("the top level") : path_) + " " + std::string(what));
}

bool JsonField::has(std::string_view name) const {
  if (!value_->is_object()) return false;
  const auto found = value_->find(name);
  return found != value_->end() && !found->is_null();
}

JsonField JsonField::at(std::string_view name) const {
  const std::string inner = path_.empty() ? std::string(name) : path_ + "." + std::string(name);
  if (!value_->is_object()) refuse("is not an object (an object with a member " + std::string(name) + ")");
  const auto found = value_->find(name);
  if (found == value_->end()) refuse("has no member " + std::string(name) + " (it needs one)");
  return {*found, file_, inner};
}

std::vector<JsonField> JsonField::elements() const {
  if (!value_->is_array()) refuse("is not an array (a list)");
  std::vector<JsonField> out;
  out.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i) out.emplace_back((*value_)[i], file_, path_ + "[" + std::to_string(i) + "]");
  return out;
}

std::string JsonField::text() const {
  if (!value_->is_string()) refuse("is not a string (text in quotes)");
  return value_->get<std::string>();
}

bool JsonField::flag() const {
  if (!value_->is_boolean()) refuse("is neither true nor false (one of the two)");
  return value_->get<bool>();
}

int64_t JsonField::integer(int64_t low, int64_t high) const {
  const std::string right = "(a whole number from " + std::to_string(low) + " to " + std::to_string(high) + ")";
  if (!value_->is_number_integer()) refuse("is not a whole number " + right);
  if (value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) refuse("is too large " + right);
  const int64_t number = value_->get<int64_t>();
  if (number < low || number > high) refuse("is " + std::to_string(number) + " " + right);
  return number;
}

}  // namespace tandem
