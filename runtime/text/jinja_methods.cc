// The methods of Python's str, list, tuple and dict that a template may call. What would change a value is refused, as transformers'
// sandbox refuses it.
#include <unicode/uchar.h>

#include <algorithm>

#include "runtime/text/jinja_evaluator.h"
#include "runtime/text/jinja_text.h"
#include "runtime/text/utf8.h"

namespace tandem::jinja {
namespace {

using Body = Value (*)(Evaluator&, const Value& self, Call&);

struct Method final : Callable {
  Method(Value s, std::string n, Body b) : self(std::move(s)), label(std::move(n)), body(b) {}
  Value call(Evaluator& evaluator, Call& call) const override {
    evaluator.spend(1 + (self.is_string() ? self.weight() : 0));
    return body(evaluator, self, call);
  }
  std::string name() const override { return label; }
  Value self;
  std::string label;
  Body body;
};

const std::string& string_argument(const Value& value, std::string_view what) {
  if (value.is_undefined()) template_error(value.undefined_hint());
  if (!value.is_string()) template_error(std::string(what) + " must be str, not " + value.type_name());
  return value.as_string();
}

int64_t whole(const Value& value, std::string_view what) {
  if (!value.is_int() && !value.is_bool()) template_error(std::string(what) + " must be a whole number, not " + value.type_name());
  return value.as_int();
}

template <bool left, bool right>
Value strip(Evaluator& e, const Value& self, Call& c) {
  const Value characters = c.take(0, "chars", Value::none());
  std::optional<std::string> set;
  if (!characters.is_none()) set = string_argument(characters, "the argument of strip");
  return e.text(strip_text(self.as_string(), set, left, right));
}

Value strings(Evaluator& e, std::vector<std::string> parts) {
  List out;
  size_t bytes = 0;
  for (std::string& part : parts) {
    bytes += part.size();
    out.push_back(Value::string(std::move(part)));
  }
  e.spend_bytes(bytes);
  return e.list(std::move(out));
}

Value split(Evaluator& e, const Value& self, Call& c) {
  const Value separator = c.take(0, "sep", Value::none());
  const int64_t limit = whole(c.take(1, "maxsplit", Value::integer(-1)), "maxsplit");
  if (separator.is_none()) return strings(e, split_space(self.as_string(), limit));
  return strings(e, split_text(self.as_string(), string_argument(separator, "the separator"), limit));
}

Value rsplit(Evaluator& e, const Value& self, Call& c) {
  const Value separator = c.take(0, "sep", Value::none());
  int64_t limit = whole(c.take(1, "maxsplit", Value::integer(-1)), "maxsplit");
  if (limit < 0) return split(e, self, c);
  std::vector<std::string> parts;
  std::string_view rest = self.as_string();
  std::string kept;
  if (separator.is_none()) {
    kept = strip_text(rest, {}, false, true);
    while (!kept.empty()) {
      const std::vector<std::string> words = split_space(kept, -1);
      if (limit-- == 0) {
        parts.push_back(kept);
        break;
      }
      parts.push_back(words.back());
      kept.resize(kept.size() - words.back().size());
      kept = strip_text(kept, {}, false, true);
      e.spend(static_cast<int64_t>(words.size()));
    }
  } else {
    const std::string& mark = string_argument(separator, "the separator");
    if (mark.empty()) template_error("empty separator");
    for (size_t at; limit > 0 && (at = rest.rfind(mark)) != std::string_view::npos; --limit) {
      parts.emplace_back(rest.substr(at + mark.size()));
      rest = rest.substr(0, at);
    }
    parts.emplace_back(rest);
  }
  std::reverse(parts.begin(), parts.end());
  return strings(e, std::move(parts));
}

// startswith and endswith take one string or a tuple of them.
Value affix(const Value& self, Call& c, bool start) {
  const Value what = c.take(0, "prefix", Value());
  auto fits = [&](const Value& v) {
    const std::string& text = string_argument(v, start ? "startswith's argument" : "endswith's argument");
    return start ? self.as_string().starts_with(text) : self.as_string().ends_with(text);
  };
  if (!what.is_tuple()) return Value::boolean(fits(what));
  return Value::boolean(std::any_of(what.as_list().begin(), what.as_list().end(), fits));
}

// find, rfind, index, rindex: positions are counted in characters.
Value find(const Value& self, Call& c, bool last, bool must) {
  const std::string& text = self.as_string();
  const std::string& what = string_argument(c.take(0, "sub", Value()), "the argument");
  const Characters characters(text);
  auto place = [&](size_t i, int64_t absent) {
    const Value v = c.take(i, "", Value::none());
    if (v.is_none()) return absent;
    int64_t at = whole(v, "a position");
    if (at < 0) at += characters.size();
    return std::clamp<int64_t>(at, 0, characters.size());
  };
  const int64_t from = place(1, 0), to = place(2, characters.size());
  if (from <= to) {
    const std::string_view range = characters.range(from, to);
    const size_t at = last ? range.rfind(what) : range.find(what);
    if (at != std::string_view::npos) return Value::integer(from + static_cast<int64_t>(count_utf8(range.substr(0, at))));
  }
  if (must) template_error("substring not found");
  return Value::integer(-1);
}

template <class Test>
Value all_characters(const Value& self, const Test& test) {
  const std::string& text = self.as_string();
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    if (!test(static_cast<UChar32>(c.code))) return Value::boolean(false);
    at += c.length;
  }
  return Value::boolean(!text.empty());
}

Value partition(Evaluator& e, const Value& self, Call& c, bool last) {
  const std::string& text = self.as_string();
  const std::string& mark = string_argument(c.take(0, "sep", Value()), "the separator");
  if (mark.empty()) template_error("empty separator");
  const size_t at = last ? text.rfind(mark) : text.find(mark);
  e.spend_bytes(text.size());
  List parts;
  if (at == std::string::npos) {
    const Value empty = Value::string("");
    parts = last ? List{empty, empty, self} : List{self, empty, empty};
  } else {
    parts = {Value::string(text.substr(0, at)), Value::string(mark), Value::string(text.substr(at + mark.size()))};
  }
  return Value::sequence(std::move(parts), true);
}

Value justify(Evaluator& e, const Value& self, Call& c, int side) {
  const Value fill = c.take(1, "fillchar", Value::string(" "));
  if (!fill.is_string() || count_utf8(fill.as_string()) != 1) template_error("the fill character must be exactly one character long");
  return e.text(pad_text(e, self.as_string(), whole(c.take(0, "width", Value()), "width"), fill.as_string(), side));
}

Body string_method(const std::string& name) {
  static const std::unordered_map<std::string_view, Body> table = [] {
    std::unordered_map<std::string_view, Body> t;
    t["strip"] = strip<true, true>;
    t["lstrip"] = strip<true, false>;
    t["rstrip"] = strip<false, true>;
    t["split"] = split;
    t["rsplit"] = rsplit;
    t["splitlines"] = [](Evaluator& e, const Value& s, Call& c) {
      return strings(e, split_lines(s.as_string(), c.take(0, "keepends", Value::boolean(false)).truth()));
    };
    t["startswith"] = [](Evaluator&, const Value& s, Call& c) { return affix(s, c, true); };
    t["endswith"] = [](Evaluator&, const Value& s, Call& c) { return affix(s, c, false); };
    t["upper"] = [](Evaluator& e, const Value& s, Call&) { return e.text(upper_text(s.as_string())); };
    t["lower"] = t["casefold"] = [](Evaluator& e, const Value& s, Call&) { return e.text(lower_text(s.as_string())); };
    t["title"] = [](Evaluator& e, const Value& s, Call&) { return e.text(title_text(s.as_string(), false)); };
    t["capitalize"] = [](Evaluator& e, const Value& s, Call&) { return e.text(capitalize_text(s.as_string())); };
    t["replace"] = [](Evaluator& e, const Value& s, Call& c) {
      const int64_t count = whole(c.take(2, "count", Value::integer(-1)), "count");
      const Value from = c.take(0, "", Value()), to = c.take(1, "", Value());
      return e.text(
          replace_text(e, s.as_string(), string_argument(from, "replace's argument"), string_argument(to, "replace's argument"), count));
    };
    t["find"] = [](Evaluator&, const Value& s, Call& c) { return find(s, c, false, false); };
    t["rfind"] = [](Evaluator&, const Value& s, Call& c) { return find(s, c, true, false); };
    t["index"] = [](Evaluator&, const Value& s, Call& c) { return find(s, c, false, true); };
    t["rindex"] = [](Evaluator&, const Value& s, Call& c) { return find(s, c, true, true); };
    t["count"] = [](Evaluator&, const Value& s, Call& c) {
      const std::string& what = string_argument(c.take(0, "sub", Value()), "count's argument");
      if (what.empty()) return Value::integer(static_cast<int64_t>(count_utf8(s.as_string())) + 1);
      int64_t count = 0;
      for (size_t at = 0; (at = s.as_string().find(what, at)) != std::string::npos; at += what.size()) ++count;
      return Value::integer(count);
    };
    t["join"] = [](Evaluator& e, const Value& s, Call& c) {
      std::string out;
      bool first = true;
      for (const Value& item : c.take(0, "iterable", Value()).iterate()) {
        e.spend(1);
        if (!first) out += s.as_string();
        first = false;
        out += string_argument(item, "an item of join");
        if (out.size() > (size_t{16} << 20)) e.spend_bytes(out.size());
      }
      return e.text(std::move(out));
    };
    t["format"] = [](Evaluator& e, const Value& s, Call& c) { return e.text(format_braces(e, s.as_string(), c)); };
    t["partition"] = [](Evaluator& e, const Value& s, Call& c) { return partition(e, s, c, false); };
    t["rpartition"] = [](Evaluator& e, const Value& s, Call& c) { return partition(e, s, c, true); };
    t["removeprefix"] = [](Evaluator& e, const Value& s, Call& c) {
      const std::string& what = string_argument(c.take(0, "prefix", Value()), "removeprefix's argument");
      return e.text(s.as_string().starts_with(what) ? s.as_string().substr(what.size()) : s.as_string());
    };
    t["removesuffix"] = [](Evaluator& e, const Value& s, Call& c) {
      const std::string& what = string_argument(c.take(0, "suffix", Value()), "removesuffix's argument");
      return e.text(s.as_string().ends_with(what) ? s.as_string().substr(0, s.as_string().size() - what.size()) : s.as_string());
    };
    t["center"] = [](Evaluator& e, const Value& s, Call& c) { return justify(e, s, c, 0); };
    t["ljust"] = [](Evaluator& e, const Value& s, Call& c) { return justify(e, s, c, -1); };
    t["rjust"] = [](Evaluator& e, const Value& s, Call& c) { return justify(e, s, c, 1); };
    t["zfill"] = [](Evaluator& e, const Value& s, Call& c) {
      const std::string& text = s.as_string();
      const bool sign = text.starts_with('-') || text.starts_with('+');
      const int64_t width = whole(c.take(0, "width", Value()), "width") - (sign ? 1 : 0);
      return e.text(text.substr(0, sign ? 1 : 0) + pad_text(e, text.substr(sign ? 1 : 0), width, "0", 1));
    };
    t["isdigit"] = t["isdecimal"] =
        t["isnumeric"] = [](Evaluator&, const Value& s, Call&) { return all_characters(s, [](UChar32 c) { return u_isdigit(c); }); };
    t["isalpha"] = [](Evaluator&, const Value& s, Call&) { return all_characters(s, [](UChar32 c) { return u_isalpha(c); }); };
    t["isalnum"] = [](Evaluator&, const Value& s, Call&) { return all_characters(s, [](UChar32 c) { return u_isalnum(c); }); };
    t["isspace"] = [](Evaluator&, const Value& s, Call&) {
      return all_characters(s, [](UChar32 c) { return u_isUWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); });
    };
    t["isascii"] = [](Evaluator&, const Value& s, Call&) {
      return Value::boolean(std::all_of(s.as_string().begin(), s.as_string().end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; }));
    };
    t["isupper"] = [](Evaluator&, const Value& s, Call&) { return Value::boolean(is_cased(s.as_string(), true)); };
    t["islower"] = [](Evaluator&, const Value& s, Call&) { return Value::boolean(is_cased(s.as_string(), false)); };
    return t;
  }();
  const auto found = table.find(name);
  return found == table.end() ? nullptr : found->second;
}

