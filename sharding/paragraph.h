// Text for people in columns: what reports are laid out with. Pure.
#pragma once
#include <cstddef>
#include <string>

namespace tandem {

std::string pad(std::string text, size_t width, bool right = false);  // with spaces; right: the text ends the column

// A paragraph of words, never wider than `columns`: `first` spaces before it, `indent` before its other lines.
void wrap(std::string& out, const std::string& text, size_t columns, size_t indent, size_t first = 0);

}  // namespace tandem
