#include "runtime/text/jinja_parser.h"

#include <algorithm>
#include <initializer_list>

namespace tandem::jinja {
namespace {

using Kind = Expression::Kind;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Block run() {
    Block block = body({});
    if (now().kind != TokenKind::end) refuse("unexpected " + describe(now()));
    return block;
  }

 private:
  // Recursion is what a hostile template would attack: every level of nesting passes through a Depth.
  struct Depth {
    explicit Depth(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > 150) parser_.refuse("the template is nested too deeply (at most 150 levels)");
    }
    ~Depth() { --parser_.depth_; }
    Parser& parser_;
  };

  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() {
    Token token = tokens_[at_];
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  [[noreturn]] void refuse(const std::string& message) const { throw SyntaxError{message, now().line}; }
  static std::string describe(const Token& token) {
    switch (token.kind) {
      case TokenKind::end:
        return "end of the template";
      case TokenKind::block_end:
        return "%}";
      case TokenKind::print_end:
        return "}}";
      case TokenKind::data:
        return "text";
      default:
        return "'" + token.text + "'";
    }
  }
  bool is_symbol(std::string_view text) const { return now().kind == TokenKind::symbol && now().text == text; }
  bool is_name(std::string_view text) const { return now().kind == TokenKind::name && now().text == text; }
  bool skip_symbol(std::string_view text) {
    if (!is_symbol(text)) return false;
    take();
    return true;
  }
  bool skip_name(std::string_view text) {
    if (!is_name(text)) return false;
    take();
    return true;
  }
  void expect_symbol(std::string_view text) {
    if (!skip_symbol(text)) refuse("unexpected " + describe(now()) + " (" + std::string(text) + ")");
  }
  void expect(TokenKind kind, std::string_view what) {
    if (now().kind != kind) refuse("unexpected " + describe(now()) + " (" + std::string(what) + ")");
    take();
  }
  std::string expect_name() {
    if (now().kind != TokenKind::name) refuse("unexpected " + describe(now()) + " (a name)");
    return take().text;
  }
  ExpressionPtr make(Kind kind, std::string text = {}) const {
    auto out = std::make_unique<Expression>();
    out->kind = kind;
    out->line = now().line;
    out->text = std::move(text);
    return out;
  }
  template <class... Parts>
  ExpressionPtr make_of(Kind kind, std::string text, int line, Parts... parts) const {
    auto out = make(kind, std::move(text));
    out->line = line;
    (out->parts.push_back(std::move(parts)), ...);
    measure(*out);
    return out;
  }

  // Chains (a + b + c, a.b.c, a | b | c) parse without recursion but make deep trees: so the height is checked at every node.
  void measure(Expression& out) const {
    auto below = [&](const ExpressionPtr& part) {
      if (part) out.height = std::max(out.height, part->height + 1);
    };
    for (const auto& part : out.parts) below(part);
    for (const auto& part : out.arguments.positional) below(part);
    for (const auto& part : out.arguments.named) below(part.second);
    below(out.arguments.spread);
    below(out.arguments.spread_named);
    if (out.height > 300) refuse("an expression is nested too deeply (at most 300 levels)");
  }

  // Statements up to a block that begins with one of `ends`, which is left in place (behind its block_begin).
  Block body(std::initializer_list<std::string_view> ends) {
    const Depth depth(*this);
    Block block;
    while (now().kind != TokenKind::end) {
      if (now().kind == TokenKind::data) {
        auto text = statement(Statement::Kind::text);
        text->text = take().text;
        block.push_back(std::move(text));
      } else if (now().kind == TokenKind::print_begin) {
        take();
        auto print = statement(Statement::Kind::print);
        print->value = tuple(true);
        expect(TokenKind::print_end, "}}");
        block.push_back(std::move(print));
      } else {
        expect(TokenKind::block_begin, "text or a tag");
        for (std::string_view end : ends) {
          if (is_name(end)) return block;
        }
        block.push_back(tag());
      }
    }
    if (ends.size()) refuse("the template ends inside of a block ({% " + std::string(*ends.begin()) + " %})");
    return block;
  }

  std::unique_ptr<Statement> statement(Statement::Kind kind) const {
    auto out = std::make_unique<Statement>();
    out->kind = kind;
    out->line = now().line;
    return out;
  }

  void end_tag() { expect(TokenKind::block_end, "%}"); }

  std::unique_ptr<Statement> tag() {
    const int line = now().line;
    const std::string name = expect_name();
    std::unique_ptr<Statement> out;
    if (name == "if") {
      out = condition();
    } else if (name == "for") {
      out = loop();
    } else if (name == "set") {
      out = set();
    } else if (name == "macro") {
      out = statement(Statement::Kind::macro);
      out->text = expect_name();
      parameters(*out);
      block_of(*out, "endmacro", true);
    } else if (name == "call") {
      out = statement(Statement::Kind::call_block);
      if (is_symbol("(")) parameters(*out);
      out->value = expression();
      if (out->value->kind != Kind::call) refuse("a call block needs a call");
      block_of(*out, "endcall", false);
    } else if (name == "filter") {
      out = statement(Statement::Kind::filter_block);
      out->value = filters(nullptr, true);
      block_of(*out, "endfilter", false);
    } else if (name == "with") {
      out = statement(Statement::Kind::with);
      while (now().kind != TokenKind::block_end) {
        if (!out->assignments.empty()) expect_symbol(",");
        auto target = assign_target(false);
        expect_symbol("=");
        auto value = expression();
        out->assignments.emplace_back(std::move(target), std::move(value));
      }
      block_of(*out, "endwith", false);
    } else if (name == "generation") {
      out = statement(Statement::Kind::group);
      block_of(*out, "endgeneration", false);
    } else if (name == "break" || name == "continue") {
      if (!in_loop_) refuse("'" + name + "' outside of a loop");
      out = statement(name == "break" ? Statement::Kind::loop_break : Statement::Kind::loop_continue);
      end_tag();
    } else {
      refuse("the tag '" + name + "' is not supported (if, for, set, macro, call, filter, with, generation, break, continue, raw)");
    }
    out->line = line;
    return out;
  }

  void block_of(Statement& out, std::string_view end, bool named) {
    end_tag();
    const int in_loop = in_loop_, macros = macros_;
    if (out.kind == Statement::Kind::macro || out.kind == Statement::Kind::call_block) in_loop_ = 0;
    out.body = body({end});
    in_loop_ = in_loop;
    out.defines_macros = macros_ > macros;
    if (out.kind == Statement::Kind::macro || out.kind == Statement::Kind::call_block) ++macros_;
    take();
    if (named && now().kind == TokenKind::name) take();
    end_tag();
  }

  std::unique_ptr<Statement> condition() {
    auto out = statement(Statement::Kind::condition);
    while (true) {
      auto test = tuple(false);
      end_tag();
      Block block = body({"elif", "else", "endif"});
      out->branches.emplace_back(std::move(test), std::move(block));
      const std::string next = take().text;
      if (next == "elif") continue;
      if (next == "else") {
        end_tag();
        out->otherwise = body({"endif"});
        take();
      }
      end_tag();
      return out;
    }
  }

  std::unique_ptr<Statement> loop() {
    auto out = statement(Statement::Kind::loop);
    out->target = assign_target(true);
    if (!skip_name("in")) refuse("unexpected " + describe(now()) + " (in)");
    out->value = tuple(false);
    if (skip_name("if")) out->filter = expression();
    out->recursive = skip_name("recursive");
    end_tag();
    ++in_loop_;
    const int macros = macros_;
    out->body = body({"endfor", "else"});
    --in_loop_;
    out->defines_macros = macros_ > macros;
    if (take().text == "else") {
      end_tag();
      out->otherwise = body({"endfor"});
      take();
    }
    end_tag();
    return out;
  }

  std::unique_ptr<Statement> set() {
    auto out = statement(Statement::Kind::set);
    out->target = assign_target(true, true);
    if (skip_symbol("=")) {
      out->value = tuple(true);
      end_tag();
      return out;
    }
    out->kind = Statement::Kind::set_block;
    if (is_symbol("|")) out->value = filters(nullptr, false);
    block_of(*out, "endset", false);
    return out;
  }

  void parameters(Statement& out) {
    expect_symbol("(");
    while (!is_symbol(")")) {
      if (!out.parameters.empty()) expect_symbol(",");
      if (is_symbol(")")) break;
      Parameter parameter{expect_name(), nullptr};
      if (skip_symbol("=")) {
        parameter.preset = expression();
      } else if (!out.parameters.empty() && out.parameters.back().preset) {
        refuse("a parameter without a default follows one with a default");
      }
      out.parameters.push_back(std::move(parameter));
    }
    expect_symbol(")");
  }

  // A name, names with commas between, nested in parentheses; for {% set %} also a member of a namespace.
  ExpressionPtr assign_target(bool many, bool member = false) {
    const Depth depth(*this);
    const int line = now().line;
    std::vector<ExpressionPtr> parts;
    bool list = false;
    while (true) {
      if (is_symbol("(")) {
        take();
        parts.push_back(assign_target(true));
        expect_symbol(")");
      } else {
        auto name = make(Kind::name, expect_name());
        if (is_reserved(name->text)) refuse("'" + name->text + "' cannot be assigned to");
        if (member && parts.empty() && skip_symbol(".")) name = make_of(Kind::attribute, expect_name(), line, std::move(name));
        parts.push_back(std::move(name));
      }
      if (!many || !is_symbol(",")) break;
      take();
      list = true;
      if (is_name("in") || is_symbol("=") || is_symbol(")")) break;
    }
    if (!list) return std::move(parts.front());
    auto out = make(Kind::tuple);
    out->parts = std::move(parts);
    measure(*out);
    return out;
  }

  static bool is_reserved(std::string_view name) {
    for (std::string_view word : {"true", "True", "false", "False", "none", "None"}) {
      if (name == word) return true;
    }
    return false;
  }

  // One expression, or several with commas between: a tuple.
  ExpressionPtr tuple(bool conditional) {
    auto one = [&] { return conditional ? expression() : either(); };
    const int line = now().line;
    auto first = one();
    if (!is_symbol(",")) return first;
    auto out = make_of(Kind::tuple, "", line, std::move(first));
    while (skip_symbol(",")) {
      if (now().kind == TokenKind::block_end || now().kind == TokenKind::print_end || is_symbol(")")) break;
      out->parts.push_back(one());
    }
    measure(*out);
    return out;
  }

  ExpressionPtr expression() {
    const Depth depth(*this);
    const int line = now().line;
    auto value = either();
    while (skip_name("if")) {
      auto test = either();
      ExpressionPtr other;
      if (skip_name("else")) other = expression();
      value = make_of(Kind::conditional, "", line, std::move(value), std::move(test), std::move(other));
    }
    return value;
  }

  ExpressionPtr either() {
    const Depth depth(*this);
    const int line = now().line;
    auto left = both();
    while (skip_name("or")) left = make_of(Kind::binary, "or", line, std::move(left), both());
    return left;
  }

  ExpressionPtr both() {
    const int line = now().line;
    auto left = negation();
    while (skip_name("and")) left = make_of(Kind::binary, "and", line, std::move(left), negation());
    return left;
  }

  ExpressionPtr negation() {
    const Depth depth(*this);
    const int line = now().line;
    if (is_name("not")) {
      take();
      return make_of(Kind::negation, "", line, negation());
    }
    return comparison();
  }

  ExpressionPtr comparison() {
    const int line = now().line;
    auto left = sum();
    ExpressionPtr out;
    while (true) {
      std::string op;
      if (now().kind == TokenKind::symbol) {
        for (std::string_view s : {"==", "!=", "<", "<=", ">", ">="}) {
          if (now().text == s) op = s;
        }
        if (op.empty()) break;
        take();
      } else if (skip_name("in")) {
        op = "in";
      } else if (is_name("not") && ahead().kind == TokenKind::name && ahead().text == "in") {
        take();
        take();
        op = "not in";
      } else {
        break;
      }
      if (!out) out = make_of(Kind::compare, "", line, std::move(left));
      out->operators.push_back(std::move(op));
      out->parts.push_back(sum());
    }
    if (out) measure(*out);
    return out ? std::move(out) : std::move(left);
  }

  template <class Next>
  ExpressionPtr chain(std::initializer_list<std::string_view> operators, const Next& next) {
    const int line = now().line;
    auto left = next();
    while (now().kind == TokenKind::symbol) {
      std::string op;
      for (std::string_view s : operators) {
        if (now().text == s) op = s;
      }
      if (op.empty()) break;
      take();
      auto right = next();
      left = make_of(Kind::binary, std::move(op), line, std::move(left), std::move(right));
    }
    return left;
  }

  ExpressionPtr sum() {
    return chain({"+", "-"}, [&] {
      return chain({"~"}, [&] { return chain({"*", "/", "//", "%"}, [&] { return chain({"**"}, [&] { return unary(true); }); }); });
    });
  }

  ExpressionPtr unary(bool with_filters) {
    const Depth depth(*this);
    const int line = now().line;
    ExpressionPtr out;
    if (skip_symbol("-")) {
      out = make_of(Kind::negative, "", line, unary(false));
    } else if (skip_symbol("+")) {
      out = make_of(Kind::positive, "", line, unary(false));
    } else {
      out = primary();
    }
    out = postfix(std::move(out));
    return with_filters ? filters_and_tests(std::move(out)) : std::move(out);
  }

  ExpressionPtr primary() {
    const Token token = now();
    auto constant = [&](Value value) {
      auto out = make(Kind::constant);
      out->constant = std::move(value);
      take();
      return out;
    };
    switch (token.kind) {
      case TokenKind::name:
        if (token.text == "true" || token.text == "True") return constant(Value::boolean(true));
        if (token.text == "false" || token.text == "False") return constant(Value::boolean(false));
        if (token.text == "none" || token.text == "None") return constant(Value::none());
        return make(Kind::name, take().text);
      case TokenKind::integer:
        return constant(Value::integer(token.integer));
      case TokenKind::real:
        return constant(Value::real(token.real));
      case TokenKind::string: {
        std::string text;
        auto out = make(Kind::constant);
        while (now().kind == TokenKind::string) text += take().text;
        out->constant = Value::string(std::move(text));
        return out;
      }
      case TokenKind::symbol:
        if (token.text == "(") return parenthesis();
        if (token.text == "[") return list();
        if (token.text == "{") return dict();
        break;
      default:
        break;
    }
    refuse("unexpected " + describe(token) + " (an expression)");
  }

  ExpressionPtr parenthesis() {
    const Depth depth(*this);
    const int line = now().line;
    expect_symbol("(");
    if (skip_symbol(")")) return make_of(Kind::tuple, "", line);
    auto out = tuple(true);
    expect_symbol(")");
    return out;
  }

  ExpressionPtr list() {
    const Depth depth(*this);
    auto out = make(Kind::list);
    expect_symbol("[");
    while (!is_symbol("]")) {
      if (!out->parts.empty()) expect_symbol(",");
      if (is_symbol("]")) break;
      out->parts.push_back(expression());
    }
    expect_symbol("]");
    measure(*out);
    return out;
  }

  ExpressionPtr dict() {
    const Depth depth(*this);
    auto out = make(Kind::dict);
    expect_symbol("{");
    while (!is_symbol("}")) {
      if (!out->parts.empty()) expect_symbol(",");
      if (is_symbol("}")) break;
      out->parts.push_back(expression());
      expect_symbol(":");
      out->parts.push_back(expression());
    }
    expect_symbol("}");
    measure(*out);
    return out;
  }

  ExpressionPtr postfix(ExpressionPtr value) {
    while (true) {
      const int line = now().line;
      if (skip_symbol(".")) {
        if (now().kind == TokenKind::integer) {
          auto index = make(Kind::constant);
          index->constant = Value::integer(take().integer);
          value = make_of(Kind::item, "", line, std::move(value), std::move(index));
        } else {
          value = make_of(Kind::attribute, expect_name(), line, std::move(value));
        }
      } else if (skip_symbol("[")) {
        value = subscript(std::move(value), line);
        expect_symbol("]");
      } else if (is_symbol("(")) {
        value = call(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr subscript(ExpressionPtr value, int line) {
    const Depth depth(*this);
    ExpressionPtr begin, end, step;
    if (!is_symbol(":")) {
      begin = expression();
      if (!is_symbol(":")) {
        if (is_symbol(",")) {
          begin = make_of(Kind::tuple, "", line, std::move(begin));
          while (skip_symbol(",")) begin->parts.push_back(expression());
          measure(*begin);
        }
        return make_of(Kind::item, "", line, std::move(value), std::move(begin));
      }
    }
    expect_symbol(":");
    if (!is_symbol("]") && !is_symbol(":")) end = expression();
    if (skip_symbol(":") && !is_symbol("]")) step = expression();
    return make_of(Kind::slice, "", line, std::move(value), std::move(begin), std::move(end), std::move(step));
  }

  ExpressionPtr call(ExpressionPtr value) {
    auto out = make_of(Kind::call, "", now().line, std::move(value));
    arguments(out->arguments);
    measure(*out);
    return out;
  }

  void arguments(Arguments& out) {
    const Depth depth(*this);
    expect_symbol("(");
    bool first = true;
    while (!is_symbol(")")) {
      if (!first) expect_symbol(",");
      first = false;
      if (is_symbol(")")) break;
      if (skip_symbol("*")) {
        if (out.spread || out.spread_named) refuse("an *argument follows another one or a **argument");
        out.spread = expression();
      } else if (skip_symbol("**")) {
        if (out.spread_named) refuse("two **arguments");
        out.spread_named = expression();
      } else if (now().kind == TokenKind::name && ahead().kind == TokenKind::symbol && ahead().text == "=") {
        std::string name = take().text;
        take();
        out.named.emplace_back(std::move(name), expression());
      } else {
        if (!out.named.empty() || out.spread_named) refuse("a positional argument follows a named one");
        out.positional.push_back(expression());
      }
    }
    expect_symbol(")");
  }

  std::string dotted_name() {
    std::string name = expect_name();
    while (is_symbol(".")) {
      take();
      name += "." + expect_name();
    }
    return name;
  }

  // `first`: the first filter comes without a bar ({% filter upper | trim %}).
  ExpressionPtr filters(ExpressionPtr value, bool first) {
    while (first || is_symbol("|")) {
      if (!first) take();
      first = false;
      const int line = now().line;
      value = make_of(Kind::filter, dotted_name(), line, std::move(value));
      if (is_symbol("(")) arguments(value->arguments);
      measure(*value);
    }
    return value;
  }

  ExpressionPtr filters_and_tests(ExpressionPtr value) {
    while (true) {
      if (is_symbol("|")) {
        value = filters(std::move(value), false);
      } else if (is_name("is")) {
        value = test(std::move(value));
      } else if (is_symbol("(")) {
        value = call(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr test(ExpressionPtr value) {
    const int line = now().line;
    take();
    const bool negated = skip_name("not");
    auto out = make_of(Kind::test, dotted_name(), line, std::move(value));
    out->negated = negated;
    if (is_symbol("(")) {
      arguments(out->arguments);
      measure(*out);
      return out;
    }
    const TokenKind kind = now().kind;
    const bool starts = kind == TokenKind::name || kind == TokenKind::string || kind == TokenKind::integer || kind == TokenKind::real ||
                        is_symbol("[") || is_symbol("{");
    if (starts && !is_name("else") && !is_name("or") && !is_name("and")) {
      if (is_name("is")) refuse("tests cannot be chained with is");
      out->arguments.positional.push_back(postfix(primary()));
    }
    measure(*out);
    return out;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0, in_loop_ = 0, macros_ = 0;
};

}  // namespace

Block parse_template(std::string_view source) { return Parser(tokenize_template(source)).run(); }

}  // namespace tandem::jinja
