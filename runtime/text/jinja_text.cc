#include "runtime/text/jinja_text.h"

#include <unicode/bytestream.h>
#include <unicode/casemap.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"
#include "runtime/text/char_class.h"
#include "runtime/text/utf8.h"

namespace tandem::jinja {
namespace {

bool is_white(char32_t c) { return is_space(c) || (c >= 0x1C && c <= 0x1F); }

template <class Map>
std::string with_icu(std::string_view text, const Map& map) {
  std::string out;
  icu::StringByteSink<std::string> sink(&out);
  UErrorCode status = U_ZERO_ERROR;
  map(icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, status);
  if (U_FAILURE(status)) fail(Code::internal, "chat template", std::string("ICU: ") + u_errorName(status));
  return out;
}

bool is_cased_char(char32_t c) { return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_CASED); }

// printf for one number, spelled "%<flags><width>.<precision><kind>"; width and precision were bounded before.
std::string number_text(const std::string& spec, char kind, const Value& value) {
  char buffer[1200];
  if (kind == 'd' || kind == 'x' || kind == 'X' || kind == 'o') {
    if (value.is_real() && !(std::abs(value.as_real()) < 9.2e18)) template_error("a number is too large for a whole number");
    const auto number = static_cast<long long>(value.is_real() ? static_cast<int64_t>(value.as_real()) : value.as_int());
    const bool hexadecimal = kind != 'd';
    if (hexadecimal && number < 0) template_error("a negative number has no such form");
    std::snprintf(buffer, sizeof buffer, (spec + "ll" + kind).c_str(), number);
  } else {
    std::snprintf(buffer, sizeof buffer, (spec + kind).c_str(), value.as_real());
  }
  return buffer;
}

}  // namespace

std::string upper_text(std::string_view text) {
  return with_icu(text, [](icu::StringPiece in, icu::ByteSink& out, UErrorCode& status) {
    icu::CaseMap::utf8ToUpper("", 0, in, out, nullptr, status);
  });
}

std::string lower_text(std::string_view text) {
  return with_icu(text, [](icu::StringPiece in, icu::ByteSink& out, UErrorCode& status) {
    icu::CaseMap::utf8ToLower("", 0, in, out, nullptr, status);
  });
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string capitalize_text(std::string_view text) {
  if (text.empty()) return {};
  const DecodedChar first = decode_utf8(text, 0);
  std::string out;
  append_utf8(out, static_cast<char32_t>(u_totitle(static_cast<UChar32>(first.code))));
  return out + lower_text(text.substr(first.length));
}

std::string title_text(std::string_view text, bool jinja) {
  std::string out;
  bool start = true;
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    const std::string_view piece = text.substr(at, c.length);
    const bool word = jinja ? !(is_white(c.code) || c.code == '-' || c.code == '(' || c.code == '{' || c.code == '[' || c.code == '<')
                            : is_cased_char(c.code);
    out += !word ? std::string(piece) : start ? upper_text(piece) : lower_text(piece);
    start = !word;
    at += c.length;
  }
  return out;
}

bool is_cased(std::string_view text, bool upper) {
  bool any = false;
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    const auto u = static_cast<UChar32>(c.code);
    if (u_isUUppercase(u)) {
      if (!upper) return false;
      any = true;
    } else if (u_isULowercase(u)) {
      if (upper) return false;
      any = true;
    }
    at += c.length;
  }
  return any;
}

std::string strip_text(std::string_view text, const std::optional<std::string>& characters, bool left, bool right) {
  std::vector<char32_t> set;
  if (characters) {
    for (size_t at = 0; at < characters->size();) {
      const DecodedChar c = decode_utf8(*characters, at);
      set.push_back(c.code);
      at += c.length;
    }
    std::sort(set.begin(), set.end());
  }
  auto goes = [&](char32_t c) { return characters ? std::binary_search(set.begin(), set.end(), c) : is_white(c); };
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    const DecodedChar c = decode_utf8(text, begin);
    if (!goes(c.code)) break;
    begin += c.length;
  }
  while (right && end > begin) {
    size_t at = end - 1;
    while (at > begin && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
    if (!goes(decode_utf8(text, at).code)) break;
    end = at;
  }
  return std::string(text.substr(begin, end - begin));
}

