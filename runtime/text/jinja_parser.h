// A parsed chat template. Built once by parse_template, immutable afterwards, so any number of threads may evaluate it.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/text/jinja_lexer.h"
#include "runtime/text/jinja_value.h"

namespace tandem::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Arguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr spread, spread_named;  // *list, **dict
};

struct Expression {
  enum class Kind {
    constant,
    name,
    list,
    tuple,
    dict,  // parts; dict: key, value, key, value
    attribute,
    item,
    slice,  // parts[0] . text | [parts[1]] | [parts[1]:parts[2]:parts[3]], null where left out
    call,
    filter,
    test,  // parts[0] (a filter block's is null); text = name of filter or test; negated
    negative,
    positive,
    negation,     // parts[0]
    binary,       // text = operator: or and + - ~ * / // % **
    compare,      // parts[0] op parts[1] op parts[2] ...; operators
    conditional,  // parts[0] if parts[1] else parts[2] (may be null)
  };
  Kind kind;
  int line = 0;
  std::string text;
  Value constant;
  std::vector<ExpressionPtr> parts;
  std::vector<std::string> operators;
  Arguments arguments;
  bool negated = false;
  int height = 1;  // of the tree below: bounded, as evaluating and freeing it recurse
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

struct Parameter {
  std::string name;
  ExpressionPtr preset;  // may be null
};

struct Statement {
  enum class Kind {
    text,          // text
    print,         // value
    condition,     // branches: value, body; otherwise
    loop,          // targets in value; iterated; filter (may be null); body; otherwise; recursive
    set,           // target = value
    set_block,     // target = body, through filters (a chain of filter expressions around nothing)
    macro,         // text(parameters): body
    call_block,    // value is the call; parameters, body are the caller
    filter_block,  // value is a chain of filters, body
    with,          // assignments, body
    group,         // body: {% generation %}
    loop_break,
    loop_continue,
  };
  Kind kind;
  int line = 0;
  std::string text;
  ExpressionPtr value, target, filter;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> assignments;
  std::vector<Parameter> parameters;
  Block body, otherwise;
  bool recursive = false;
  bool defines_macros = false;  // in its body: then the body's scope must outlive it
};

Block parse_template(std::string_view source);  // throws SyntaxError

}  // namespace tandem::jinja
