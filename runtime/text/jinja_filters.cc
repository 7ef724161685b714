// The filters, tests and global functions of Jinja2 that chat templates use, and transformers' own.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <functional>

#include "runtime/text/char_class.h"
#include "runtime/text/jinja_evaluator.h"
#include "runtime/text/jinja_text.h"
#include "runtime/text/utf8.h"

namespace tandem::jinja {
namespace {

using Filter = Value (*)(Evaluator&, const Value&, Call&);
using Test = bool (*)(Evaluator&, const Value&, Call&);

std::string text_of(const Value& value) { return value.is_string() ? value.as_string() : value.str(); }

int64_t whole(const Value& value, std::string_view what) {
  if (!value.is_int() && !value.is_bool()) template_error(std::string(what) + " must be a whole number, not " + value.type_name());
  return value.as_int();
}

// Jinja's attribute argument: "a.b.0", or an index.
Value dig(Evaluator& evaluator, const Value& value, const Value& path) {
  if (!path.is_string()) return evaluator.item(value, path);
  Value at = value;
  for (const std::string& part : split_text(path.as_string(), ".", -1)) {
    const bool number = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
    at = evaluator.item(at, number ? Value::integer(std::stoll(part)) : Value::string(part));
  }
  return at;
}

// What sort, min, unique and the like compare: an attribute, without regard to case unless asked.
struct Key {
  Key(Evaluator& e, const Value& attribute, bool sensitive) : evaluator(e), path(attribute), case_sensitive(sensitive) {}
  Value operator()(const Value& value) const {
    Value key = path.is_none() ? value : dig(evaluator, value, path);
    if (!case_sensitive && key.is_string()) key = Value::string(lower_text(key.as_string()));
    return key;
  }
  Evaluator& evaluator;
  Value path;
  bool case_sensitive;
};

Value sorted(Evaluator& evaluator, const List& items, const Key& key, bool reverse) {
  std::vector<std::pair<Value, size_t>> keyed;
  for (size_t i = 0; i < items.size(); ++i) keyed.emplace_back(key(items[i]), i);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    evaluator.spend(1 + std::min(a.first.weight(), b.first.weight()));
    return reverse ? b.first.compare(a.first, "<") < 0 : a.first.compare(b.first, "<") < 0;
  });
  List out;
  for (const auto& [k, i] : keyed) out.push_back(items[i]);
  return evaluator.list(std::move(out));
}

Value extreme(Evaluator& evaluator, const Value& value, Call& call, int wanted) {
  const List items = value.iterate();
  if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  const Key key(evaluator, call.take(1, "attribute", Value::none()), call.take(0, "case_sensitive", Value::boolean(false)).truth());
  size_t best = 0;
  Value best_key = key(items[0]);
  for (size_t i = 1; i < items.size(); ++i) {
    Value now = key(items[i]);
    if (now.compare(best_key, wanted < 0 ? "<" : ">") == wanted) best = i, best_key = std::move(now);
  }
  return items[best];
}

Value select(Evaluator& evaluator, const Value& value, Call& call, bool by_attribute, bool wanted) {
  if (!value.truth()) return Value::list({});  // also of none
  const List items = value.iterate();
  Call rest = call;
  Value path = Value::none();
  if (by_attribute) {
    if (rest.positional.empty()) template_error("Missing parameter for attribute name");
    path = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
  }
  std::string test;
  if (!rest.positional.empty()) {
    test = text_of(rest.positional.front());
    rest.positional.erase(rest.positional.begin());
  }
  List out;
  for (const Value& item : items) {
    evaluator.spend(1);
    const Value tested = by_attribute ? dig(evaluator, item, path) : item;
    Call arguments = rest;
    if ((test.empty() ? tested.truth() : evaluator.apply_test(test, tested, arguments)) == wanted) out.push_back(item);
  }
  return evaluator.list(std::move(out));
}

