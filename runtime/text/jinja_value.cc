#include "runtime/text/jinja_value.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "runtime/text/utf8.h"

namespace tandem::jinja {

void template_error(std::string message) { throw TemplateError{std::move(message)}; }

namespace {

void check_size(int depth, int64_t weight) {
  if (depth > Value::max_depth) template_error("values are nested too deeply (at most " + std::to_string(Value::max_depth) + " levels)");
  if (weight > Value::max_weight) template_error("a value holds more than " + std::to_string(Value::max_weight) + " values (fewer)");
}

}  // namespace

void Dict::set(const Value& key, Value value) {
  depth_ = std::max({depth_, key.depth() + 1, value.depth() + 1});
  weight_ += key.weight() + value.weight();
  check_size(depth_, weight_);
  const auto [at, fresh] = index_.try_emplace(key.hash_key(), items_.size());
  if (fresh) {
    items_.emplace_back(key, std::move(value));
  } else {
    items_[at->second].second = std::move(value);
  }
}

const Value* Dict::find(const Value& key) const {
  const auto found = index_.find(key.hash_key());
  return found == index_.end() ? nullptr : &items_[found->second].second;
}

const Value* Dict::find(std::string_view key) const {
  std::string name = "s";
  name += key;
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &items_[found->second].second;
}

Value Value::undefined(std::string what) { return Value(Data(Undefined{std::make_shared<const std::string>(std::move(what))})); }

const std::string& Value::undefined_hint() const {
  static const std::string nothing = "a value is undefined";
  const auto& what = std::get<Undefined>(data_).what;
  return what ? *what : nothing;
}

Value Value::sequence(List items, bool tuple) {
  int depth = 1;
  int64_t weight = 1;
  for (const Value& item : items) {
    depth = std::max(depth, item.depth() + 1);
    weight += item.weight();
    check_size(depth, weight);
  }
  return Value(Data(std::make_shared<const Sequence>(Sequence{std::move(items), tuple, depth, weight})));
}

Value Value::dict(Dict items) { return Value(Data(std::make_shared<const Dict>(std::move(items)))); }

Value Value::from_json(const nlohmann::ordered_json& json, int depth) {
  if (depth > max_depth) template_error("the messages are nested too deeply (at most " + std::to_string(max_depth) + " levels)");
  using Type = nlohmann::ordered_json::value_t;
  switch (json.type()) {
    case Type::boolean:
      return boolean(json.get<bool>());
    case Type::number_integer:
      return integer(json.get<int64_t>());
    case Type::number_unsigned: {
      const auto number = json.get<uint64_t>();
      return number > static_cast<uint64_t>(INT64_MAX) ? real(static_cast<double>(number)) : integer(static_cast<int64_t>(number));
    }
    case Type::number_float:
      return real(json.get<double>());
    case Type::string: {
      const auto& text = json.get_ref<const std::string&>();
      return string(is_valid_utf8(text) ? text : replace_invalid_utf8(text));
    }
    case Type::array: {
      List items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json(item, depth + 1));
      return list(std::move(items));
    }
    case Type::object: {
      Dict items;
      for (const auto& [key, item] : json.items())
        items.set(string(is_valid_utf8(key) ? key : replace_invalid_utf8(key)), from_json(item, depth + 1));
      return dict(std::move(items));
    }
    default:
      return none();
  }
}

int Value::depth() const {
  if (is_sequence()) return std::get<Items>(data_)->depth;
  if (is_dict()) return as_dict().depth();
  return 0;
}

int64_t Value::weight() const {
  if (is_string()) return 1 + static_cast<int64_t>(as_string().size() / 64);
  if (is_sequence()) return std::get<Items>(data_)->weight;
  if (is_dict()) return as_dict().weight();
  return 1;
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_bool()) return as_bool();
  if (is_int()) return as_int() != 0;
  if (is_real()) return as_real() != 0;
  if (is_string()) return !as_string().empty();
  if (is_sequence()) return !as_list().empty();
  if (is_dict()) return !as_dict().items().empty();
  return true;
}

std::string Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_real()) return "float";
  if (is_string()) return "str";
  if (is_sequence()) return is_tuple() ? "tuple" : "list";
  if (is_dict()) return "dict";
  if (is_space()) return "Namespace";
  if (is_loop()) return "LoopContext";
  return "function";
}

std::string python_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  std::string text(buffer, end);
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;
  std::string sign = text[0] == '-' ? "-" : "", digits;
  for (char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string python_string_repr(std::string_view text) {
  const char quote = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  constexpr char digits[] = "0123456789abcdef";
  auto hex = [&](const char* prefix, char32_t code, int width) {
    out += prefix;
    for (int shift = (width - 1) * 4; shift >= 0; shift -= 4) out += digits[(code >> shift) & 15];
  };
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    if (c.code == static_cast<unsigned char>(quote) || c.code == '\\') {
      out += '\\';
      out += static_cast<char>(c.code);
    } else if (c.code == '\n') {
      out += "\\n";
    } else if (c.code == '\r') {
      out += "\\r";
    } else if (c.code == '\t') {
      out += "\\t";
    } else if (c.code < 0x20 || c.code == 0x7F) {
      hex("\\x", c.code, 2);
    } else if (c.code < 0x7F) {
      out += static_cast<char>(c.code);
    } else if (U_GET_GC_MASK(static_cast<UChar32>(c.code)) & (U_GC_C_MASK | U_GC_Z_MASK)) {
      if (c.code < 0x100) {
        hex("\\x", c.code, 2);
      } else if (c.code < 0x10000) {
        hex("\\u", c.code, 4);
      } else {
        hex("\\U", c.code, 8);
      }
    } else {
      out += text.substr(at, c.length);
    }
    at += c.length;
  }
  out += quote;
  return out;
}

