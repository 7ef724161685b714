// Looks for stop strings in text that arrives in pieces. Holds back whatever may still turn into a stop string, so that no part of one
// is ever shown. Among the stop strings that are complete after a piece, the one that begins first counts: what has been shown, joined,
// is the whole text cut before it. O(length of the text x number of stop strings). Belongs to one stream of one thread.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tandem {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);  // none of them empty

  std::string feed(std::string_view text);  // what can be shown now; nothing more after a match
  std::string flush();                      // what was held back, when the text ends without a match

  bool matched() const { return matched_.has_value(); }
  std::optional<size_t> matched_index() const { return matched_; }  // into the list of the constructor
  const std::string& matched_stop() const { return stops_[*matched_].text; }

 private:
  struct Stop {
    std::string text;
    std::vector<uint32_t> border;  // Knuth-Morris-Pratt: the longest proper prefix that is also a suffix
    uint32_t state = 0;            // characters of the stop string that the text ends with
  };
  std::vector<Stop> stops_;
  std::string held_;
  std::optional<size_t> matched_;
};

}  // namespace tandem
