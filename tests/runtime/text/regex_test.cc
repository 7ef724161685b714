#include "runtime/text/regex.h"

#include <gmock/gmock.h>

#include "kernels/base/error.h"

namespace tandem {
namespace {

std::vector<std::string> matches(const char* pattern, std::string_view text) {
  const Regex regex(pattern, "test");
  RegexSearch search(regex, text);
  std::vector<std::string> out;
  for (size_t begin, end; search.next(begin, end);) out.emplace_back(text.substr(begin, end - begin));
  return out;
}

using testing::ElementsAre;

TEST(Regex, ReadsOnigurumasDialect) {
  EXPECT_THAT(matches(R"(\d{1,2}+)", "12345"), ElementsAre("12345"));  // two quantifiers, not a possessive one
  EXPECT_THAT(matches(R"((ab){2}+)", "abababab"), ElementsAre("abababab"));
  EXPECT_THAT(matches(R"(\h+)", "xffz09"), ElementsAre("ff", "09"));
  EXPECT_THAT(matches(R"((?m:a.b))", "a\nb"), ElementsAre("a\nb"));
  EXPECT_THAT(matches(R"(a.b)", "a\nb"), ElementsAre());
  EXPECT_THAT(matches(R"(\s+)",
                      "a\xE1\xA0\x8E"
                      "b\xC2\x85"),
              ElementsAre("\xC2\x85"));  // U+180E is no space
  EXPECT_THAT(matches(R"(\u4f60)", "你好"), ElementsAre("你"));
  EXPECT_THAT(matches(R"([\]a-c[:digit:]]+)", "x]b7"), ElementsAre("]b7"));
  EXPECT_THAT(matches(R"(a{,}|{)", "a{,}{"), ElementsAre("a{,}", "{"));
  EXPECT_THAT(matches(escape_regex("a.b*[é]").c_str(), "a.b*[é]axb"), ElementsAre("a.b*[é]"));
}

TEST(Regex, SkipsEmptyMatchesBehindMatches) {
  EXPECT_THAT(matches("x*", "axxb"), ElementsAre("", "xx", ""));
  EXPECT_THAT(matches("", "é"), ElementsAre("", ""));
}

TEST(Regex, RefusesWhatItCannotCarryOver) {
  for (const char* pattern : {"[a[b]]", "[a&&b]", "(", "[", "\\", "a**b(", "\\p{Nonsense}", "[[:alpha", "(?<n>", "\\C"}) {
    try {
      matches(pattern, "abc");
      ADD_FAILURE() << pattern;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument);
      EXPECT_EQ(error.where, "test");
    }
  }
  EXPECT_THROW(matches(std::string(70000, 'a').c_str(), ""), Error);
  EXPECT_THROW(matches((std::string(5000, '(') + std::string(5000, ')')).c_str(), ""), Error);
}

TEST(Regex, EndsWhenAPatternBacktracksWithoutEnd) { EXPECT_THROW(matches("(a|aa)+$", std::string(100, 'a') + "c"), Error); }

}  // namespace
}  // namespace tandem
