// Evaluates a parsed chat template. One Evaluator renders once, on one thread; it owns the namespaces and the scopes that macros keep.
// Work is bounded by Limits: whatever the template does, render returns or throws.
#pragma once
#include <chrono>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/text/jinja_parser.h"
#include "runtime/text/jinja_value.h"

namespace tandem::jinja {

struct Limits {
  int64_t steps = 1'000'000;        // nodes evaluated, items visited
  int64_t bytes = int64_t{64} << 20;  // of all strings and lists ever made
  size_t output = size_t{16} << 20;
  int depth = 600;  // of statements, expressions and macro calls inside of each other
};

struct Call {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
  Value take(size_t position, std::string_view name, Value absent);  // an argument by place or name
  const Value* find(std::string_view name) const;
};

struct Scope {
  Scope* outer = nullptr;
  std::unordered_map<std::string, Value> names;
};

// The `loop` of a for statement. Values may keep it beyond its end: then `scope` is null and it only answers questions.
struct Loop {
  List items;
  size_t index = 0;
  int depth = 1;
  std::optional<Value> last_changed;
  const Statement* statement = nullptr;
  Scope* scope = nullptr;
};

class Evaluator {
 public:
  Evaluator(const Limits& limits, std::chrono::system_clock::time_point now) : limits_(limits), now_(now) {}
  std::string render(const Block& block, Scope& variables);  // throws TemplateError; line() says where
  int line() const { return line_; }

  Value evaluate(const Expression& expression, Scope& scope);
  Value call(const Value& function, Call& call);
  Value attribute(const Value& value, const std::string& name);  // value.name
  Value item(const Value& value, const Value& key);              // value[key]
  Value apply_filter(const std::string& name, const Value& value, Call& call);
  bool apply_test(const std::string& name, const Value& value, Call& call);
  Value binary(const std::string& op, const Value& left, const Value& right);

  void spend(int64_t steps) {
    steps_ += steps;
    if (steps_ > limits_.steps) template_error("the template takes more than " + std::to_string(limits_.steps) + " steps (fewer)");
  }
  void spend_bytes(size_t bytes) {
    if (bytes > limits_.output) template_error("a value has more than " + std::to_string(limits_.output) + " bytes (fewer)");
    bytes_ += static_cast<int64_t>(bytes);
    if (bytes_ > limits_.bytes)
      template_error("the template makes more than " + std::to_string(limits_.bytes) + " bytes of values (fewer)");
  }
  Value text(std::string value) {
    spend_bytes(value.size());
    return Value::string(std::move(value));
  }
  Value list(List items) {
    spend_bytes(items.size() * sizeof(Value));
    spend(static_cast<int64_t>(items.size()));
    return Value::list(std::move(items));
  }
  Namespace* new_namespace() {
    spend_bytes(sizeof(Namespace));
    namespaces_.push_back(std::make_unique<Namespace>());
    return namespaces_.back().get();
  }
  std::chrono::system_clock::time_point now() const { return now_; }

  std::string capture(const Block& body, Scope& scope);  // what it prints
  Value run_loop_again(Loop& loop, const Value& items);  // loop(...) of a recursive loop
  Value call_macro(const Statement& macro, Scope& defined_in, Call& call);

 private:
  enum class Flow { normal, broken, continued };
  struct Depth {
    explicit Depth(Evaluator& evaluator) : evaluator_(evaluator) {
      if (++evaluator_.depth_ > evaluator_.limits_.depth)
        template_error("the template recurses too deeply (at most " + std::to_string(evaluator_.limits_.depth) + " levels)");
    }
    ~Depth() { --evaluator_.depth_; }
    Evaluator& evaluator_;
  };
  Flow run(const Block& block, Scope& scope);
  Flow run(const Statement& statement, Scope& scope);
  void run_loop(const Statement& statement, const Value& iterated, Scope& scope, int depth);
  void print(std::string_view text);
  void assign(const Expression& target, Value value, Scope& scope);
  Value lookup(const std::string& name, Scope& scope);
  Value compare(const Expression& expression, Scope& scope);
  Value slice(const Expression& expression, Scope& scope);
  Value filtered(const Expression& expression, const Value& block, Scope& scope);
  void fill(const Arguments& arguments, Scope& scope, Call& call);
  Value loop_member(const Value& value, const std::string& name);
  template <class Body>
  void in_scope(const Statement& statement, Scope& outer, const Body& body);

  Limits limits_;
  std::chrono::system_clock::time_point now_;
  int64_t steps_ = 0, bytes_ = 0;
  int depth_ = 0, line_ = 1;
  std::string* out_ = nullptr;
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  std::vector<std::unique_ptr<Scope>> kept_;  // scopes in which macros were defined
};

Value global(const std::string& name);                      // range, namespace, dict, ...; undefined when there is none
Value method(const Value& value, const std::string& name);  // of strings, lists, dicts; undefined when there is none
bool has_filter(const std::string& name);
bool has_test(const std::string& name);

}  // namespace tandem::jinja