Value map(Evaluator& evaluator, const Value& value, Call& call) {
  List out;
  if (!value.truth()) return Value::list({});  // also of none
  if (const Value* path = call.find("attribute"); path && call.positional.empty()) {
    const Value* preset = call.find("default");
    for (const Value& item : value.iterate()) {
      evaluator.spend(1);
      Value got = dig(evaluator, item, *path);
      if (got.is_undefined() && preset) got = *preset;
      out.push_back(std::move(got));
    }
    return evaluator.list(std::move(out));
  }
  if (call.positional.empty()) template_error("map requires a filter argument");
  const std::string filter = text_of(call.positional.front());
  Call rest = call;
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : value.iterate()) {
    Call arguments = rest;
    out.push_back(evaluator.apply_filter(filter, item, arguments));
  }
  return evaluator.list(std::move(out));
}

Value to_json_filter(Evaluator& evaluator, const Value& value, Call& call) {
  if (value.is_undefined()) template_error(value.undefined_hint());
  JsonStyle style;
  style.ensure_ascii = call.take(0, "ensure_ascii", Value::boolean(false)).truth();
  const Value indent = call.take(1, "indent", Value::none());
  if (indent.is_string()) {
    style.indent = indent.as_string();
  } else if (!indent.is_none()) {
    style.indent = std::string(static_cast<size_t>(std::clamp<int64_t>(whole(indent, "indent"), 0, 1000)), ' ');
  }
  const Value separators = call.take(2, "separators", Value::none());
  if (style.indent) style.item_separator = ",";
  if (!separators.is_none()) {
    const List parts = separators.iterate();
    if (parts.size() != 2 || !parts[0].is_string() || !parts[1].is_string()) template_error("separators must be two strings");
    style.item_separator = parts[0].as_string();
    style.key_separator = parts[1].as_string();
  }
  style.sort_keys = call.take(3, "sort_keys", Value::boolean(false)).truth();
  return evaluator.text(to_json(value, style));
}

Value indent(Evaluator& evaluator, const Value& value, Call& call) {
  const Value width = call.take(0, "width", Value::integer(4));
  const std::string space =
      width.is_string() ? width.as_string() : std::string(static_cast<size_t>(std::clamp<int64_t>(whole(width, "width"), 0, 100000)), ' ');
  const bool first = call.take(1, "first", Value::boolean(false)).truth(), blank = call.take(2, "blank", Value::boolean(false)).truth();
  const std::vector<std::string> lines = split_lines(text_of(value) + "\n", false);
  evaluator.spend_bytes(lines.size() * space.size());
  std::string out = first ? space : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i) {
      out += '\n';
      if (blank || !lines[i].empty()) out += space;
    }
    out += lines[i];
  }
  return evaluator.text(std::move(out));
}

Value to_int(Evaluator&, const Value& value, Call& call) {
  const Value absent = call.take(0, "default", Value::integer(0));
  const int64_t base = whole(call.take(1, "base", Value::integer(10)), "base");
  auto from_real = [&](double v) { return std::isfinite(v) && std::abs(v) < 9.2e18 ? Value::integer(static_cast<int64_t>(v)) : absent; };
  if (value.is_real()) return from_real(value.as_real());
  if (value.is_number()) return Value::integer(value.as_int());
  if (!value.is_string()) return absent;
  std::string digits = strip_text(value.as_string(), {}, true, true);
  std::erase(digits, '_');
  bool negative = false;
  std::string_view body = digits;
  if (body.starts_with('-') || body.starts_with('+')) {
    negative = body[0] == '-';
    body.remove_prefix(1);
  }
  if ((base == 16 && (body.starts_with("0x") || body.starts_with("0X"))) ||
      (base == 8 && (body.starts_with("0o") || body.starts_with("0O"))) ||
      (base == 2 && (body.starts_with("0b") || body.starts_with("0B")))) {
    body.remove_prefix(2);
  }
  int64_t number = 0;
  if (base >= 2 && base <= 36) {
    const auto [end, error] = std::from_chars(body.data(), body.data() + body.size(), number, static_cast<int>(base));
    if (error == std::errc() && end == body.data() + body.size() && !body.starts_with('-'))
      return Value::integer(negative ? -number : number);
  }
  double real = 0;
  const auto [end, error] = std::from_chars(body.data(), body.data() + body.size(), real);
  if (error == std::errc() && end == body.data() + body.size() && !body.starts_with('-')) return from_real(negative ? -real : real);
  return absent;
}

