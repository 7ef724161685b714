#include "sharding/paragraph.h"

#include <algorithm>

namespace tandem {

std::string pad(std::string text, size_t width, bool right) {
  if (text.size() < width) text.insert(right ? 0 : text.size(), width - text.size(), ' ');
  return text;
}

void wrap(std::string& out, const std::string& text, size_t columns, size_t indent, size_t first) {
  std::string line(first, ' ');
  bool fresh = true;  // no word on the line yet
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    std::string word = text.substr(begin, end - begin);
    if (!fresh && (line.size() + 1 + word.size() > columns)) {
      out += line + "\n";
      line = std::string(indent, ' ');
      fresh = true;
    }
    while (line.size() + word.size() > columns) {  // a word longer than a line
      const size_t room = columns - line.size();
      out += line + word.substr(0, room) + "\n";
      line = std::string(indent, ' ');
      word = word.substr(room);
    }
    line += (fresh ? "" : " ") + word;
    fresh = false;
    begin = end + 1;
  }
  out += line + "\n";
}

}  // namespace tandem
