#include "runtime/text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "kernels/base/error.h"

namespace tandem {

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& text : stops) {
    if (text.empty()) bad_input("stop", "a stop string is empty (at least one character)");
    Stop stop;
    stop.border.assign(text.size(), 0);
    for (uint32_t i = 1, k = 0; i < text.size(); ++i) {
      while (k && text[i] != text[k]) k = stop.border[k - 1];
      if (text[i] == text[k]) ++k;
      stop.border[i] = k;
    }
    stop.text = std::move(text);
    stops_.push_back(std::move(stop));
  }
}

std::string StopMatcher::feed(std::string_view text) {
  if (matched_) return {};
  const size_t before = held_.size();
  held_ += text;
  size_t first = std::string::npos, keep = 0;
  for (size_t s = 0; s < stops_.size(); ++s) {
    Stop& stop = stops_[s];
    for (size_t i = before; i < held_.size(); ++i) {
      while (stop.state && held_[i] != stop.text[stop.state]) stop.state = stop.border[stop.state - 1];
      if (held_[i] == stop.text[stop.state]) ++stop.state;
      if (stop.state < stop.text.size()) continue;
      // The state never counts characters that were shown already: they were held back because of it.
      const size_t begin = i + 1 - stop.text.size();
      if (begin < first) first = begin, matched_ = s;
      break;
    }
    keep = std::max<size_t>(keep, stop.state);
  }
  std::string shown = held_.substr(0, matched_ ? first : held_.size() - keep);
  if (matched_) {
    held_.clear();
  } else {
    held_.erase(0, shown.size());
  }
  return shown;
}

std::string StopMatcher::flush() { return std::exchange(held_, {}); }

}  // namespace tandem
