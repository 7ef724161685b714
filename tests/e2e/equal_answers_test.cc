// The same question has the same answer however the ranks are made, started and split, and it is the one that transformers gives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/e2e/serving.h"

namespace tandem::e2e {
namespace {

using nlohmann::json;

struct Expected {
  std::vector<int32_t> prompt, greedy;
  std::vector<double> gaps;  // best minus second best logit
};
Expected expected_from(const json& c) { return {c["prompt_ids"], c["greedy_ids"], c["greedy_gaps"]}; }
json read_json(const std::string& path) { return json::parse(read_whole(std::string(TANDEM_FIXTURES) + "/" + path)); }

// Where two answers may part: the first step whose best two logits are nearly equal.
size_t certain(const Expected& expected) {
  size_t at = 0;
  while (at < expected.gaps.size() && expected.gaps[at] >= 1e-3) ++at;
  return at;
}

std::string joined(const std::vector<int32_t>& ids) {
  std::ostringstream text;
  for (size_t i = 0; i < ids.size(); ++i) text << (i > 0 ? "," : "") << ids[i];
  return text.str();
}

// One way of running a model, as words of a command line.
struct How {
  std::string name;
  int job = 0;  // ranks under mpirun; 0: none
  std::vector<std::string> options;
  bool serve = false;  // behind a server, asked by `tandem client`
};
const std::vector<How>& all_ways() {
  static const std::vector<How> ways = {
      {"alone", 0, {}},
      {"threads_2", 0, {"--ranks", "2"}},
      {"threads_3", 0, {"--ranks", "3"}},
      {"threads_pp3", 0, {"--pp", "3"}},
      {"threads_tp3", 0, {"--tp", "3"}},
      {"mpirun_2", 2, {}},
      {"mpirun_3", 3, {}},
      {"mpirun_tp3", 3, {"--tp", "3"}},
      {"serve_alone", 0, {}, true},
      {"serve_ranks_2", 0, {"--ranks", "2"}, true},
      {"serve_ranks_tp3", 0, {"--ranks", "3", "--tp", "3"}, true},
      {"serve_mpirun_2", 2, {}, true},
  };
  return ways;
}

class EqualAnswers : public testing::TestWithParam<How> {
 protected:
  static json finished(Process& process) {
    const auto code = process.wait(120 * kSlowFactor);
    EXPECT_EQ(code, 0) << process.err();
    return code == 0 ? json::parse(process.out()) : json();
  }
  static json ask(const How& how, const std::string& model, const std::vector<std::string>& prompt, const std::vector<std::string>& more) {
    std::vector<std::string> words, asked = prompt;
    if (how.job > 0) words = mpirun_words(how.job);
    asked.insert(asked.end(), {"--temperature", "0", "--ignore-eos", "--seed", "1", "--json"});
    words.insert(words.end(), {TANDEM_BINARY, how.serve ? "serve" : "generate", model});
    words.insert(words.end(), how.options.begin(), how.options.end());
    words.insert(words.end(), more.begin(), more.end());
    if (!how.serve) {
      words.insert(words.end(), asked.begin(), asked.end());
      Process process(words);
      return finished(process);
    }
    words.insert(words.end(), {"--listen", "127.0.0.1:0"});
    Process server(words);
    const std::string address = server.line("listening on ", 30 * kSlowFactor).value_or("");
    EXPECT_NE(address, "") << server.err();
    EXPECT_TRUE(HealthWatch(address).wait(true, 60 * kSlowFactor)) << server.err();
    std::vector<std::string> client = {TANDEM_BINARY, "client", address};
    client.insert(client.end(), asked.begin(), asked.end());
    Process process(client);
    return finished(process);
  }
};

TEST_P(EqualAnswers, Tiny) {
  for (const char* fixture : {"llama-tiny", "llama-tied", "mixtral-tiny"}) {
    SCOPED_TRACE(fixture);
    const std::string model = std::string(TANDEM_FIXTURES) + "/" + fixture;
    const Expected expected = expected_from(read_json(std::string(fixture) + "/expected.json"));
    const json config = read_json(std::string(fixture) + "/config.json");
    const auto& options = GetParam().options;
    const bool tp = std::find(options.begin(), options.end(), "--tp") != options.end();
    if (tp && config["num_key_value_heads"].get<int>() % 3 != 0) continue;  // its heads do not divide
    if (!tp && config["num_hidden_layers"].get<int>() < (GetParam().job > 0 ? GetParam().job
                                                         : options.empty()  ? 1
                                                                            : std::stoi(options.at(1))))
      continue;
    const json answer =
        ask(GetParam(), model, {"--prompt-ids", joined(expected.prompt), "--max-tokens", std::to_string(expected.greedy.size())},
            {"--compute", "fp32"});
    ASSERT_TRUE(answer.is_object());
    EXPECT_EQ(answer["token_ids"].get<std::vector<int32_t>>(), expected.greedy);
    EXPECT_EQ(answer["prompt_token_ids"].get<std::vector<int32_t>>(), expected.prompt);
    EXPECT_EQ(answer["finish_reason"], "length");
  }
}

TEST_P(EqualAnswers, SmolLM2) {
  const auto model = smollm2();
  if (!model) GTEST_SKIP() << kNoSmolLM2;
  const Expected expected = expected_from(read_json("smollm2/expected.json")["cases"][0]);
  const json answer =
      ask(GetParam(), *model, {"--prompt", "The capital of France is", "--max-tokens", std::to_string(expected.greedy.size())},
          {"--compute", "fp32", "--context", "256"});
  ASSERT_TRUE(answer.is_object());
  EXPECT_EQ(answer["prompt_token_ids"].get<std::vector<int32_t>>(), expected.prompt);
  std::vector<int32_t> ids = answer["token_ids"], wanted = expected.greedy;
  EXPECT_EQ(ids.size(), wanted.size());
  const size_t compared = certain(expected);
  EXPECT_GE(compared, 20u);
  ids.resize(compared), wanted.resize(compared);
  EXPECT_EQ(ids, wanted);
}

INSTANTIATE_TEST_SUITE_P(E2e, EqualAnswers, testing::ValuesIn(all_ways()),
                         [](const testing::TestParamInfo<How>& info) { return info.param.name; });

// Sampled answers, too: a draw depends on the seed and the token's place alone. Pipeline splits give the same bits.
TEST(SampledAnswers, DoNotDependOnHowRanksAreMade) {
  std::set<std::string> texts;
  for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{{}, {"--ranks", "2"}, {"--pp", "3"}}) {
    std::vector<std::string> words = {TANDEM_BINARY,  "generate",      kLlama, "--prompt-ids", "5,6,7", "--max-tokens", "60",
                                      "--ignore-eos", "--temperature", "1.3",  "--seed",       "11",    "--json"};
    words.insert(words.end(), options.begin(), options.end());
    Process process(words);
    ASSERT_EQ(process.wait(60 * kSlowFactor), 0) << process.err();
    texts.insert(json::parse(process.out())["token_ids"].dump());
  }
  EXPECT_EQ(texts.size(), 1u);
}

// A Mixtral whose experts are all SmolLM2's MLP answers as SmolLM2 does (tests/fixtures/make.py moe-smollm2 makes it).
TEST(SlowMixtral, OfEqualExpertsAnswersAsTheDenseModel) {
  const auto model = cached_model("SmolLM2-135M-MoE-8x.Q4_1.gguf");
  if (!model) GTEST_SKIP() << "SmolLM2-135M-MoE-8x.Q4_1.gguf is not in the cache (python3 tests/fixtures/make.py moe-smollm2)";
  const json cases = read_json("smollm2/expected.json")["cases"];
  for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{{}, {"--ranks", "2"}, {"--tp", "3"}}) {
    const Expected expected = expected_from(cases[0]);
    std::vector<std::string> words = {TANDEM_BINARY,  "generate", *model,         "--prompt-ids",  joined(expected.prompt),
                                      "--max-tokens", "32",       "--ignore-eos", "--temperature", "0",
                                      "--compute",    "fp32",     "--context",    "256",           "--json"};
    words.insert(words.end(), options.begin(), options.end());
    SCOPED_TRACE(testing::PrintToString(options));
    Process process(words);
    ASSERT_EQ(process.wait(240 * kSlowFactor), 0) << process.err();
    std::vector<int32_t> ids = json::parse(process.out())["token_ids"], wanted = expected.greedy;
    const size_t compared = std::min<size_t>(32, certain(expected));
    ids.resize(compared), wanted.resize(compared);
    EXPECT_EQ(ids, wanted);
  }
}

}  // namespace
}  // namespace tandem::e2e