Value to_float(Evaluator&, const Value& value, Call& call) {
  const Value absent = call.take(0, "default", Value::real(0));
  if (value.is_number()) return Value::real(value.as_real());
  if (!value.is_string()) return absent;
  std::string digits = strip_text(value.as_string(), {}, true, true);
  std::string_view body = digits;
  if (body.starts_with('+')) body.remove_prefix(1);
  double real = 0;
  const auto [end, error] = std::from_chars(body.data(), body.data() + body.size(), real);
  return error == std::errc() && end == body.data() + body.size() ? Value::real(real) : absent;
}

Value round_filter(Evaluator&, const Value& value, Call& call) {
  const int64_t precision = std::clamp<int64_t>(whole(call.take(0, "precision", Value::integer(0)), "precision"), -300, 300);
  const std::string how = text_of(call.take(1, "method", Value::string("common")));
  if (!value.is_number()) template_error("round needs a number, not " + value.type_name());
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double v = value.as_real();
  if (how == "ceil") return Value::real(std::ceil(v * scale) / scale);
  if (how == "floor") return Value::real(std::floor(v * scale) / scale);
  if (how != "common") template_error("method must be common, ceil or floor");
  if (value.is_int() && precision >= 0) return value;
  if (precision > 0 && std::isfinite(v)) {  // Python rounds the decimal expansion, half to even, as printf does
    char buffer[700];
    std::snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(precision), v);
    return Value::real(std::strtod(buffer, nullptr));
  }
  return Value::real(std::nearbyint(v * scale) / scale);
}

Value replace_filter(Evaluator& evaluator, const Value& value, Call& call) {
  const Value count = call.take(2, "count", Value::none());
  const std::string text = text_of(value), from = text_of(call.take(0, "old", Value())), to = text_of(call.take(1, "new", Value()));
  return evaluator.text(replace_text(evaluator, text, from, to, count.is_none() ? -1 : whole(count, "count")));
}

Value join(Evaluator& evaluator, const Value& value, Call& call) {
  const std::string between = text_of(call.take(0, "d", Value::string("")));
  const Value path = call.take(1, "attribute", Value::none());
  std::string out;
  bool first = true;
  for (const Value& item : value.iterate()) {
    evaluator.spend(1);
    if (!first) out += between;
    first = false;
    out += text_of(path.is_none() ? item : dig(evaluator, item, path));
    if (out.size() > (size_t{16} << 20)) evaluator.spend_bytes(out.size());
  }
  return evaluator.text(std::move(out));
}

Value length(Evaluator&, const Value& value, Call&) {
  if (value.is_string()) return Value::integer(static_cast<int64_t>(count_utf8(value.as_string())));
  if (value.is_sequence()) return Value::integer(static_cast<int64_t>(value.as_list().size()));
  if (value.is_dict()) return Value::integer(static_cast<int64_t>(value.as_dict().items().size()));
  if (value.is_undefined()) return Value::integer(0);
  if (value.is_loop()) return Value::integer(static_cast<int64_t>(value.as_loop().items.size()));
  template_error("object of type '" + value.type_name() + "' has no len()");
}

Value items_of(const Value& value) {
  if (value.is_undefined()) return Value::list({});
  if (!value.is_dict()) template_error("Can only get item pairs from a mapping.");
  List out;
  for (const auto& [key, item] : value.as_dict().items()) out.push_back(Value::sequence({key, item}, true));
  return Value::list(std::move(out));
}

