// --weights synthetic: models whose weights are not at hand run, with token ids.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/support/npy.h"
#include "tests/support/run_binary.h"
#include "tests/support/serve_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kModel = "preset:smollm2-135m --weights synthetic:7";
const std::string kIds = " --prompt-ids 1,2,3,4,5,6,7 --max-tokens 6 --ignore-eos";

json answer(const std::string& options) {
  const Ran ran = run_tandem("generate " + options + kIds + " --json");
  EXPECT_EQ(ran.code, 0) << options << ": " << ran.err;
  return ran.code == 0 ? json::parse(ran.out)["token_ids"] : json();
}

TEST(SyntheticWeights, AreTheSameForEveryRankAndRun) {
  for (const std::string format : {" --format nf4", " --format nf4 --double-quant", " --format q8_0"}) {
    const json alone = answer(kModel + format);
    ASSERT_EQ(alone.size(), 6u);
    EXPECT_EQ(answer(kModel + format + " --pp 3"), alone) << format;
    EXPECT_EQ(answer(kModel + format + " --tp 3"), alone) << format;  // 9 heads: each member reads its own columns and rows
  }
  EXPECT_NE(answer("preset:smollm2-135m --weights synthetic:8 --format nf4"), answer(kModel + " --format nf4"));
  EXPECT_EQ(answer("preset:smollm2-135m --weights synthetic --format nf4"), answer("preset:smollm2-135m --weights synthetic:0 --format nf4"));
}

TEST(SyntheticWeights, StandInForAnyKindOfModel) {
  const std::string fixtures = TANDEM_FIXTURES, weights = " --weights synthetic";
  EXPECT_EQ(answer(fixtures + "/llama-tiny/config.json" + weights).size(), 6u);
  EXPECT_EQ(answer(fixtures + "/llama-tied" + weights).size(), 6u);
  EXPECT_EQ(answer(fixtures + "/mixtral-tiny" + weights + " --ep 2"), answer(fixtures + "/mixtral-tiny" + weights));
  EXPECT_EQ(answer(fixtures + "/gguf/mixtral-tiny.gguf" + weights).size(), 6u);
  EXPECT_NE(answer(fixtures + "/llama-tiny" + weights), answer(fixtures + "/llama-tiny"));
}

TEST(SyntheticWeights, MakeASaneModel) {
  const TemporaryFolder folder;
  const std::string file = folder / "logits.npy";
  const Ran ran = run_tandem("logits " + kModel + " --format nf4 --prompt-ids 1,2,3,4,5,6,7,8,9 -o " + file);
  ASSERT_EQ(ran.code, 0) << ran.err;
  const testing::Npy logits = testing::read_npy(file);
  ASSERT_EQ(logits.rows, 9);
  for (int64_t row = 0; row < logits.rows; ++row) {
    double squares = 0;
    for (int64_t i = 0; i < logits.cols; ++i) {
      const double value = logits.values[static_cast<size_t>(row * logits.cols + i)];
      ASSERT_TRUE(std::isfinite(value));
      squares += value * value;
    }
    const double deviation = std::sqrt(squares / static_cast<double>(logits.cols));
    EXPECT_GT(deviation, 0.1);
    EXPECT_LT(deviation, 5);
  }
}

TEST(SyntheticWeights, PlanAsTheRealOnes) {
  const std::string plan = "plan preset:smollm2-135m --format nf4 --double-quant --max-memory cpu=8GiB --json";
  EXPECT_EQ(json::parse(run_tandem(plan + " --weights synthetic:3").out), json::parse(run_tandem(plan).out));
}

TEST(SyntheticWeights, OnlyTokenIdsGoInWithoutATokenizer) {
  for (const std::string prompt : {" --prompt hello", " --prompt-ids 1 --stop hello"}) {
    const Ran ran = run_tandem("generate " + kModel + prompt);
    EXPECT_EQ(ran.code, 2) << prompt;
    EXPECT_EQ(error_lines(ran), 1) << ran.err;
    EXPECT_THAT(ran.err, HasSubstr("has no tokenizer")) << prompt;
  }
  // What comes out are ids, too, as they go in.
  const Ran ran = run_tandem("generate " + kModel + kIds);
  ASSERT_EQ(ran.code, 0) << ran.err;
  std::string ids = answer(kModel).dump();
  EXPECT_EQ(ran.out, ids.substr(1, ids.size() - 2) + "\n");
  // The fixture's tokenizer goes with made-up weights as well.
  EXPECT_EQ(run_tandem("generate " TANDEM_FIXTURES "/llama-tiny --weights synthetic --prompt hello --max-tokens 2").code, 0);
}

TEST(SyntheticWeights, AreServed) {
  const Served server(kModel, "--format nf4 --double-quant --ranks 2 --context 256");
  ASSERT_FALSE(server.address().empty()) << server.said();
  const Ran ran = run_tandem("client " + server.address() + kIds + " --json");
  ASSERT_EQ(ran.code, 0) << ran.err << server.said();
  EXPECT_EQ(json::parse(ran.out)["token_ids"], answer(kModel + " --format nf4 --double-quant"));
  const Ran text = run_tandem("client " + server.address() + " --prompt hello");
  EXPECT_EQ(text.code, 1);
  EXPECT_THAT(text.err, HasSubstr("FAILED_PRECONDITION: text: the model has no tokenizer (send token_ids)"));
}

TEST(SyntheticWeights, AreMeasured) {
  const Ran ran = run_tandem("bench " + kModel + " --format nf4 --double-quant --cases load,decode/b1/c16,decode/b4/c16,prefill/32 --tokens 4 --repeat 1 --json");
  ASSERT_EQ(ran.code, 0) << ran.err;
  std::istringstream lines(ran.out);
  std::vector<std::string> cases;
  for (std::string line; std::getline(lines, line);) {
    const json figure = json::parse(line);
    cases.push_back(figure["case"]);
    EXPECT_GT(figure["value"], 0);
    EXPECT_LE(figure["min"], figure["value"]);
    EXPECT_GE(figure["max"], figure["value"]);
    const bool decode = cases.back().starts_with("decode/");
    EXPECT_EQ(figure["ceiling_of"], decode ? "memory reads" : "") << line;
    EXPECT_EQ(figure["ceiling"] > 0, decode) << line;
  }
  EXPECT_THAT(cases, ElementsAre("load", "decode/b1/c16", "decode/b4/c16", "prefill/32"));
}

TEST(SyntheticWeights, WrongOnesAreNamed) {
  for (const std::string weights : {"foo", "''", "synthetic:", "synthetic:x", "synthetic:-1", "synthetic7", "synthetic:99999999999999999999", "Synthetic"}) {
    const Ran ran = run_tandem("generate preset:smollm2-135m --prompt-ids 1 --weights " + weights);
    EXPECT_EQ(ran.code, 2) << weights;
    EXPECT_EQ(error_lines(ran), 1) << ran.err;
    EXPECT_THAT(ran.err, HasSubstr("error: --weights: is " + (weights == "''" ? "" : weights) + " (must be synthetic or synthetic:SEED)"));
  }
  EXPECT_THAT(run_tandem("generate preset:smollm2-135m --prompt-ids 1").err, HasSubstr("--weights synthetic"));
}

}  // namespace
}  // namespace tandem