std::vector<std::string> split_text(std::string_view text, std::string_view separator, int64_t limit) {
  if (separator.empty()) template_error("empty separator");
  std::vector<std::string> out;
  size_t from = 0;
  for (size_t at; limit != 0 && (at = text.find(separator, from)) != std::string_view::npos; from = at + separator.size()) {
    out.emplace_back(text.substr(from, at - from));
    if (limit > 0) --limit;
  }
  out.emplace_back(text.substr(from));
  return out;
}

std::vector<std::string> split_space(std::string_view text, int64_t limit) {
  std::vector<std::string> out;
  size_t from = std::string_view::npos;
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    if (is_white(c.code)) {
      if (from != std::string_view::npos) out.emplace_back(text.substr(from, at - from));
      from = std::string_view::npos;
    } else if (from == std::string_view::npos) {
      if (limit == 0) {
        out.push_back(strip_text(text.substr(at), {}, false, true));
        return out;
      }
      from = at;
      if (limit > 0) --limit;
    }
    at += c.length;
  }
  if (from != std::string_view::npos) out.emplace_back(text.substr(from));
  return out;
}

std::vector<std::string> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string> out;
  size_t from = 0;
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    size_t next = at + c.length;
    const char32_t code = c.code;
    if (!(code >= 0x0A && code <= 0x0D) && !(code >= 0x1C && code <= 0x1E) && code != 0x85 && code != 0x2028 && code != 0x2029) {
      at = next;
      continue;
    }
    if (code == '\r' && next < text.size() && text[next] == '\n') ++next;
    out.emplace_back(text.substr(from, (keep_ends ? next : at) - from));
    from = at = next;
  }
  if (from < text.size()) out.emplace_back(text.substr(from));
  return out;
}

std::string replace_text(Evaluator& evaluator, std::string_view text, std::string_view from, std::string_view to, int64_t limit) {
  std::string out;
  auto add = [&](std::string_view part) {
    if (out.size() + part.size() > (size_t{16} << 20)) evaluator.spend_bytes(out.size() + part.size());
    out += part;
  };
  size_t at = 0;
  if (from.empty()) {  // Python: between all characters
    while (limit != 0) {
      add(to);
      if (limit > 0) --limit;
      if (at == text.size()) return out;
      const size_t length = decode_utf8(text, at).length;
      add(text.substr(at, length));
      at += length;
    }
    add(text.substr(at));
    return out;
  }
  for (size_t found; limit != 0 && (found = text.find(from, at)) != std::string_view::npos; at = found + from.size()) {
    add(text.substr(at, found - at));
    add(to);
    if (limit > 0) --limit;
  }
  add(text.substr(at));
  return out;
}

std::string pad_text(Evaluator& evaluator, std::string_view text, int64_t width, std::string_view fill, int side) {
  const auto size = static_cast<int64_t>(count_utf8(text));
  if (width <= size) return std::string(text);
  const int64_t space = width - size;
  if (space > (int64_t{16} << 20)) evaluator.spend_bytes(static_cast<size_t>(space));
  int64_t before = side < 0 ? 0 : side > 0 ? space : space / 2 + (space & width & 1);
  std::string out;
  for (int64_t i = 0; i < before; ++i) out += fill;
  out += text;
  for (int64_t i = before; i < space; ++i) out += fill;
  return out;
}