Value dictsort(Evaluator& evaluator, const Value& value, Call& call) {
  const std::string by = text_of(call.take(1, "by", Value::string("key")));
  if (by != "key" && by != "value") template_error("You can only sort by either \"key\" or \"value\"");
  const Key key(evaluator, Value::integer(by == "value"), call.take(0, "case_sensitive", Value::boolean(false)).truth());
  return sorted(evaluator, items_of(value).as_list(), key, call.take(2, "reverse", Value::boolean(false)).truth());
}

Value unique(Evaluator& evaluator, const Value& value, Call& call) {
  const Key key(evaluator, call.take(1, "attribute", Value::none()), call.take(0, "case_sensitive", Value::boolean(false)).truth());
  Dict seen;
  List out;
  for (const Value& item : value.iterate()) {
    const Value k = key(item);
    if (seen.find(k)) continue;
    seen.set(k, Value::none());
    out.push_back(item);
  }
  return evaluator.list(std::move(out));
}

Value groupby(Evaluator& evaluator, const Value& value, Call& call) {
  const Key key(evaluator, call.take(0, "attribute", Value::none()), call.take(2, "case_sensitive", Value::boolean(false)).truth());
  const Value order = sorted(evaluator, value.iterate(), key, false);
  List out, group;
  Value current;
  auto end = [&] {
    if (!group.empty()) out.push_back(Value::sequence({dig(evaluator, group.front(), key.path), Value::list(group)}, true));
    group.clear();
  };
  for (const Value& item : order.as_list()) {
    Value now = key(item);
    if (!group.empty() && !now.equals(current)) end();
    current = std::move(now);
    group.push_back(item);
  }
  end();
  return evaluator.list(std::move(out));
}

Value sum(Evaluator& evaluator, const Value& value, Call& call) {
  const Value path = call.take(0, "attribute", Value::none());
  Value total = call.take(1, "start", Value::integer(0));
  for (const Value& item : value.iterate()) total = evaluator.binary("+", total, path.is_none() ? item : dig(evaluator, item, path));
  return total;
}

Value batch(Evaluator& evaluator, const Value& value, Call& call) {
  const int64_t size = std::max<int64_t>(1, whole(call.take(0, "linecount", Value()), "linecount"));
  const Value fill = call.take(1, "fill_with", Value::none());
  List out, row;
  for (const Value& item : value.iterate()) {
    if (static_cast<int64_t>(row.size()) == size) {
      out.push_back(Value::list(std::move(row)));
      row.clear();
    }
    row.push_back(item);
  }
  if (!row.empty()) {
    if (!fill.is_none()) {
      evaluator.spend_bytes(static_cast<size_t>(std::min<int64_t>(size, INT32_MAX)) * sizeof(Value));
      while (static_cast<int64_t>(row.size()) < size) row.push_back(fill);
    }
    out.push_back(Value::list(std::move(row)));
  }
  return evaluator.list(std::move(out));
}

// So many columns, the first ones one longer where it does not come out even.
Value slice(Evaluator& evaluator, const Value& value, Call& call) {
  const int64_t columns = whole(call.take(0, "slices", Value()), "slices");
  const Value fill = call.take(1, "fill_with", Value::none());
  const List items = value.iterate();
  if (columns < 1 || columns > 100000) template_error("slices must lie between 1 and 100000");
  const auto size = static_cast<int64_t>(items.size());
  const int64_t each = size / columns, longer = size % columns;
  List out;
  auto at = items.begin();
  for (int64_t i = 0; i < columns; ++i) {
    const int64_t count = each + (i < longer ? 1 : 0);
    List column(at, at + count);
    at += count;
    if (!fill.is_none() && i >= longer) column.push_back(fill);
    out.push_back(Value::list(std::move(column)));
  }
  return evaluator.list(std::move(out));
}