void Value::append_repr(std::string& out, bool top) const {
  if (is_string()) {
    out += top ? as_string() : python_string_repr(as_string());
  } else if (is_undefined()) {
    out += top ? "" : "Undefined";
  } else if (is_none()) {
    out += "None";
  } else if (is_bool()) {
    out += as_bool() ? "True" : "False";
  } else if (is_int()) {
    out += std::to_string(as_int());
  } else if (is_real()) {
    out += python_float(as_real());
  } else if (is_sequence()) {
    const List& items = as_list();
    out += is_tuple() ? '(' : '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i) out += ", ";
      items[i].append_repr(out, false);
    }
    if (is_tuple() && items.size() == 1) out += ',';
    out += is_tuple() ? ')' : ']';
  } else if (is_dict()) {
    out += '{';
    bool first = true;
    for (const auto& [key, value] : as_dict().items()) {
      if (!first) out += ", ";
      first = false;
      key.append_repr(out, false);
      out += ": ";
      value.append_repr(out, false);
    }
    out += '}';
  } else if (is_space()) {
    out += "<Namespace>";
  } else if (is_loop()) {
    out += "<LoopContext>";
  } else {
    out += "<function " + as_callable().name() + ">";
  }
  if (out.size() > (size_t{16} << 20)) template_error("a value has more than 16 MiB as text (less)");
}

std::string Value::str() const {
  std::string out;
  append_repr(out, true);
  return out;
}

std::string Value::repr() const {
  std::string out;
  append_repr(out, false);
  return out;
}

bool Value::equals(const Value& other) const {
  if (is_number() && other.is_number()) {
    if (is_real() || other.is_real()) return as_real() == other.as_real();
    return as_int() == other.as_int();
  }
  if (is_string() && other.is_string()) return as_string() == other.as_string();
  if (is_undefined() || is_none()) return data_.index() == other.data_.index();
  if (is_sequence() && other.is_sequence() && is_tuple() == other.is_tuple()) {
    const List &a = as_list(), &b = other.as_list();
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Value& x, const Value& y) { return x.equals(y); });
  }
  if (is_dict() && other.is_dict()) {
    const Dict &a = as_dict(), &b = other.as_dict();
    if (a.items().size() != b.items().size()) return false;
    return std::all_of(a.items().begin(), a.items().end(), [&](const auto& item) {
      const Value* found = b.find(item.first);
      return found && found->equals(item.second);
    });
  }
  return same(other);
}

bool Value::same(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_undefined() || is_none()) return true;
  if (is_bool()) return as_bool() == other.as_bool();
  if (is_int()) return as_int() == other.as_int();
  if (is_real()) return as_real() == other.as_real();
  if (is_string()) return as_string() == other.as_string();
  if (is_sequence()) return std::get<Items>(data_) == std::get<Items>(other.data_);
  if (is_dict()) return std::get<Map>(data_) == std::get<Map>(other.data_);
  if (is_space()) return &as_space() == &other.as_space();
  if (is_loop()) return &as_loop() == &other.as_loop();
  return &as_callable() == &other.as_callable();
}

int Value::compare(const Value& other, std::string_view what) const {
  if (is_number() && other.is_number()) {
    if (!is_real() && !other.is_real()) return as_int() < other.as_int() ? -1 : as_int() > other.as_int();
    return as_real() < other.as_real() ? -1 : as_real() > other.as_real();
  }
  if (is_string() && other.is_string()) {
    const int order = as_string().compare(other.as_string());  // UTF-8 sorts as its code points do
    return order < 0 ? -1 : order > 0;
  }
  if (is_sequence() && other.is_sequence() && is_tuple() == other.is_tuple()) {
    const List &a = as_list(), &b = other.as_list();
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      if (!a[i].equals(b[i])) return a[i].compare(b[i], what);
    }
    return a.size() < b.size() ? -1 : a.size() > b.size();
  }
  if (is_undefined()) template_error(undefined_hint());
  if (other.is_undefined()) template_error(other.undefined_hint());
  template_error("'" + std::string(what) + "' not supported between '" + type_name() + "' and '" + other.type_name() + "'");
}

bool Value::contains(const Value& item) const {
  if (is_string()) {
    if (item.is_undefined()) template_error(item.undefined_hint());
    if (!item.is_string()) template_error("'in <string>' requires a string, not " + item.type_name());
    return as_string().find(item.as_string()) != std::string::npos;
  }
  if (is_sequence()) return std::any_of(as_list().begin(), as_list().end(), [&](const Value& v) { return v.equals(item); });
  if (is_dict()) return as_dict().find(item) != nullptr;
  if (is_undefined()) return false;
  template_error("'" + type_name() + "' is not a container");
}