std::string format_percent(Evaluator& evaluator, std::string_view format, Call& call) {
  std::string out;
  size_t next = 0;
  bool by_name = false;
  auto argument = [&]() -> const Value& {
    if (next >= call.positional.size()) template_error("not enough arguments for format string");
    return call.positional[next++];
  };
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    if (++i == format.size()) template_error("incomplete format");
    if (format[i] == '%') {
      out += '%';
      continue;
    }
    const Value* named = nullptr;
    if (format[i] == '(') {
      const size_t end = format.find(')', i);
      if (end == std::string_view::npos) template_error("incomplete format key");
      const std::string_view key = format.substr(i + 1, end - i - 1);
      if (const Value* found = call.find(key)) {
        named = found;
      } else if (!call.positional.empty() && call.positional[0].is_dict()) {
        named = call.positional[0].as_dict().find(key);
      }
      if (!named) template_error("the format names '" + std::string(key) + "', which is not given");
      by_name = true;
      i = end + 1;
    }
    std::string spec = "%";
    bool left = false;
    while (i < format.size() && std::string_view("-+ 0#").find(format[i]) != std::string_view::npos) {
      left |= format[i] == '-';
      spec += format[i++];
    }
    auto digits = [&](int64_t most) {
      int64_t value = 0;
      while (i < format.size() && format[i] >= '0' && format[i] <= '9') {
        value = value * 10 + (format[i++] - '0');
        if (value > most) template_error("a format's width is too large (at most " + std::to_string(most) + ")");
      }
      return value;
    };
    const int64_t width = digits(500);
    int64_t precision = -1;
    if (i < format.size() && format[i] == '.') {
      ++i;
      precision = digits(300);
    }
    if (i == format.size()) template_error("incomplete format");
    const char kind = format[i];
    const Value value = named ? *named : argument();
    if (width) spec += std::to_string(width);
    if (precision >= 0) spec += "." + std::to_string(precision);
    if (kind == 's' || kind == 'r') {
      std::string text = kind == 's' ? value.str() : value.repr();
      if (precision >= 0) {
        const Characters characters(text);
        text = std::string(characters.range(0, std::min(precision, characters.size())));
      }
      out += pad_text(evaluator, text, width, " ", left ? -1 : 1);
    } else if (std::string_view("diuxXofFeEgG").find(kind) != std::string_view::npos) {
      if (!value.is_number()) template_error(std::string("%") + kind + " format: a number is required, not " + value.type_name());
      out += number_text(spec, kind == 'i' || kind == 'u' ? 'd' : kind, value);
    } else {
      template_error(std::string("unsupported format character '") + kind + "'");
    }
    if (out.size() > (size_t{16} << 20)) evaluator.spend_bytes(out.size());
  }
  if (!by_name && next < call.positional.size() && !(call.positional.size() == 1 && call.positional[0].is_dict())) {
    template_error("not all arguments converted during string formatting");
  }
  return out;
}

namespace {

// [[fill]align][sign][0][width][,][.precision][kind]
std::string format_spec(Evaluator& evaluator, const Value& value, std::string_view spec) {
  if (spec.empty()) return value.str();
  std::string fill = " ";
  char align = '\0', sign = '-';
  const size_t first = decode_utf8(spec, 0).length;
  auto is_align = [](char c) { return c == '<' || c == '>' || c == '^'; };
  size_t i = 0;
  if (first < spec.size() && is_align(spec[first])) {
    fill = spec.substr(0, first);
    align = spec[first];
    i = first + 1;
  } else if (is_align(spec[0])) {
    align = spec[0];
    i = 1;
  }
  if (i < spec.size() && (spec[i] == '+' || spec[i] == ' ' || spec[i] == '-')) sign = spec[i++];
  if (i < spec.size() && spec[i] == '0') {
    if (!align) fill = "0";
    ++i;
  }
  auto digits = [&](int64_t most) {
    int64_t number = 0;
    while (i < spec.size() && spec[i] >= '0' && spec[i] <= '9') {
      number = number * 10 + (spec[i++] - '0');
      if (number > most) template_error("a format's width is too large (at most " + std::to_string(most) + ")");
    }
    return number;
  };
  const int64_t width = digits(100000);
  bool thousands = false;
  if (i < spec.size() && spec[i] == ',') thousands = true, ++i;
  int64_t precision = -1;
  if (i < spec.size() && spec[i] == '.') {
    ++i;
    precision = digits(300);
  }
  char kind = i < spec.size() ? spec[i++] : '\0';
  if (i != spec.size()) template_error("invalid format specifier '" + std::string(spec) + "'");
  std::string text;
  const bool number = value.is_number() && kind != 's';
  if (!number) {
    if (kind && kind != 's') template_error("unknown format code '" + std::string(1, kind) + "' for '" + value.type_name() + "'");
    text = value.str();
    if (precision >= 0) {
      const Characters characters(text);
      text = std::string(characters.range(0, std::min(precision, characters.size())));
    }
  } else {
    bool percent = false;
    Value shown = value;
    if (kind == '%') percent = true, kind = 'f', shown = Value::real(value.as_real() * 100);
    if (!kind && precision >= 0) kind = 'g';
    if (!kind) {
      text = value.is_bool() ? std::to_string(value.as_int()) : value.str();
    } else if (std::string_view("dxXofFeEgG").find(kind) != std::string_view::npos) {
      if (std::string_view("dxXo").find(kind) != std::string_view::npos && value.is_real()) {
        template_error("unknown format code '" + std::string(1, kind) + "' for 'float'");
      }
      std::string printf_spec = "%";
      if (precision >= 0) printf_spec += "." + std::to_string(precision);
      text = number_text(printf_spec, kind, shown);
    } else {
      template_error("unknown format code '" + std::string(1, kind) + "'");
    }
    if (percent) text += '%';
    if (thousands) {
      const size_t start = text.starts_with('-') ? 1 : 0;
      size_t end = text.find_first_not_of("0123456789", start);
      if (end == std::string::npos) end = text.size();
      for (size_t at = end; at > start + 3;) text.insert(at -= 3, ",");
    }
    if (sign != '-' && !text.starts_with('-')) text.insert(text.begin(), sign);
    if (fill == "0" && !align) {
      const size_t start = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
      if (static_cast<int64_t>(text.size()) < width) text.insert(start, static_cast<size_t>(width) - text.size(), '0');
    }
  }
  return pad_text(evaluator, text, width, fill, align == '^' ? 0 : align == '>' || (!align && number) ? 1 : -1);
}

}  // namespace