Value truncate(Evaluator& evaluator, const Value& value, Call& call) {
  const std::string text = text_of(value), end = text_of(call.take(2, "end", Value::string("...")));
  const int64_t size = whole(call.take(0, "length", Value::integer(255)), "length");
  const bool kill = call.take(1, "killwords", Value::boolean(false)).truth();
  const Value given = call.take(3, "leeway", Value::none());
  const int64_t leeway = given.is_none() ? 5 : whole(given, "leeway");
  const Characters characters(text);
  const auto end_size = static_cast<int64_t>(count_utf8(end));
  if (size < end_size) template_error("expected length >= " + std::to_string(end_size));
  if (characters.size() <= size + std::max<int64_t>(leeway, 0)) return evaluator.text(text);
  std::string kept(characters.range(0, std::min(size - end_size, characters.size())));
  if (!kill) {
    const size_t space = kept.rfind(' ');
    if (space != std::string::npos) kept.resize(space);
  }
  return evaluator.text(kept + end);
}

std::string url_quote(std::string_view text) {
  constexpr char digits[] = "0123456789ABCDEF";
  std::string out;
  for (char c : text) {
    const auto b = static_cast<uint8_t>(c);
    if (b < 0x80 && (std::isalnum(b) || std::string_view("_.-~/").find(c) != std::string_view::npos)) {
      out += c;
    } else {
      out += {'%', digits[b >> 4], digits[b & 15]};
    }
  }
  return out;
}

