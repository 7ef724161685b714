// generate: many prompts, several answers, the options that change what may be drawn, beams.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr const char* kTiny = TANDEM_FIXTURES "/llama-tiny";
constexpr const char* kTwelve = " --max-tokens 12";

std::vector<json> lines_of(const std::string& text) {
  std::vector<json> lines;
  std::stringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line, nullptr, false));
  return lines;
}

std::vector<json> generate(const std::string& arguments) {
  const Ran ran = run_tandem("generate " + std::string(kTiny) + " --compute fp32 " + arguments);
  EXPECT_EQ(ran.code, 0) << ran.err;
  return lines_of(ran.out);
}

json one(const std::string& arguments) { return generate("--json " + arguments).at(0); }

TEST(GenerateMany, EqualPromptsGiveEqualAnswersInOrder) {
  const TemporaryFolder folder;
  std::ofstream file(folder / "p.txt");
  for (int i = 0; i < 20; ++i) file << "The quick brown fox\n";
  file.close();
  const json alone = one("--prompt 'The quick brown fox' --temperature 0" + std::string(kTwelve));
  const std::vector<json> answers = generate("--temperature 0 --prompts " + (folder / "p.txt") + kTwelve);
  ASSERT_EQ(answers.size(), 20u);
  for (const json& answer : answers) {
    EXPECT_EQ(answer["token_ids"], alone["token_ids"]);
    EXPECT_EQ(answer["text"], alone["text"]);
  }
}

TEST(GenerateMany, LinesOfJsonHaveOptionsOfTheirOwn) {
  const TemporaryFolder folder;
  std::ofstream(folder / "p.jsonl") << R"({"prompt": "Hello", "max_tokens": 3, "temperature": 0})"
                                    << "\n\n"
                                    << R"({"prompt_ids": [1, 2, 3], "max_tokens": 5, "logit_bias": {"39": 10000}, "temperature": 0})"
                                    << "\n"
                                    << R"({"prompt": "Hello", "allowed_token_ids": [40, 41], "max_tokens": 2, "echo": true, "no_repeat_ngram_size": 1, "temperature": 0})"
                                    << "\n";
  const std::vector<json> answers = generate("--prompts " + (folder / "p.jsonl") + kTwelve);
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_EQ(answers[0]["token_ids"].size(), 3u);
  EXPECT_EQ(answers[1]["prompt_token_ids"], json({1, 2, 3}));
  EXPECT_EQ(answers[1]["token_ids"], json({39, 39, 39, 39, 39}));
  EXPECT_EQ(std::set<int>(answers[2]["token_ids"].begin(), answers[2]["token_ids"].end()), (std::set<int>{40, 41}));
  EXPECT_THAT(answers[2]["text"].get<std::string>(), testing::StartsWith("Hello"));
}

TEST(Generate, NoTokenComesTwice) {
  const json answer = one("--prompt-ids 5,6,7 --temperature 0 --no-repeat-ngram 1 --max-tokens 40 --ignore-eos");
  std::set<int> seen = {5, 6, 7};
  for (const int id : answer["token_ids"]) EXPECT_TRUE(seen.insert(id).second) << id;
  EXPECT_EQ(seen.size(), 43u);
}

TEST(Generate, BiasesAndAllowedIds) {
  EXPECT_EQ(one("--prompt-ids 5,6 --temperature 0 --max-tokens 3 --logit-bias 40=9999 --logit-bias 41=-5")["token_ids"], json({40, 40, 40}));
  const json drawn = one("--prompt-ids 5,6 --temperature 5 --max-tokens 40 --allowed-ids 7,8,100");
  for (const int id : drawn["token_ids"]) EXPECT_TRUE(id == 7 || id == 8 || id == 100) << id;
}

TEST(Generate, SeveralAnswersToOnePrompt) {
  const std::string arguments = "--json --prompt-ids 5,6 --temperature 1.5 --seed 3 --ignore-eos --max-tokens 12 ";
  const std::vector<json> three = generate(arguments + "--n 3"), again = generate(arguments + "--n 3");
  ASSERT_EQ(three.size(), 3u);
  EXPECT_NE(three[0]["token_ids"], three[1]["token_ids"]);
  EXPECT_NE(three[1]["token_ids"], three[2]["token_ids"]);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(three[i]["token_ids"], again[i]["token_ids"]);
  EXPECT_EQ(three[0]["token_ids"], one("--prompt-ids 5,6 --temperature 1.5 --seed 3 --ignore-eos --max-tokens 12")["token_ids"]) << "the first is what n = 1 gives";

  const auto mean = [](const json& answer) {
    double sum = 0;
    for (const json& token : answer["logprobs"]) sum += token["logprob"].get<double>();
    return sum / static_cast<double>(answer["logprobs"].size());
  };
  const std::vector<json> all = generate(arguments + "--n 5 --logprobs 0"), best = generate(arguments + "--best-of 5 --logprobs 0");
  ASSERT_EQ(best.size(), 1u);
  double highest = -1e9;
  for (const json& answer : all) highest = std::max(highest, mean(answer));
  EXPECT_DOUBLE_EQ(mean(best[0]), highest);
}