std::string format_braces(Evaluator& evaluator, std::string_view format, Call& call) {
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    const char c = format[i];
    if (c != '{' && c != '}') {
      out += c;
      continue;
    }
    if (i + 1 < format.size() && format[i + 1] == c) {
      out += c;
      ++i;
      continue;
    }
    if (c == '}') template_error("single '}' encountered in format string");
    const size_t end = format.find('}', i);
    if (end == std::string_view::npos) template_error("expected '}' before end of string");
    std::string_view field = format.substr(i + 1, end - i - 1), spec;
    i = end;
    if (field.find('{') != std::string_view::npos) template_error("nested fields in a format are not supported");
    if (const size_t colon = field.find(':'); colon != std::string_view::npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    bool repr = false;
    if (field.ends_with("!r") || field.ends_with("!s")) {
      repr = field.back() == 'r';
      field.remove_suffix(2);
    }
    const size_t path = std::min(field.find_first_of(".["), field.size());
    const std::string name(field.substr(0, path));
    Value value;
    const bool number = !name.empty() && name.size() < 6 && name.find_first_not_of("0123456789") == std::string::npos;
    if (name.empty() || number) {
      const size_t index = name.empty() ? next++ : static_cast<size_t>(std::stoul(name));
      if (index >= call.positional.size())
        template_error("Replacement index " + std::to_string(index) + " out of range for positional args tuple");
      value = call.positional[index];
    } else {
      const Value* found = call.find(name);
      if (!found) template_error("the format names '" + name + "', which is not given");
      value = *found;
    }
    for (size_t at = path; at < field.size();) {
      if (field[at] == '.') {
        const size_t stop = std::min(field.find_first_of(".[", at + 1), field.size());
        value = evaluator.attribute(value, std::string(field.substr(at + 1, stop - at - 1)));
        at = stop;
      } else {
        const size_t stop = field.find(']', at);
        if (stop == std::string_view::npos) template_error("expected ']' in a format");
        const std::string key(field.substr(at + 1, stop - at - 1));
        const bool index = !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos;
        value = evaluator.item(value, index ? Value::integer(std::stoll(key)) : Value::string(key));
        at = stop + 1;
      }
    }
    out += format_spec(evaluator, repr ? Value::string(value.repr()) : value, spec);
    if (out.size() > (size_t{16} << 20)) evaluator.spend_bytes(out.size());
  }
  return out;
}

}  // namespace tandem::jinja
