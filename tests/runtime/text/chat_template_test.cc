#include "runtime/text/chat_template.h"

#include <gmock/gmock.h>

#include "kernels/base/error.h"
#include "tests/runtime/text/fixture_files.h"

namespace tandem {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

class JudgedTemplate : public testing::TestWithParam<const char*> {};

TEST_P(JudgedTemplate, RendersAsTransformersDoes) {
  const Json expected = read_json(fixture(std::string("chat/") + GetParam() + ".json"));
  const ChatTemplate chat(read_file(fixture("chat/" + expected["template"].get<std::string>())), expected["template"]);
  for (const auto& row : expected["cases"]) {
    SCOPED_TRACE(row["name"].get<std::string>());
    Json variables = row.value("variables", Json::object());
    variables["bos_token"] = expected["bos_token"];
    variables["eos_token"] = expected["eos_token"];
    const Json tools = row.value("tools", Json());
    if (!row.contains("error")) {
      EXPECT_EQ(chat.render(row["messages"], tools, false, variables), row["text"]);
      EXPECT_EQ(chat.render(row["messages"], tools, true, variables), row["text_with_prompt"]);
      continue;
    }
    try {
      ADD_FAILURE() << chat.render(row["messages"], tools, false, variables);
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument);
      if (row["raised"].get<bool>()) {
        EXPECT_THAT(error.message, HasSubstr(row["error"].get<std::string>()));
        EXPECT_EQ(error.where, "messages");
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(HuggingFace, JudgedTemplate,
                         testing::Values("smollm2", "tiny", "llama-3.1-instruct", "mixtral-instruct-v0.1", "mixtral-instruct-v0.1-system"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return c == '-' || c == '.'; }, '_');
                           return name;
                         });

TEST(ChatTemplate, MeansWhatJinjaMeans) {
  const Json rows = read_json(std::string(TANDEM_FIXTURES) + "/../runtime/text/jinja_cases.json");
  for (size_t i = 1; i < rows.size(); ++i) {
    const Json& row = rows[i];
    std::string got;
    try {
      got = ChatTemplate(row["source"], "case").render(rows[0]["messages"], nullptr, false, rows[0]["variables"]);
      EXPECT_FALSE(row.contains("error")) << row["source"] << " gave " << got;
    } catch (const Error& error) {
      EXPECT_TRUE(row.contains("error")) << row["source"] << ": " << error.what();
      continue;
    }
    if (row.contains("text")) {
      EXPECT_EQ(got, row["text"]) << row["source"];
    }
  }
  EXPECT_GT(rows.size(), 130u);
}

const Json one_message = Json::parse(R"([{"role":"user","content":"Hi"}])");

std::string outcome(const std::string& source) {
  try {
    return ChatTemplate(source, "t.jinja").render(one_message, nullptr, false, Json::object());
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    return error.what();
  }
}

TEST(ChatTemplate, ErrorsNameFileAndLine) {
  EXPECT_THAT(outcome("a\n\n{{ 1 + }}"), HasSubstr("t.jinja: the chat template, line 3: unexpected }}"));
  EXPECT_THAT(outcome("\n{{ messages[0].nope.x }}"),
              HasSubstr("t.jinja: the chat template, line 2: 'dict object' has no attribute 'nope'"));
  EXPECT_THAT(outcome("{{ raise_exception('no\nway') }}"), HasSubstr("messages: the chat template refuses them: no way"));
}

TEST(ChatTemplate, BrokenSyntaxIsRefused) {
  for (const char* source : {"{{",
                             "{%",
                             "{#",
                             "{{ 'a }}",
                             "{% if %}",
                             "{% if 1 %}",
                             "{% endif %}",
                             "{% for x %}{% endfor %}",
                             "{% for in y %}{% endfor %}",
                             "{% nonsense %}",
                             "{% set %}",
                             "{% set 1 = 2 %}",
                             "{% set true = 2 %}",
                             "{% macro %}",
                             "{% macro m( %}",
                             "{% macro m(a=1, b) %}{% endmacro %}",
                             "{% break %}",
                             "{{ a. }}",
                             "{{ a[ }}",
                             "{{ (1 }}",
                             "{{ 1) }}",
                             "{{ [1 }}",
                             "{{ {1:2 }}",
                             "{{ f(a=1, 2) }}",
                             "{{ f(**a, *b) }}",
                             "{{ a | }}",
                             "{{ a is }}",
                             "{{ 1 if }}",
                             "{% raw %}",
                             "{{ 99999999999999999999 }}",
                             "{{ '\\ud800' }}",
                             "{{ '\\x4' }}",
                             "{{ a ? b }}",
                             "{{ a = 1 }}",
                             "{% include 'x' %}",
                             "{% extends 'x' %}",
                             "{% import 'x' as y %}",
                             "{% for x in y %}",
                             "{% call x %}{% endcall %}",
                             "{% set a, %}{% endset %}x{% endfilter %}",
                             "\xFF"}) {
    EXPECT_THROW(ChatTemplate(source, "t.jinja"), Error) << source;
  }
}

TEST(ChatTemplate, HostileTemplatesEndInAnError) {
  const std::string many(100000, '(');
  std::string sum = "{{ 1", dots = "{{ a", filters = "{{ a", negations = "{{ ", ifs, lists = "{{ ";
  for (int i = 0; i < 5000; ++i) {
    sum += "+1";
    dots += ".a";
    filters += "|upper";
    negations += "not ";
    ifs += "{% if 1 %}";
    lists += "[";
  }
  const std::pair<const char*, std::string> rows[] = {
      {"parentheses", "{{ " + many},
      {"sum", sum + " }}"},
      {"attributes", dots + " }}"},
      {"filters", filters + " }}"},
      {"negations", negations + "1 }}"},
      {"ifs", ifs},
      {"lists", lists},
      {"for ever", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"},
      {"recursion", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"},
      {"recursion by caller", "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}"},
      {"doubling text", "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"},
      {"adding text", "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"},
      {"doubling list", "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"},
      {"nesting", "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}"},
      {"nesting twice", "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}"},
      {"nesting dicts",
       "{% set ns = namespace(x=1) %}{% for i in range(90) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|tojson }}"},
      {"times", "{{ 'a' * 9223372036854775807 }}"},
      {"times list", "{{ [1] * 9223372036854775807 }}"},
      {"center", "{{ 'a'|center(9223372036854775807) }}"},
      {"ljust", "{{ 'a'.ljust(9223372036854775807) }}"},
      {"format width", "{{ '%999999999999d' % 1 }}"},
      {"format precision", "{{ '%.999999999999f' % 1 }}"},
      {"format brace", "{{ '{:999999999999}'.format(1) }}"},
      {"power", "{{ 9 ** 9 ** 9 }}"},
      {"overflow", "{{ 9223372036854775807 + 1 }}"},
      {"minimum", "{{ (-9223372036854775807 - 1) // -1 }}"},
      {"output", "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}"},
      {"indent", "{{ 'a\n' * 100000|indent(100000) }}"},
      {"replace", "{{ ('a' * 1000000).replace('a', 'b' * 1000) }}"},
      {"join", "{{ range(99999)|join('b' * 10000) }}"},
      {"batch", "{{ [1]|batch(9223372036854775807, 0) }}"},
      {"keyword storm", "{% macro m() %}{% endmacro %}{{ m(**{'a': 1}, **{'b': 2}) }}"},
  };
  for (const auto& [name, source] : rows) {
    const double start = thread_milliseconds();
    EXPECT_THAT(outcome(source), testing::StartsWith("t.jinja: ")) << name;
    EXPECT_LT(thread_milliseconds() - start, 250 * TANDEM_SLOW_FACTOR) << name;
  }
}

TEST(ChatTemplate, ValuesMayOutliveTheirLoops) {
  EXPECT_EQ(outcome("{% set ns = namespace() %}{% for i in [7, 8] %}{% set ns.l = loop %}{% macro m() %}{{ i }}{% endmacro %}{% set ns.m = "
                    "m %}{% endfor %}{{ ns.l.length }}{{ ns.m() }}"),
            "28");
  EXPECT_EQ(outcome("{% macro m() %}{% set ns.c = caller %}{% endmacro %}{% set ns = namespace() %}{% for i in [7] %}{% call m() %}{{ i "
                    "}}{% endcall %}{% endfor %}{{ ns.c() }}"),
            "7");
  EXPECT_THAT(outcome("{% set ns = namespace() %}{% for i in [1] recursive %}{% set ns.l = loop %}{% endfor %}{{ ns.l([1]) }}"),
              HasSubstr("after its end"));
  EXPECT_EQ(outcome("{% for i in [1, 2] %}{{ loop.changed(loop) }}{% endfor %}"), "TrueFalse");
  EXPECT_EQ(outcome("{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a }}"), "[<Namespace>]");
}

TEST(ChatTemplate, MessagesMustBeMessages) {
  const ChatTemplate chat("{{ messages[0].role }}", "t.jinja");
  for (const char* messages : {"null", "{}", "[]", "[5]", "\"x\""}) {
    EXPECT_THROW(chat.render(Json::parse(messages), nullptr, false, Json::object()), Error) << messages;
  }
  Json deep = "x";
  for (int i = 0; i < 5000; ++i) deep = Json::array({deep});
  EXPECT_THROW(chat.render(Json::array({{{"role", "user"}, {"content", deep}}}), nullptr, false, Json::object()), Error);
}

TEST(ChatTemplate, StrftimeShowsTheGivenTime) {
  const ChatTemplate chat("{{ strftime_now('%d %b %Y') }}", "t.jinja");
  const auto noon = std::chrono::system_clock::from_time_t(1722000000);
  EXPECT_THAT(chat.render(one_message, nullptr, false, Json::object(), noon), testing::MatchesRegex("2[67] Jul 2024"));
}

TEST(PickChatTemplate, KnowsTheThreePlaces) {
  EXPECT_EQ(pick_chat_template(R"({"chat_template":"A"})", "", "c"), "A");
  EXPECT_EQ(pick_chat_template(R"({"chat_template":"A"})", "B", "c"), "B");
  const char* named = R"({"chat_template":[{"name":"tool_use","template":"T"},{"name":"default","template":"D"}]})";
  EXPECT_EQ(pick_chat_template(named, "", "c"), "D");
  EXPECT_EQ(pick_chat_template(named, "", "c", true), "T");
  EXPECT_EQ(pick_chat_template("{}", "", "c"), "");
  EXPECT_EQ(pick_chat_template("", "", "c"), "");
  for (const char* bad : {"[", "[]", R"({"chat_template":5})", R"({"chat_template":[5]})", R"({"chat_template":[{"name":"x"}]})",
                          R"({"chat_template":[{"name":"rag","template":"x"}]})"}) {
    EXPECT_THROW(pick_chat_template(bad, "", "c"), Error) << bad;
  }
}

TEST(ChatTemplateVariables, HoldsNamedTokens) {
  EXPECT_EQ(chat_template_variables(R"({"bos_token":"<s>","eos_token":{"content":"</s>"},"pad_token":null})", "c"),
            Json::parse(R"({"bos_token":"<s>","eos_token":"</s>"})"));
  EXPECT_THROW(chat_template_variables(R"({"bos_token":5})", "c"), Error);
}

}  // namespace
}  // namespace tandem