List Value::iterate() const {
  if (is_sequence()) return as_list();
  List out;
  if (is_dict()) {
    for (const auto& [key, value] : as_dict().items()) out.push_back(key);
  } else if (is_string()) {
    const std::string& text = as_string();
    for (size_t at = 0; at < text.size();) {
      const size_t length = decode_utf8(text, at).length;
      out.push_back(string(text.substr(at, length)));
      at += length;
    }
  } else if (!is_undefined()) {
    template_error("'" + type_name() + "' is not iterable");
  }
  return out;
}

std::string Value::hash_key() const {
  if (is_string()) return "s" + as_string();
  if (is_bool() || is_int()) return "n" + std::to_string(as_int());
  if (is_real()) {
    const double v = as_real();
    return std::abs(v) < 9e15 && v == std::trunc(v) ? "n" + std::to_string(static_cast<int64_t>(v)) : "n" + python_float(v);
  }
  if (is_none()) return "None";
  if (is_tuple()) {
    std::string out = "(";
    for (const Value& item : as_list()) {
      const std::string key = item.hash_key();
      out += std::to_string(key.size()) + ":" + key;
    }
    return out;
  }
  if (is_undefined()) template_error(undefined_hint());
  template_error("unhashable type: '" + type_name() + "'");
}

namespace {

void json_string(std::string_view text, bool ascii, std::string& out) {
  constexpr char digits[] = "0123456789abcdef";
  auto escape = [&](uint32_t unit) {
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out += digits[(unit >> shift) & 15];
  };
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    switch (c.code) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\b':
        out += "\\b";
        break;
      default:
        if (c.code < 0x20 || (ascii && c.code >= 0x7F && c.code < 0x10000)) {
          if (c.code == 0x7F) {
            out += '\x7F';
          } else {
            escape(c.code);
          }
        } else if (ascii && c.code >= 0x10000) {
          escape(0xD800 + ((c.code - 0x10000) >> 10));
          escape(0xDC00 + ((c.code - 0x10000) & 0x3FF));
        } else {
          out += text.substr(at, c.length);
        }
    }
    at += c.length;
  }
  out += '"';
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}
  std::string out;

  void write(const Value& value) {
    if (value.is_string()) {
      json_string(value.as_string(), style_.ensure_ascii, out);
    } else if (value.is_none()) {
      out += "null";
    } else if (value.is_bool()) {
      out += value.as_bool() ? "true" : "false";
    } else if (value.is_int()) {
      out += std::to_string(value.as_int());
    } else if (value.is_real()) {
      const double v = value.as_real();
      out += std::isnan(v) ? "NaN" : std::isinf(v) ? (v > 0 ? "Infinity" : "-Infinity") : python_float(v);
    } else if (value.is_sequence()) {
      sequence(value.as_list());
    } else if (value.is_dict()) {
      object(value.as_dict());
    } else {
      template_error("Object of type " + value.type_name() + " is not JSON serializable");
    }
    if (out.size() > (size_t{16} << 20)) template_error("tojson makes more than 16 MiB (less)");
  }

 private:
  void line() {
    if (!style_.indent) return;
    out += '\n';
    for (int i = 0; i < level_; ++i) out += *style_.indent;
  }
  void sequence(const List& items) {
    if (items.empty()) {
      out += "[]";
      return;
    }
    out += '[';
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i) out += style_.item_separator;
      line();
      write(items[i]);
    }
    --level_;
    line();
    out += ']';
  }
  void object(const Dict& dict) {
    if (dict.items().empty()) {
      out += "{}";
      return;
    }
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items()) items.push_back(&item);
    if (style_.sort_keys) {
      std::stable_sort(items.begin(), items.end(), [](const auto* a, const auto* b) { return a->first.compare(b->first, "<") < 0; });
    }
    out += '{';
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i) out += style_.item_separator;
      line();
      const Value& key = items[i]->first;
      std::string name;
      if (key.is_string()) {
        name = key.as_string();
      } else if (key.is_bool()) {
        name = key.as_bool() ? "true" : "false";
      } else if (key.is_none()) {
        name = "null";
      } else if (key.is_int() || key.is_real()) {
        name = key.str();
      } else {
        template_error("keys must be str, int, float, bool or None, not " + key.type_name());
      }
      json_string(name, style_.ensure_ascii, out);
      out += style_.key_separator;
      write(items[i]->second);
    }
    --level_;
    line();
    out += '}';
  }
  const JsonStyle& style_;
  int level_ = 0;
};

}  // namespace

std::string to_json(const Value& value, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.write(value);
  return std::move(writer.out);
}

Characters::Characters(std::string_view text) : text_(text) {
  for (size_t at = 0; at < text.size(); at += decode_utf8(text, at).length) starts_.push_back(at);
  starts_.push_back(text.size());
}

}  // namespace tandem::jinja