const std::unordered_map<std::string_view, Filter>& filters() {
  static const std::unordered_map<std::string_view, Filter> table = [] {
    std::unordered_map<std::string_view, Filter> t;
    t["tojson"] = to_json_filter;
    t["indent"] = indent;
    t["int"] = to_int;
    t["float"] = to_float;
    t["round"] = round_filter;
    t["replace"] = replace_filter;
    t["join"] = join;
    t["length"] = t["count"] = length;
    t["map"] = map;
    t["dictsort"] = dictsort;
    t["unique"] = unique;
    t["groupby"] = groupby;
    t["sum"] = sum;
    t["batch"] = batch;
    t["slice"] = slice;
    t["truncate"] = truncate;
    t["default"] = t["d"] = [](Evaluator&, const Value& v, Call& c) {
      const bool also_false = c.take(1, "boolean", Value::boolean(false)).truth();
      return v.is_undefined() || (also_false && !v.truth()) ? c.take(0, "default_value", Value::string("")) : v;
    };
    t["trim"] = [](Evaluator& e, const Value& v, Call& c) {
      const Value chars = c.take(0, "chars", Value::none());
      return e.text(strip_text(text_of(v), chars.is_none() ? std::nullopt : std::optional(text_of(chars)), true, true));
    };
    t["upper"] = [](Evaluator& e, const Value& v, Call&) { return e.text(upper_text(text_of(v))); };
    t["lower"] = [](Evaluator& e, const Value& v, Call&) { return e.text(lower_text(text_of(v))); };
    t["title"] = [](Evaluator& e, const Value& v, Call&) { return e.text(title_text(text_of(v), true)); };
    t["capitalize"] = [](Evaluator& e, const Value& v, Call&) { return e.text(capitalize_text(text_of(v))); };
    t["string"] = [](Evaluator& e, const Value& v, Call&) { return v.is_string() ? v : e.text(v.str()); };
    t["safe"] = [](Evaluator& e, const Value& v, Call&) {
      std::string out = text_of(v);
      e.spend_bytes(out.size());
      return Value::string(std::move(out), true);
    };
    t["forceescape"] = [](Evaluator& e, const Value& v, Call&) {
      std::string out = escape_html(text_of(v));
      e.spend_bytes(out.size());
      return Value::string(std::move(out), true);
    };
    t["escape"] = t["e"] = [](Evaluator& e, const Value& v, Call& c) { return v.is_markup() ? v : e.apply_filter("forceescape", v, c); };
    t["urlencode"] = [](Evaluator& e, const Value& v, Call&) { return e.text(url_quote(text_of(v))); };
    t["list"] = [](Evaluator& e, const Value& v, Call&) { return e.list(v.iterate()); };
    t["items"] = [](Evaluator&, const Value& v, Call&) { return items_of(v); };
    t["first"] = [](Evaluator&, const Value& v, Call&) {
      List items = v.iterate();
      return items.empty() ? Value::undefined("No first item, sequence was empty.") : items.front();
    };
    t["last"] = [](Evaluator&, const Value& v, Call&) {
      List items = v.iterate();
      return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
    };
    t["reverse"] = [](Evaluator& e, const Value& v, Call&) {
      List items = v.iterate();
      std::reverse(items.begin(), items.end());
      if (!v.is_string()) return e.list(std::move(items));
      std::string out;
      for (const Value& item : items) out += item.as_string();
      return e.text(std::move(out));
    };
    t["sort"] = [](Evaluator& e, const Value& v, Call& c) {
      const Key key(e, c.take(2, "attribute", Value::none()), c.take(1, "case_sensitive", Value::boolean(false)).truth());
      return sorted(e, v.iterate(), key, c.take(0, "reverse", Value::boolean(false)).truth());
    };
    t["min"] = [](Evaluator& e, const Value& v, Call& c) { return extreme(e, v, c, -1); };
    t["max"] = [](Evaluator& e, const Value& v, Call& c) { return extreme(e, v, c, 1); };
    t["select"] = [](Evaluator& e, const Value& v, Call& c) { return select(e, v, c, false, true); };
    t["reject"] = [](Evaluator& e, const Value& v, Call& c) { return select(e, v, c, false, false); };
    t["selectattr"] = [](Evaluator& e, const Value& v, Call& c) { return select(e, v, c, true, true); };
    t["rejectattr"] = [](Evaluator& e, const Value& v, Call& c) { return select(e, v, c, true, false); };
    t["attr"] = [](Evaluator& e, const Value& v, Call& c) {
      const Value name = c.take(0, "name", Value());
      // Python attributes only: the keys of a dict are none.
      return v.is_dict() ? method(v, text_of(name)) : e.attribute(v, text_of(name));
    };
    t["abs"] = [](Evaluator& e, const Value& v, Call&) {
      if (v.is_real()) return Value::real(std::abs(v.as_real()));
      if (!v.is_number()) template_error("bad operand type for abs(): '" + v.type_name() + "'");
      return v.as_int() < 0 ? e.binary("-", Value::integer(0), v) : Value::integer(v.as_int());
    };
    t["center"] = [](Evaluator& e, const Value& v, Call& c) {
      return e.text(pad_text(e, text_of(v), whole(c.take(0, "width", Value::integer(80)), "width"), " ", 0));
    };
    t["format"] = [](Evaluator& e, const Value& v, Call& c) { return e.text(format_percent(e, text_of(v), c)); };
    t["wordcount"] = [](Evaluator&, const Value& v, Call&) {
      int64_t words = 0;
      bool inside = false;
      const std::string text = text_of(v);
      for (size_t at = 0; at < text.size();) {
        const DecodedChar ch = decode_utf8(text, at);
        if (is_word(ch.code) && !inside) ++words;
        inside = is_word(ch.code);
        at += ch.length;
      }
      return Value::integer(words);
    };
    return t;
  }();
  return table;
}

bool is_even(const Value& value, bool even) {
  if (!value.is_number()) template_error("even and odd need a number, not " + value.type_name());
  if (value.is_real()) return (std::fmod(value.as_real(), 2) == 0) == even;
  return (value.as_int() % 2 == 0) == even;
}

Value other(Call& call) {
  if (call.positional.empty()) template_error("the test needs an argument");
  return call.positional[0];
}

