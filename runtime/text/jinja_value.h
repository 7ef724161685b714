// The values that a chat template computes with, meaning what they mean in Python. Immutable and shared, except namespaces, which the
// evaluator owns: so no value can hold itself and freeing one never recurses deeper than max_depth. Belongs to one thread.
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace tandem::jinja {

// What goes wrong inside of a template; ChatTemplate turns it into an Error with file and line.
struct TemplateError {
  std::string message;
  bool raised = false;  // by raise_exception
};
[[noreturn]] void template_error(std::string message);

class Value;
using List = std::vector<Value>;

struct Sequence {
  List items;
  bool tuple = false;
  int depth = 1;
  int64_t weight = 1;
};

class Dict {
 public:
  void set(const Value& key, Value value);  // only while it is built
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  const std::vector<std::pair<Value, Value>>& items() const { return items_; }
  int depth() const { return depth_; }
  int64_t weight() const { return weight_; }

 private:
  std::vector<std::pair<Value, Value>> items_;
  std::unordered_map<std::string, size_t> index_;
  int depth_ = 1;
  int64_t weight_ = 1;
};

struct Namespace {
  std::unordered_map<std::string, Value> members;
};

struct Call;  // the arguments, jinja_evaluator.h
class Evaluator;
struct Callable {
  virtual ~Callable() = default;
  virtual Value call(Evaluator& evaluator, Call& call) const = 0;
  virtual const Value* member(std::string_view) const { return nullptr; }  // attributes, of macros
  virtual std::string name() const = 0;
};
struct Loop;  // the `loop` variable, jinja_evaluator.h

struct String {
  std::string text;
  bool markup = false;  // marked as safe HTML: adding plain text to it escapes the text
};
struct Undefined {
  std::shared_ptr<const std::string> what;  // "'x' is undefined"
};
struct None {};

class Value {
 public:
  static constexpr int max_depth = 100;             // of lists in lists
  static constexpr int64_t max_weight = 8'000'000;  // values inside, shared ones counted every time: what a walk may cost

  Value() : data_(Undefined{}) {}
  static Value undefined(std::string what);
  static Value none() { return Value(Data(None{})); }
  static Value boolean(bool v) { return Value(Data(v)); }
  static Value integer(int64_t v) { return Value(Data(v)); }
  static Value real(double v) { return Value(Data(v)); }
  static Value string(std::string v, bool markup = false) {
    return Value(Data(std::make_shared<const String>(String{std::move(v), markup})));
  }
  static Value sequence(List items, bool tuple);  // checks the depth
  static Value list(List items) { return sequence(std::move(items), false); }
  static Value dict(Dict items);
  static Value space(Namespace* v) { return Value(Data(v)); }
  static Value callable(std::shared_ptr<const Callable> v) { return Value(Data(std::move(v))); }
  static Value loop(std::shared_ptr<Loop> v) { return Value(Data(std::move(v))); }
  static Value from_json(const nlohmann::ordered_json& json, int depth = 0);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<int64_t>(data_); }  // not a bool
  bool is_real() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_bool() || is_int() || is_real(); }
  bool is_string() const { return std::holds_alternative<Text>(data_); }
  bool is_markup() const { return is_string() && std::get<Text>(data_)->markup; }
  bool is_sequence() const { return std::holds_alternative<Items>(data_); }
  bool is_tuple() const { return is_sequence() && std::get<Items>(data_)->tuple; }
  bool is_dict() const { return std::holds_alternative<Map>(data_); }
  bool is_space() const { return std::holds_alternative<Namespace*>(data_); }
  bool is_callable() const { return std::holds_alternative<Function>(data_); }
  bool is_loop() const { return std::holds_alternative<std::shared_ptr<Loop>>(data_); }

  bool as_bool() const { return std::get<bool>(data_); }
  int64_t as_int() const { return is_bool() ? as_bool() : std::get<int64_t>(data_); }  // a bool or an int
  double as_real() const { return is_real() ? std::get<double>(data_) : static_cast<double>(as_int()); }
  const std::string& as_string() const { return std::get<Text>(data_)->text; }
  const List& as_list() const { return std::get<Items>(data_)->items; }
  const Dict& as_dict() const { return *std::get<Map>(data_); }
  Namespace& as_space() const { return *std::get<Namespace*>(data_); }
  const Callable& as_callable() const { return *std::get<Function>(data_); }
  Loop& as_loop() const { return *std::get<std::shared_ptr<Loop>>(data_); }
  const std::string& undefined_hint() const;

  bool truth() const;
  std::string type_name() const;  // as Python calls it
  std::string str() const;        // Python's str(); "" for undefined
  std::string repr() const;
  int depth() const;
  int64_t weight() const;  // steps of a walk over all of it
  bool equals(const Value& other) const;
  bool same(const Value& other) const;                           // Python's `is`
  int compare(const Value& other, std::string_view what) const;  // -1, 0, 1; an error for types without order
  bool contains(const Value& item) const;                        // `item in this`
  List iterate() const;          // items of a list, keys of a dict, characters of a string, nothing when undefined
  std::string hash_key() const;  // equal for equal keys; an error for unhashable values

 private:
  using Text = std::shared_ptr<const String>;
  using Items = std::shared_ptr<const Sequence>;
  using Map = std::shared_ptr<const Dict>;
  using Function = std::shared_ptr<const Callable>;
  using Data = std::variant<Undefined, None, bool, int64_t, double, Text, Items, Map, Namespace*, Function, std::shared_ptr<Loop>>;
  explicit Value(Data data) : data_(std::move(data)) {}
  void append_repr(std::string& out, bool top) const;
  Data data_;
};

std::string python_float(double value);  // Python's repr
std::string python_string_repr(std::string_view text);

struct JsonStyle {
  bool ensure_ascii = false, sort_keys = false;
  std::optional<std::string> indent;                        // one level
  std::string item_separator = ", ", key_separator = ": ";  // with an indent Python's default for the first is ","
};
std::string to_json(const Value& value, const JsonStyle& style);  // Python's json.dumps

// Characters of valid UTF-8 by index, as Python counts them.
class Characters {
 public:
  explicit Characters(std::string_view text);
  int64_t size() const { return static_cast<int64_t>(starts_.size()) - 1; }
  std::string_view at(int64_t i) const {
    return text_.substr(starts_[static_cast<size_t>(i)], starts_[static_cast<size_t>(i) + 1] - starts_[static_cast<size_t>(i)]);
  }
  std::string_view range(int64_t begin, int64_t end) const {
    return text_.substr(starts_[static_cast<size_t>(begin)], starts_[static_cast<size_t>(end)] - starts_[static_cast<size_t>(begin)]);
  }

 private:
  std::string_view text_;
  std::vector<size_t> starts_;
};

}  // namespace tandem::jinja