TEST(Generate, PromptLogprobsAreThoseOfTheLogits) {
  const json answer = one("--prompt-ids 5,6,7,8 --max-tokens 1 --prompt-logprobs 2");
  const json& tokens = answer["prompt_logprobs"];
  ASSERT_EQ(tokens.size(), 3u);
  const json last = one("--prompt-ids 5,6,7 --max-tokens 1 --logit-bias 8=9999 --temperature 0 --logprobs 2")["logprobs"][0];
  EXPECT_EQ(tokens[2]["token_id"], 8);
  EXPECT_NEAR(tokens[2]["logprob"].get<double>(), last["logprob"].get<double>(), 1e-5);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(tokens[2]["top"][i][0], last["top"][i][0]);
    EXPECT_NEAR(tokens[2]["top"][i][1].get<double>(), last["top"][i][1].get<double>(), 1e-5);
  }
}

TEST(Generate, EchoShowsThePromptFirst) {
  const Ran plain = run_tandem("generate " + std::string(kTiny) + " --prompt 'Hello world' --temperature 0 --max-tokens 3");
  const Ran echo = run_tandem("generate " + std::string(kTiny) + " --prompt 'Hello world' --temperature 0 --max-tokens 3 --echo");
  EXPECT_EQ(echo.out, "Hello world" + plain.out);
}

// beams.json is written by make_beams.py.
TEST(GenerateByBeams, AreThoseOfTransformers) {
  const std::vector<json> rows = json::parse(read_whole(TANDEM_FIXTURES "/../launch/beams.json"));
  ASSERT_GE(rows.size(), 36u);
  for (size_t i = 0; i < rows.size(); i += 2) {
    const json& row = rows[i];
    SCOPED_TRACE(row.dump());
    const TemporaryFolder folder;
    for (const char* name : {"config.json", "model.safetensors"}) std::filesystem::create_symlink(std::string(TANDEM_FIXTURES "/gpt2-tiny/") + name, folder / name);
    std::ofstream(folder / "generation_config.json") << json{{"eos_token_id", row["stops"]}};
    std::string ids;
    for (const json& id : row["prompt_ids"]) ids += (ids.empty() ? "" : ",") + id.dump();
    const Ran ran = run_tandem("generate " + folder.path() + " --compute fp32 --max-tokens 12 --json --prompt-ids " + ids + " --beams " + row["beams"].dump() +
                               " --length-penalty " + row["length_penalty"].dump());
    ASSERT_EQ(ran.code, 0) << ran.err;
    const json answer = json::parse(ran.out);
    EXPECT_EQ(answer["token_ids"], row["ids"]);
    EXPECT_NEAR(answer["score"].get<double>(), row["score"].get<double>(), 1e-3);
  }
}

struct Refused { const char* arguments; const char* where; };
constexpr Refused kRefused[] = {
    {"--prompt-ids 5 --logit-bias 5", "--logit-bias"},
    {"--prompt-ids 5 --logit-bias 600=1", "sampling.logit_bias"},
    {"--prompt-ids 5 --logit-bias 5=inf", "logit_bias"},
    {"--prompt-ids 5 --allowed-ids 600", "sampling.allowed_token_ids"},
    {"--prompt-ids 5 --allowed-ids x", "--allowed-ids"},
    {"--prompt-ids 5 --no-repeat-ngram -1", "sampling.no_repeat_ngram_size"},
    {"--prompt-ids 5 --n 3 --temperature 0", "--temperature"},
    {"--prompt-ids 5 --n 0", "--n"},
    {"--prompt-ids 5 --n 3 --best-of 2 --temperature 1", "--best-of"},
    {"--prompt-ids 5 --prompt-logprobs 2", "--prompt-logprobs"},
    {"--prompt-ids 5 --beams 3 --temperature 1", "--beams"},
    {"--prompt-ids 5 --beams 30", "--beams"},
};
TEST(Generate, RefusesInOneLine) {
  for (const Refused& refused : kRefused) {
    const Ran ran = run_tandem("generate " + std::string(kTiny) + " --max-tokens 2 " + refused.arguments);
    EXPECT_EQ(ran.code, 2) << refused.arguments << "\n" << ran.err;
    EXPECT_EQ(error_lines(ran), 1) << ran.err;
    EXPECT_THAT(ran.err, HasSubstr(refused.where)) << refused.arguments;
  }
}

}  // namespace
}  // namespace tandem