const std::unordered_map<std::string_view, Test>& tests() {
  static const std::unordered_map<std::string_view, Test> table = [] {
    std::unordered_map<std::string_view, Test> t;
    t["defined"] = [](Evaluator&, const Value& v, Call&) { return !v.is_undefined(); };
    t["undefined"] = [](Evaluator&, const Value& v, Call&) { return v.is_undefined(); };
    t["none"] = [](Evaluator&, const Value& v, Call&) { return v.is_none(); };
    t["boolean"] = [](Evaluator&, const Value& v, Call&) { return v.is_bool(); };
    t["true"] = [](Evaluator&, const Value& v, Call&) { return v.is_bool() && v.as_bool(); };
    t["false"] = [](Evaluator&, const Value& v, Call&) { return v.is_bool() && !v.as_bool(); };
    t["integer"] = [](Evaluator&, const Value& v, Call&) { return v.is_int(); };
    t["float"] = [](Evaluator&, const Value& v, Call&) { return v.is_real(); };
    t["number"] = [](Evaluator&, const Value& v, Call&) { return v.is_number(); };
    t["string"] = [](Evaluator&, const Value& v, Call&) { return v.is_string(); };
    t["mapping"] = [](Evaluator&, const Value& v, Call&) { return v.is_dict(); };
    t["sequence"] = [](Evaluator&, const Value& v, Call&) { return v.is_string() || v.is_sequence() || v.is_dict() || v.is_undefined(); };
    t["iterable"] = [](Evaluator&, const Value& v, Call&) {
      return v.is_string() || v.is_sequence() || v.is_dict() || v.is_undefined() || v.is_loop();
    };
    t["callable"] = [](Evaluator&, const Value& v, Call&) { return v.is_callable() || v.is_loop() || v.is_undefined(); };
    t["even"] = [](Evaluator&, const Value& v, Call&) { return is_even(v, true); };
    t["odd"] = [](Evaluator&, const Value& v, Call&) { return is_even(v, false); };
    t["divisibleby"] = [](Evaluator& e, const Value& v, Call& c) { return e.binary("%", v, other(c)).equals(Value::integer(0)); };
    t["eq"] = t["=="] = t["equalto"] = [](Evaluator&, const Value& v, Call& c) { return v.equals(other(c)); };
    t["ne"] = t["!="] = [](Evaluator&, const Value& v, Call& c) { return !v.equals(other(c)); };
    t["lt"] = t["<"] = t["lessthan"] = [](Evaluator&, const Value& v, Call& c) { return v.compare(other(c), "<") < 0; };
    t["le"] = t["<="] = [](Evaluator&, const Value& v, Call& c) { return v.compare(other(c), "<=") <= 0; };
    t["gt"] = t[">"] = t["greaterthan"] = [](Evaluator&, const Value& v, Call& c) { return v.compare(other(c), ">") > 0; };
    t["ge"] = t[">="] = [](Evaluator&, const Value& v, Call& c) { return v.compare(other(c), ">=") >= 0; };
    t["in"] = [](Evaluator& e, const Value& v, Call& c) {
      e.spend(other(c).weight());
      return other(c).contains(v);
    };
    t["sameas"] = [](Evaluator&, const Value& v, Call& c) { return v.same(other(c)); };
    t["lower"] = [](Evaluator&, const Value& v, Call&) { return is_cased(text_of(v), false); };
    t["upper"] = [](Evaluator&, const Value& v, Call&) { return is_cased(text_of(v), true); };
    t["filter"] = [](Evaluator&, const Value& v, Call&) { return has_filter(text_of(v)); };
    t["test"] = [](Evaluator&, const Value& v, Call&) { return has_test(text_of(v)); };
    t["escaped"] = [](Evaluator&, const Value&, Call&) { return false; };
    return t;
  }();
  return table;
}

struct Function final : Callable {
  using Body = Value (*)(Evaluator&, Call&);
  Function(std::string n, Body b) : label(std::move(n)), body(b) {}
  Value call(Evaluator& evaluator, Call& call) const override { return body(evaluator, call); }
  std::string name() const override { return label; }
  std::string label;
  Body body;
};