Body sequence_method(const std::string& name, bool tuple) {
  if (name == "count") {
    return [](Evaluator& e, const Value& s, Call& c) {
      e.spend(s.weight());
      const Value what = c.take(0, "value", Value());
      return Value::integer(std::count_if(s.as_list().begin(), s.as_list().end(), [&](const Value& v) { return v.equals(what); }));
    };
  }
  if (name == "index") {
    return [](Evaluator& e, const Value& s, Call& c) {
      e.spend(s.weight());
      const Value what = c.take(0, "value", Value());
      for (size_t i = 0; i < s.as_list().size(); ++i) {
        if (s.as_list()[i].equals(what)) return Value::integer(static_cast<int64_t>(i));
      }
      template_error(what.repr() + " is not in list");
    };
  }
  if (name == "copy" && !tuple) return [](Evaluator&, const Value& s, Call&) { return s; };
  return nullptr;
}

Body dict_method(const std::string& name) {
  if (name == "get") {
    return [](Evaluator&, const Value& s, Call& c) {
      const Value* found = s.as_dict().find(c.take(0, "key", Value()));
      return found ? *found : c.take(1, "default", Value::none());
    };
  }
  if (name == "items") {
    return [](Evaluator& e, const Value& s, Call&) {
      List out;
      for (const auto& [key, value] : s.as_dict().items()) out.push_back(Value::sequence({key, value}, true));
      return e.list(std::move(out));
    };
  }
  if (name == "keys") return [](Evaluator& e, const Value& s, Call&) { return e.list(s.iterate()); };
  if (name == "values") {
    return [](Evaluator& e, const Value& s, Call&) {
      List out;
      for (const auto& [key, value] : s.as_dict().items()) out.push_back(value);
      return e.list(std::move(out));
    };
  }
  if (name == "copy") return [](Evaluator&, const Value& s, Call&) { return s; };
  return nullptr;
}

bool changes_value(const Value& value, std::string_view name) {
  static constexpr std::string_view of_list[] = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"};
  static constexpr std::string_view of_dict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  if (value.is_sequence() && !value.is_tuple()) return std::find(std::begin(of_list), std::end(of_list), name) != std::end(of_list);
  return value.is_dict() && std::find(std::begin(of_dict), std::end(of_dict), name) != std::end(of_dict);
}

}  // namespace

Value method(const Value& value, const std::string& name) {
  Body body = nullptr;
  if (value.is_string()) body = string_method(name);
  if (value.is_sequence()) body = sequence_method(name, value.is_tuple());
  if (value.is_dict()) body = dict_method(name);
  if (changes_value(value, name)) {
    struct Unsafe final : Callable {
      explicit Unsafe(std::string n) : label(std::move(n)) {}
      Value call(Evaluator&, Call&) const override { template_error(label + " would change a value (templates cannot)"); }
      std::string name() const override { return label; }
      std::string label;
    };
    return Value::callable(std::make_shared<Unsafe>(name));
  }
  return body ? Value::callable(std::make_shared<Method>(value, name, body)) : Value();
}

}  // namespace tandem::jinja
