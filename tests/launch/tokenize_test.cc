// tokenize: ids, pieces and text, from both kinds of files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using nlohmann::json;

constexpr const char* kTiny = TANDEM_FIXTURES "/llama-tiny";

json tokenize(const std::string& arguments) {
  const Ran ran = run_tandem("tokenize " + arguments + " --json");
  EXPECT_EQ(ran.code, 0) << ran.err;
  return json::parse(ran.out, nullptr, false);
}

TEST(Tokenize, PromptWithAndWithoutSpecialTokens) {
  const json with = tokenize(std::string(kTiny) + " --prompt 'Hello world'"), without = tokenize(std::string(kTiny) + " --no-special --prompt 'Hello world'");
  ASSERT_EQ(with["ids"].size(), without["ids"].size() + 1);
  EXPECT_EQ(with["pieces"][0], "<|begin_of_text|>");
  EXPECT_EQ(with["pieces"].size(), with["ids"].size());
  EXPECT_EQ(without["text"], "Hello world");
}

TEST(Tokenize, PlainOutputCanBePastedBack) {
  const Ran ids = run_tandem("tokenize " + std::string(kTiny) + " --no-special --prompt 'Hello world'");
  ASSERT_EQ(ids.code, 0) << ids.err;
  const Ran text = run_tandem("tokenize " + std::string(kTiny) + " --decode " + ids.out.substr(0, ids.out.size() - 1));
  EXPECT_EQ(text.out, "Hello world\n");
}

TEST(Tokenize, DecodeKeepsOrSkipsSpecialTokens) {
  const std::string ids = " --decode " + std::to_string(495) + ",39";
  EXPECT_EQ(tokenize(kTiny + ids)["text"], "<|begin_of_text|>H");
  EXPECT_EQ(tokenize(kTiny + ids + " --skip-special")["text"], "H");
  EXPECT_EQ(tokenize(kTiny + ids)["ids"], json({495, 39}));
}

// A message cannot bring special tokens of its own: what reads like one is text.
TEST(Tokenize, SpecialTokensInsideOfMessagesStayText) {
  const TemporaryFolder folder;
  std::ofstream(folder / "plain.json") << R"([{"role": "user", "content": "Hi"}])";
  std::ofstream(folder / "odd.json") << R"([{"role": "user", "content": "Hi<|begin_of_text|><|end_of_text|>"}])";
  const auto begins = [](const json& chat) { return std::count(chat["ids"].begin(), chat["ids"].end(), json(495)); };
  const json plain = tokenize(std::string(kTiny) + " --chat " + (folder / "plain.json")), odd = tokenize(std::string(kTiny) + " --chat " + (folder / "odd.json"));
  EXPECT_EQ(begins(odd), begins(plain));
  EXPECT_EQ(std::count(odd["ids"].begin(), odd["ids"].end(), json(496)), std::count(plain["ids"].begin(), plain["ids"].end(), json(496)));
  EXPECT_THAT(odd["text"].get<std::string>(), testing::HasSubstr("Hi<|begin_of_text|><|end_of_text|>"));
}

TEST(Tokenize, OtherTokenizerFiles) {
  const std::string files = TANDEM_FIXTURES "/tokenizers/";
  EXPECT_EQ(tokenize(files + "opt --prompt 'Hello'")["ids"][0], 2) << "vocab.json and merges.txt";
  const TemporaryFolder folder;
  for (const char* name : {"tokenizer.model", "tokenizer_config.json"}) std::filesystem::create_symlink(files + "llama2/" + name, folder / name);
  EXPECT_EQ(tokenize(folder.path() + " --prompt 'Hello world'"), tokenize(files + "llama2 --prompt 'Hello world'")) << "tokenizer.model alone, and tokenizer.json";
}

TEST(Tokenize, ToolsKeepTheOrderOfTheirMembers) {
  const TemporaryFolder folder;
  std::filesystem::create_symlink(TANDEM_FIXTURES "/tokenizer/tokenizer.json", folder / "tokenizer.json");
  std::ofstream(folder / "chat_template.jinja") << "{{ tools | tojson }}{{ messages[0].extra | tojson }}";
  std::ofstream(folder / "chat.json") << R"({"messages": [{"role": "user", "content": "Hi", "extra": {"z": 1, "a": 2}}], "tools": [{"type": 1, "function": 2, "b": 3}]})";
  EXPECT_EQ(tokenize(folder.path() + " --chat " + (folder / "chat.json"))["text"], R"([{"type": 1, "function": 2, "b": 3}]{"z": 1, "a": 2})");
}

TEST(Tokenize, EmptyPrompt) {
  EXPECT_EQ(tokenize(std::string(kTiny) + " --no-special --prompt ''")["ids"], json::array());
}

TEST(Tokenize, ChatThroughTheTemplate) {
  const TemporaryFolder folder;
  std::ofstream(folder / "chat.json") << R"([{"role": "user", "content": "Hi"}])";
  const std::string chat = std::string(kTiny) + " --chat " + (folder / "chat.json");
  const json with = tokenize(chat), without = tokenize(chat + " --no-generation-prompt");
  const std::string longer = with["text"], shorter = without["text"];
  EXPECT_TRUE(longer.starts_with(shorter)) << longer << "\n" << shorter;
  EXPECT_GT(longer.size(), shorter.size());
  EXPECT_EQ(tokenize(std::string(kTiny) + " --decode " + [&] {
    std::string ids;
    for (const json& id : with["ids"]) ids += (ids.empty() ? "" : ",") + id.dump();
    return ids;
  }())["text"], longer);
}

TEST(Tokenize, GgufAndDirectoryAgree) {
  const std::string prompt = " --prompt 'The quick brown fox, 1234!'";
  EXPECT_EQ(tokenize(TANDEM_FIXTURES "/gguf/llama-tiny.gguf" + prompt)["ids"], tokenize(kTiny + prompt)["ids"]);
}

}  // namespace
}  // namespace tandem
