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
                           std::replace_if(name.begin(), name.end(), [](char c) { return c == '-' || c == '.'; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace tandem
