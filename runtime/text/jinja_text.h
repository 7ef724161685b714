// Python's string methods as chat templates meet them, over valid UTF-8. What can grow is charged to the evaluator first.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/jinja_evaluator.h"

namespace tandem::jinja {

std::string upper_text(std::string_view text);
std::string lower_text(std::string_view text);
std::string capitalize_text(std::string_view text);
std::string title_text(std::string_view text, bool jinja);  // jinja: the filter's idea of a word; else str.title's
std::string escape_html(std::string_view text);
bool is_cased(std::string_view text, bool upper);  // str.isupper, str.islower
std::string strip_text(std::string_view text, const std::optional<std::string>& characters, bool left,
                       bool right);                                                                     // no characters: white space
std::vector<std::string> split_text(std::string_view text, std::string_view separator, int64_t limit);  // limit < 0: none
std::vector<std::string> split_space(std::string_view text, int64_t limit);
std::vector<std::string> split_lines(std::string_view text, bool keep_ends);
std::string replace_text(Evaluator& evaluator, std::string_view text, std::string_view from, std::string_view to, int64_t limit);
std::string pad_text(Evaluator& evaluator, std::string_view text, int64_t width, std::string_view fill,
                     int side);                                                         // -1 left-justified, 0, 1
std::string format_percent(Evaluator& evaluator, std::string_view format, Call& call);  // format % arguments
std::string format_braces(Evaluator& evaluator, std::string_view format, Call& call);   // format.format(...)

}  // namespace tandem::jinja
