#include "runtime/text/jinja_evaluator.h"

#include <algorithm>
#include <cmath>

#include "runtime/text/jinja_text.h"
#include "runtime/text/utf8.h"

namespace tandem::jinja {
namespace {

using Kind = Expression::Kind;

struct Macro final : Callable {
  Macro(const Statement& s, Scope& o, std::string n) : statement(s), outer(o), label(std::move(n)), name_value(Value::string(label)) {}
  Value call(Evaluator& evaluator, Call& call) const override { return evaluator.call_macro(statement, outer, call); }
  const Value* member(std::string_view name) const override { return name == "name" ? &name_value : nullptr; }
  std::string name() const override { return label; }
  const Statement& statement;
  Scope& outer;
  std::string label;
  Value name_value;
};

// loop.cycle and loop.changed.
struct LoopMethod final : Callable {
  LoopMethod(Value l, std::string n) : loop(std::move(l)), label(std::move(n)) {}
  Value call(Evaluator&, Call& call) const override {
    Loop& state = loop.as_loop();
    if (label == "cycle") {
      if (call.positional.empty()) template_error("no items for cycling given");
      return call.positional[state.index % call.positional.size()];
    }
    const Value now = Value::sequence(call.positional, true);
    const bool changed = !state.last_changed || !state.last_changed->equals(now);
    state.last_changed = now;
    return Value::boolean(changed);
  }
  std::string name() const override { return label; }
  Value loop;
  std::string label;
};

void refuse_overflow(bool overflow) {
  if (overflow) template_error("a whole number leaves 64 bits");
}
int64_t add(int64_t a, int64_t b) {
  int64_t out;
  refuse_overflow(__builtin_add_overflow(a, b, &out));
  return out;
}
int64_t subtract(int64_t a, int64_t b) {
  int64_t out;
  refuse_overflow(__builtin_sub_overflow(a, b, &out));
  return out;
}
int64_t multiply(int64_t a, int64_t b) {
  int64_t out;
  refuse_overflow(__builtin_mul_overflow(a, b, &out));
  return out;
}

double power(double base, double exponent) {
  const double value = std::pow(base, exponent);
  if (std::isnan(value) && !std::isnan(base) && !std::isnan(exponent)) template_error("a power is no real number");
  return value;
}

Value integer_power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) template_error("0 cannot be raised to a negative power");
    return Value::real(power(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  while (exponent > 0) {
    if (exponent & 1) result = multiply(result, base);
    exponent >>= 1;
    if (exponent > 0) base = multiply(base, base);
  }
  return Value::integer(result);
}

}  // namespace

Value Call::take(size_t position, std::string_view name, Value absent) {
  if (position < positional.size()) return positional[position];
  const Value* found = find(name);
  return found ? *found : absent;
}

const Value* Call::find(std::string_view name) const {
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

std::string Evaluator::render(const Block& block, Scope& variables) {
  std::string out;
  out_ = &out;
  // One more scope, as what the template sets must not change the caller's variables.
  Scope top{&variables, {}};
  run(block, top);
  return out;
}

void Evaluator::print(std::string_view text) {
  if (out_->size() + text.size() > limits_.output)
    template_error("the output has more than " + std::to_string(limits_.output) + " bytes (fewer)");
  *out_ += text;
}

std::string Evaluator::capture(const Block& body, Scope& scope) {
  std::string text;
  std::string* before = std::exchange(out_, &text);
  struct Restore {
    std::string*& out;
    std::string* before;
    ~Restore() { out = before; }
  } restore{out_, before};
  run(body, scope);
  spend_bytes(text.size());
  return text;
}

// A scope of its own for a body: on the stack, unless a macro defined in it may be called later.
template <class Body>
void Evaluator::in_scope(const Statement& statement, Scope& outer, const Body& body) {
  if (!statement.defines_macros) {
    Scope scope{&outer, {}};
    body(scope);
    return;
  }
  spend_bytes(sizeof(Scope));
  kept_.push_back(std::make_unique<Scope>(Scope{&outer, {}}));
  body(*kept_.back());
}

Evaluator::Flow Evaluator::run(const Block& block, Scope& scope) {
  for (const auto& statement : block) {
    const Flow flow = run(*statement, scope);
    if (flow != Flow::normal) return flow;
  }
  return Flow::normal;
}

Evaluator::Flow Evaluator::run(const Statement& statement, Scope& scope) {
  const Depth depth(*this);
  spend(1);
  line_ = statement.line;
  switch (statement.kind) {
    case Statement::Kind::text:
      print(statement.text);
      return Flow::normal;
    case Statement::Kind::print: {
      const Value value = evaluate(*statement.value, scope);
      if (value.is_string()) {
        print(value.as_string());
      } else {
        spend(value.weight());
        print(value.str());
      }
      return Flow::normal;
    }
    case Statement::Kind::condition:
      for (const auto& [test, body] : statement.branches) {
        if (evaluate(*test, scope).truth()) return run(body, scope);
      }
      return run(statement.otherwise, scope);
    case Statement::Kind::loop:
      run_loop(statement, evaluate(*statement.value, scope), scope, 1);
      return Flow::normal;
    case Statement::Kind::set:
      assign(*statement.target, evaluate(*statement.value, scope), scope);
      return Flow::normal;
    case Statement::Kind::set_block: {
      Value value;
      in_scope(statement, scope, [&](Scope& inner) {
        value = Value::string(capture(statement.body, inner));
        if (statement.value) value = filtered(*statement.value, value, inner);
      });
      assign(*statement.target, std::move(value), scope);
      return Flow::normal;
    }
    case Statement::Kind::macro:
      scope.names[statement.text] = Value::callable(std::make_shared<Macro>(statement, scope, statement.text));
      return Flow::normal;
    case Statement::Kind::call_block: {
      const Expression& expression = *statement.value;
      const Value function = evaluate(*expression.parts[0], scope);
      Call arguments;
      fill(expression.arguments, scope, arguments);
      arguments.named.emplace_back("caller", Value::callable(std::make_shared<Macro>(statement, scope, "caller")));
      print(call(function, arguments).str());
      return Flow::normal;
    }
    case Statement::Kind::filter_block: {
      in_scope(statement, scope, [&](Scope& inner) {
        const Value text = Value::string(capture(statement.body, inner));
        print(filtered(*statement.value, text, inner).str());
      });
      return Flow::normal;
    }
    case Statement::Kind::with: {
      Flow flow = Flow::normal;
      in_scope(statement, scope, [&](Scope& inner) {
        std::vector<Value> values;
        for (const auto& [target, value] : statement.assignments) values.push_back(evaluate(*value, scope));
        for (size_t i = 0; i < values.size(); ++i) assign(*statement.assignments[i].first, values[i], inner);
        flow = run(statement.body, inner);
      });
      return flow;
    }
    case Statement::Kind::group: {
      Flow flow = Flow::normal;
      in_scope(statement, scope, [&](Scope& inner) { flow = run(statement.body, inner); });
      return flow;
    }
    case Statement::Kind::loop_break:
      return Flow::broken;
    case Statement::Kind::loop_continue:
      return Flow::continued;
  }
  return Flow::normal;
}

void Evaluator::run_loop(const Statement& statement, const Value& iterated, Scope& scope, int depth) {
  List items = iterated.iterate();
  spend(static_cast<int64_t>(items.size()));
  spend_bytes(items.size() * sizeof(Value));
  if (statement.filter) {
    List kept;
    for (Value& item : items) {
      Scope inner{&scope, {}};
      assign(*statement.target, item, inner);
      if (evaluate(*statement.filter, inner).truth()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    in_scope(statement, scope, [&](Scope& inner) { run(statement.otherwise, inner); });
    return;
  }
  auto loop = std::make_shared<Loop>();
  loop->items = std::move(items);
  loop->depth = depth;
  loop->statement = &statement;
  loop->scope = &scope;
  struct End {
    Loop& loop;
    ~End() {
      loop.scope = nullptr;
      loop.last_changed.reset();  // it might hold the loop itself
    }
  } end{*loop};
  const Value loop_value = Value::loop(loop);
  bool broken = false;
  for (; loop->index < loop->items.size() && !broken; ++loop->index) {
    spend(1);
    in_scope(statement, scope, [&](Scope& inner) {
      inner.names["loop"] = loop_value;
      assign(*statement.target, loop->items[loop->index], inner);
      broken = run(statement.body, inner) == Flow::broken;
    });
  }
}

Value Evaluator::run_loop_again(Loop& loop, const Value& items) {
  if (!loop.statement->recursive) template_error("the loop is called but not marked recursive");
  if (!loop.scope) template_error("the loop is called after its end");
  std::string text;
  std::string* before = std::exchange(out_, &text);
  struct Restore {
    std::string*& out;
    std::string* before;
    ~Restore() { out = before; }
  } restore{out_, before};
  const Depth depth(*this);
  run_loop(*loop.statement, items, *loop.scope, loop.depth + 1);
  return this->text(std::move(text));
}

void Evaluator::assign(const Expression& target, Value value, Scope& scope) {
  if (target.kind == Kind::name) {
    scope.names[target.text] = std::move(value);
    return;
  }
  if (target.kind == Kind::attribute) {
    const Value space = evaluate(*target.parts[0], scope);
    if (!space.is_space()) template_error("cannot assign an attribute of a " + space.type_name() + " (of a namespace)");
    if (target.text.starts_with('_')) template_error("a namespace cannot hold " + target.text + " (a name without underscore in front)");
    space.as_space().members[target.text] = std::move(value);
    return;
  }
  const List items = value.iterate();
  if (items.size() != target.parts.size()) {
    template_error("cannot unpack " + std::to_string(items.size()) + " values into " + std::to_string(target.parts.size()) + " names");
  }
  for (size_t i = 0; i < items.size(); ++i) assign(*target.parts[i], items[i], scope);
}

Value Evaluator::lookup(const std::string& name, Scope& scope) {
  for (Scope* s = &scope; s; s = s->outer) {
    const auto found = s->names.find(name);
    if (found != s->names.end()) return found->second;
  }
  const Value value = global(name);
  return value.is_undefined() ? Value::undefined("'" + name + "' is undefined") : value;
}

Value Evaluator::evaluate(const Expression& expression, Scope& scope) {
  const Depth depth(*this);
  spend(1);
  line_ = expression.line;
  const auto& parts = expression.parts;
  switch (expression.kind) {
    case Kind::constant:
      return expression.constant;
    case Kind::name:
      return lookup(expression.text, scope);
    case Kind::list:
    case Kind::tuple: {
      List items;
      items.reserve(parts.size());
      for (const auto& part : parts) items.push_back(evaluate(*part, scope));
      spend_bytes(items.size() * sizeof(Value));
      return Value::sequence(std::move(items), expression.kind == Kind::tuple);
    }
    case Kind::dict: {
      Dict dict;
      for (size_t i = 0; i < parts.size(); i += 2) {
        const Value key = evaluate(*parts[i], scope);
        dict.set(key, evaluate(*parts[i + 1], scope));
      }
      spend_bytes(parts.size() * 64);
      return Value::dict(std::move(dict));
    }
    case Kind::attribute:
      return attribute(evaluate(*parts[0], scope), expression.text);
    case Kind::item: {
      const Value value = evaluate(*parts[0], scope);
      return item(value, evaluate(*parts[1], scope));
    }
    case Kind::slice:
      return slice(expression, scope);
    case Kind::call: {
      const Value function = evaluate(*parts[0], scope);
      Call arguments;
      fill(expression.arguments, scope, arguments);
      line_ = expression.line;
      return call(function, arguments);
    }
    case Kind::filter:
    case Kind::test: {
      const Value value = evaluate(*parts[0], scope);
      Call arguments;
      fill(expression.arguments, scope, arguments);
      line_ = expression.line;
      if (expression.kind == Kind::filter) return apply_filter(expression.text, value, arguments);
      return Value::boolean(apply_test(expression.text, value, arguments) != expression.negated);
    }
    case Kind::negative: {
      const Value value = evaluate(*parts[0], scope);
      if (value.is_real()) return Value::real(-value.as_real());
      if (!value.is_number())
        template_error(value.is_undefined() ? value.undefined_hint() : "bad operand type for unary -: '" + value.type_name() + "'");
      return Value::integer(subtract(0, value.as_int()));
    }
    case Kind::positive: {
      const Value value = evaluate(*parts[0], scope);
      if (!value.is_number())
        template_error(value.is_undefined() ? value.undefined_hint() : "bad operand type for unary +: '" + value.type_name() + "'");
      return value.is_bool() ? Value::integer(value.as_int()) : value;
    }
    case Kind::negation:
      return Value::boolean(!evaluate(*parts[0], scope).truth());
    case Kind::binary: {
      const Value left = evaluate(*parts[0], scope);
      if (expression.text == "or") return left.truth() ? left : evaluate(*parts[1], scope);
      if (expression.text == "and") return left.truth() ? evaluate(*parts[1], scope) : left;
      const Value right = evaluate(*parts[1], scope);
      line_ = expression.line;
      return binary(expression.text, left, right);
    }
    case Kind::compare:
      return compare(expression, scope);
    case Kind::conditional:
      if (evaluate(*parts[1], scope).truth()) return evaluate(*parts[0], scope);
      if (parts[2]) return evaluate(*parts[2], scope);
      return Value::undefined("the inline if on line " + std::to_string(expression.line) + " was false and has no else");
  }
  return {};
}

Value Evaluator::compare(const Expression& expression, Scope& scope) {
  Value left = evaluate(*expression.parts[0], scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(*expression.parts[i + 1], scope);
    const std::string& op = expression.operators[i];
    spend(op.ends_with("in") ? left.weight() + right.weight() : std::min(left.weight(), right.weight()));
    bool holds;
    if (op == "==") {
      holds = left.equals(right);
    } else if (op == "!=") {
      holds = !left.equals(right);
    } else if (op == "in") {
      holds = right.contains(left);
    } else if (op == "not in") {
      holds = !right.contains(left);
    } else {
      const bool nan = left.is_number() && right.is_number() && (std::isnan(left.as_real()) || std::isnan(right.as_real()));
      const int order = left.compare(right, op);
      holds = !nan && (op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0);
    }
    if (!holds) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Evaluator::binary(const std::string& op, const Value& left, const Value& right) {
  if (op == "~") {
    spend(left.weight() + right.weight());
    std::string joined = left.str();
    const std::string tail = right.str();
    spend_bytes(joined.size() + tail.size());
    joined += tail;
    return Value::string(std::move(joined));
  }
  if (left.is_undefined()) template_error(left.undefined_hint());
  if (right.is_undefined()) template_error(right.undefined_hint());
  auto refuse = [&]() {
    if (op == "+" && left.is_string()) template_error("can only concatenate str (not \"" + right.type_name() + "\") to str");
    template_error("unsupported operand type(s) for " + op + ": '" + left.type_name() + "' and '" + right.type_name() + "'");
  };
  if (op == "%" && left.is_string()) {
    Call arguments;
    arguments.positional = right.is_tuple() ? right.as_list() : List{right};
    return apply_filter("format", left, arguments);
  }
  if (left.is_string() || right.is_string() || left.is_sequence() || right.is_sequence()) {
    if (op == "+" && left.is_string() && right.is_string()) {
      if (left.is_markup() != right.is_markup()) {
        const std::string joined =
            left.is_markup() ? left.as_string() + escape_html(right.as_string()) : escape_html(left.as_string()) + right.as_string();
        spend_bytes(joined.size());
        return Value::string(joined, true);
      }
      spend_bytes(left.as_string().size() + right.as_string().size());
      return Value::string(left.as_string() + right.as_string(), left.is_markup());
    }
    if (op == "+" && left.is_sequence() && right.is_sequence() && left.is_tuple() == right.is_tuple()) {
      List items = left.as_list();
      items.insert(items.end(), right.as_list().begin(), right.as_list().end());
      spend_bytes(items.size() * sizeof(Value));
      return Value::sequence(std::move(items), left.is_tuple());
    }
    const bool left_counts = left.is_int() || left.is_bool(), right_counts = right.is_int() || right.is_bool();
    if (op == "*" && left_counts != right_counts) {
      const Value& repeated = left_counts ? right : left;
      const int64_t times = std::max<int64_t>(0, (left_counts ? left : right).as_int());
      if (repeated.is_string() || repeated.is_sequence()) {
        const size_t one = repeated.is_string() ? repeated.as_string().size() : repeated.as_list().size() * sizeof(Value);
        if (one && static_cast<size_t>(times) > limits_.output / one) spend_bytes(limits_.output + 1);
        spend_bytes(one * static_cast<size_t>(times));
        if (repeated.is_string()) {
          std::string out;
          out.reserve(one * static_cast<size_t>(times));
          for (int64_t i = 0; one && i < times; ++i) out += repeated.as_string();
          return Value::string(std::move(out));
        }
        List out;
        for (int64_t i = 0; one && i < times; ++i) out.insert(out.end(), repeated.as_list().begin(), repeated.as_list().end());
        return Value::sequence(std::move(out), repeated.is_tuple());
      }
    }
    refuse();
  }
  if (!left.is_number() || !right.is_number()) refuse();
  if (op == "/") {
    if (right.as_real() == 0) template_error("division by zero");
    return Value::real(left.as_real() / right.as_real());
  }
  if (left.is_real() || right.is_real()) {
    const double a = left.as_real(), b = right.as_real();
    if (op == "+") return Value::real(a + b);
    if (op == "-") return Value::real(a - b);
    if (op == "*") return Value::real(a * b);
    if (op == "**") return Value::real(power(a, b));
    if (b == 0) template_error("division by zero");
    if (op == "//") return Value::real(std::floor(a / b));
    double rest = std::fmod(a, b);
    if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
    return Value::real(rest);
  }
  const int64_t a = left.as_int(), b = right.as_int();
  if (op == "+") return Value::integer(add(a, b));
  if (op == "-") return Value::integer(subtract(a, b));
  if (op == "*") return Value::integer(multiply(a, b));
  if (op == "**") return integer_power(a, b);
  if (b == 0) template_error("division by zero");
  if (b == -1) {  // the one quotient that overflows
    if (op == "%") return Value::integer(0);
    return Value::integer(subtract(0, a));
  }
  int64_t quotient = a / b, rest = a % b;
  if (rest != 0 && (rest < 0) != (b < 0)) {
    --quotient;
    rest += b;
  }
  return Value::integer(op == "//" ? quotient : rest);
}

Value Evaluator::slice(const Expression& expression, Scope& scope) {
  const Value value = evaluate(*expression.parts[0], scope);
  auto part = [&](size_t i) { return expression.parts[i] ? evaluate(*expression.parts[i], scope) : Value::none(); };
  const Value begin = part(1), end = part(2), stride = part(3);
  if (value.is_undefined()) template_error(value.undefined_hint());
  if (!value.is_string() && !value.is_sequence()) return Value::undefined("'" + value.type_name() + "' object cannot be sliced");
  auto index = [&](const Value& v) {
    if (!v.is_int() && !v.is_bool()) template_error("slice indices must be integers or None");
    return v.as_int();
  };
  const int64_t step = stride.is_none() ? 1 : index(stride);
  if (step == 0) template_error("slice step cannot be zero");
  std::optional<Characters> characters;
  if (value.is_string()) characters.emplace(value.as_string());
  const int64_t size = value.is_string() ? characters->size() : static_cast<int64_t>(value.as_list().size());
  spend(size / 16);
  auto place = [&](const Value& v, int64_t absent) {
    if (v.is_none()) return absent;
    int64_t i = index(v);
    if (i < 0) i = i < -size ? -1 : i + size;
    return step > 0 ? std::clamp<int64_t>(i, 0, size) : std::clamp<int64_t>(i, -1, size - 1);
  };
  const int64_t from = place(begin, step > 0 ? 0 : size - 1);
  const int64_t to = place(end, step > 0 ? size : -1);
  if (value.is_string() && step == 1) return text(std::string(from < to ? characters->range(from, to) : std::string_view()));
  std::string out;
  List items;
  for (int64_t i = from; step > 0 ? i < to : i > to;) {
    if (value.is_string()) {
      out += characters->at(i);
    } else {
      items.push_back(value.as_list()[static_cast<size_t>(i)]);
    }
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (value.is_string()) return text(std::move(out));
  spend_bytes(items.size() * sizeof(Value));
  return Value::sequence(std::move(items), value.is_tuple());
}

// A chain of filters whose innermost value is a block's text.
Value Evaluator::filtered(const Expression& expression, const Value& block, Scope& scope) {
  const Depth depth(*this);
  const Value value = expression.parts[0] ? filtered(*expression.parts[0], block, scope) : block;
  Call arguments;
  fill(expression.arguments, scope, arguments);
  return apply_filter(expression.text, value, arguments);
}

void Evaluator::fill(const Arguments& arguments, Scope& scope, Call& call) {
  for (const auto& argument : arguments.positional) call.positional.push_back(evaluate(*argument, scope));
  if (arguments.spread) {
    const List items = evaluate(*arguments.spread, scope).iterate();
    spend(static_cast<int64_t>(items.size()));
    call.positional.insert(call.positional.end(), items.begin(), items.end());
  }
  for (const auto& [name, argument] : arguments.named) call.named.emplace_back(name, evaluate(*argument, scope));
  if (arguments.spread_named) {
    const Value value = evaluate(*arguments.spread_named, scope);
    if (!value.is_dict()) template_error("the argument after ** must be a mapping, not " + value.type_name());
    for (const auto& [key, item] : value.as_dict().items()) {
      spend(1);
      call.named.emplace_back(key.str(), item);
    }
  }
}

Value Evaluator::call(const Value& function, Call& call) {
  const Depth depth(*this);
  spend(1);
  if (function.is_callable()) return function.as_callable().call(*this, call);
  if (function.is_loop()) {
    if (call.positional.size() != 1) template_error("a recursive loop takes one argument");
    return run_loop_again(function.as_loop(), call.positional[0]);
  }
  if (function.is_undefined()) template_error(function.undefined_hint());
  template_error("'" + function.type_name() + "' object is not callable");
}

Value Evaluator::call_macro(const Statement& macro, Scope& defined_in, Call& call) {
  std::string out;
  in_scope(macro, defined_in, [&](Scope& scope) {
    std::vector<bool> used(call.named.size());
    for (size_t i = 0; i < macro.parameters.size(); ++i) {
      const Parameter& parameter = macro.parameters[i];
      Value value = Value::undefined("parameter '" + parameter.name + "' was not provided");
      bool given = i < call.positional.size();
      if (given) value = call.positional[i];
      for (size_t k = 0; k < call.named.size(); ++k) {
        if (call.named[k].first != parameter.name) continue;
        if (given) template_error("the argument '" + parameter.name + "' is given twice");
        value = call.named[k].second;
        used[k] = given = true;
      }
      if (!given && parameter.preset) value = evaluate(*parameter.preset, scope);
      scope.names[parameter.name] = std::move(value);
    }
    List more;
    for (size_t i = macro.parameters.size(); i < call.positional.size(); ++i) more.push_back(call.positional[i]);
    Dict named;
    for (size_t k = 0; k < call.named.size(); ++k) {
      if (used[k]) continue;
      if (call.named[k].first == "caller") {
        scope.names["caller"] = call.named[k].second;
      } else {
        named.set(Value::string(call.named[k].first), call.named[k].second);
      }
    }
    scope.names["varargs"] = Value::sequence(std::move(more), true);
    scope.names["kwargs"] = Value::dict(std::move(named));
    out = capture(macro.body, scope);
  });
  return Value::string(std::move(out));
}

Value Evaluator::loop_member(const Value& value, const std::string& name) {
  const Loop& loop = value.as_loop();
  const auto index = static_cast<int64_t>(loop.index), size = static_cast<int64_t>(loop.items.size());
  if (name == "index") return Value::integer(index + 1);
  if (name == "index0") return Value::integer(index);
  if (name == "revindex") return Value::integer(size - index);
  if (name == "revindex0") return Value::integer(size - index - 1);
  if (name == "first") return Value::boolean(index == 0);
  if (name == "last") return Value::boolean(index + 1 == size);
  if (name == "length") return Value::integer(size);
  if (name == "depth") return Value::integer(loop.depth);
  if (name == "depth0") return Value::integer(loop.depth - 1);
  if (name == "previtem") return index > 0 ? loop.items[loop.index - 1] : Value::undefined("there is no previous item");
  if (name == "nextitem") return index + 1 < size ? loop.items[loop.index + 1] : Value::undefined("there is no next item");
  if (name == "cycle" || name == "changed") return Value::callable(std::make_shared<LoopMethod>(value, name));
  return Value::undefined("'LoopContext' object has no attribute '" + name + "'");
}

Value Evaluator::attribute(const Value& value, const std::string& name) {
  if (value.is_undefined()) template_error(value.undefined_hint());
  if (value.is_loop()) return loop_member(value, name);
  if (value.is_space()) {
    const auto found = value.as_space().members.find(name);
    if (found != value.as_space().members.end()) return found->second;
  } else if (value.is_callable()) {
    if (const Value* member = value.as_callable().member(name)) return *member;
  } else {
    Value bound = method(value, name);
    if (!bound.is_undefined()) return bound;
    if (value.is_dict()) {
      if (const Value* found = value.as_dict().find(std::string_view(name))) return *found;
    }
  }
  return Value::undefined("'" + value.type_name() + " object' has no attribute '" + name + "'");
}

Value Evaluator::item(const Value& value, const Value& key) {
  if (value.is_undefined()) template_error(value.undefined_hint());
  if (value.is_dict()) {
    if (!key.is_sequence() && !key.is_dict() && !key.is_undefined()) {
      if (const Value* found = value.as_dict().find(key)) return *found;
    } else if (key.is_undefined()) {
      return Value::undefined("'dict object' has no such element");
    }
  } else if ((value.is_sequence() || value.is_string()) && (key.is_int() || key.is_bool())) {
    int64_t i = key.as_int();
    if (value.is_string()) {
      const Characters characters(value.as_string());
      spend(characters.size() / 16);
      if (i < 0) i += characters.size();
      if (i >= 0 && i < characters.size()) return text(std::string(characters.at(i)));
    } else {
      const List& items = value.as_list();
      if (i < 0) i += static_cast<int64_t>(items.size());
      if (i >= 0 && i < static_cast<int64_t>(items.size())) return items[static_cast<size_t>(i)];
    }
    return Value::undefined("'" + value.type_name() + " object' has no element " + std::to_string(key.as_int()));
  }
  if (key.is_string()) return attribute(value, key.as_string());
  return Value::undefined("'" + value.type_name() + " object' has no element " + key.repr());
}

}  // namespace tandem::jinja