Value range(Evaluator& evaluator, Call& call) {
  if (call.positional.empty() || call.positional.size() > 3) template_error("range expects 1 to 3 arguments");
  int64_t begin = 0, step = 1, end = whole(call.positional[0], "an argument of range");
  if (call.positional.size() > 1) begin = end, end = whole(call.positional[1], "an argument of range");
  if (call.positional.size() > 2) step = whole(call.positional[2], "an argument of range");
  if (step == 0) template_error("range() arg 3 must not be zero");
  List out;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (out.size() >= 100000) template_error("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
    out.push_back(Value::integer(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return evaluator.list(std::move(out));
}

Value dict_of(Evaluator& evaluator, Call& call) {
  Dict out;
  if (!call.positional.empty()) {
    const Value& from = call.positional[0];
    evaluator.spend_bytes(static_cast<size_t>(from.weight()) * 16);
    if (from.is_dict()) {
      for (const auto& [key, value] : from.as_dict().items()) out.set(key, value);
    } else {
      for (const Value& pair : from.iterate()) {
        const List parts = pair.iterate();
        if (parts.size() != 2)
          template_error("dictionary update sequence element has length " + std::to_string(parts.size()) + "; 2 is required");
        out.set(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [key, value] : call.named) out.set(Value::string(key), value);
  return Value::dict(std::move(out));
}

Value strftime_now(Evaluator& evaluator, Call& call) {
  const Value format = call.take(0, "format", Value());
  if (!format.is_string()) template_error("strftime_now needs a format");
  if (format.as_string().empty()) return Value::string("");
  if (format.as_string().size() > 1000) template_error("strftime_now's format is too long (at most 1000 bytes)");
  const std::time_t seconds = std::chrono::system_clock::to_time_t(evaluator.now());
  std::tm local{};
  localtime_r(&seconds, &local);
  const std::string marked = format.as_string() + " ";  // an empty result would look like a failure
  char buffer[8192];
  const size_t size = std::strftime(buffer, sizeof buffer, marked.c_str(), &local);
  if (size == 0) template_error("strftime_now cannot write " + format.as_string());
  return Value::string(replace_invalid_utf8(std::string_view(buffer, size - 1)));
}

}  // namespace

bool has_filter(const std::string& name) { return filters().contains(name); }
bool has_test(const std::string& name) { return tests().contains(name); }

Value Evaluator::apply_filter(const std::string& name, const Value& value, Call& call) {
  const auto found = filters().find(name);
  if (found == filters().end()) template_error("no filter named '" + name + "'");
  spend(1 + value.weight());
  return found->second(*this, value, call);
}

bool Evaluator::apply_test(const std::string& name, const Value& value, Call& call) {
  const auto found = tests().find(name);
  if (found == tests().end()) template_error("no test named '" + name + "'");
  spend(1);
  return found->second(*this, value, call);
}

Value global(const std::string& name) {
  Function::Body body = nullptr;
  if (name == "range") body = range;
  if (name == "dict") body = dict_of;
  if (name == "strftime_now") body = strftime_now;
  if (name == "raise_exception") {
    body = [](Evaluator&, Call& call) -> Value { throw TemplateError{call.take(0, "message", Value::string("")).str(), true}; };
  }
  if (name == "namespace") {
    body = [](Evaluator& evaluator, Call& call) {
      const Value from = dict_of(evaluator, call);
      Namespace* space = evaluator.new_namespace();
      for (const auto& [key, value] : from.as_dict().items()) {
        const std::string member = key.str();
        if (member.starts_with('_')) template_error("a namespace cannot hold " + member + " (a name without underscore in front)");
        space->members[member] = value;
      }
      return Value::space(space);
    };
  }
  return body ? Value::callable(std::make_shared<Function>(name, body)) : Value();
}

}  // namespace tandem::jinja
