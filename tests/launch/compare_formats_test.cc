// Formats side by side, through the real program: what they do to weights (inspect), to answers (perplexity), to speed (bench).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;
namespace fs = std::filesystem;

const std::string kTiny = TANDEM_FIXTURES "/llama-tiny";
constexpr const char* kText = "The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of times; the fox and the dog agreed on that much.";

json run_json(const std::string& arguments) {
  const Ran ran = run_tandem(arguments + " --json");
  EXPECT_EQ(ran.code, 0) << ran.err;
  return json::parse(ran.out, nullptr, false);
}

TEST(Inspect, EveryTensorsNumbers) {
  const json all = run_json("inspect " + kTiny + " --tensors --format nf4")["tensors"];
  ASSERT_GT(all.size(), 20u);
  int quantized = 0;
  for (const json& tensor : all) {
    for (const char* key : {"name", "dtype", "shape", "min", "max", "mean", "outliers"}) EXPECT_TRUE(tensor.contains(key)) << tensor;
    EXPECT_LE(tensor["min"], tensor["max"]);
    const std::string name = tensor["name"];
    EXPECT_EQ(tensor.contains("sqnr_db"), name.ends_with("_proj.weight")) << name;
    if (!tensor.contains("sqnr_db")) continue;
    ++quantized;
    EXPECT_GT(tensor["sqnr_db"], 15) << name;  // some 20 dB of normal numbers
    EXPECT_LT(tensor["sqnr_db"], 30) << name;
    EXPECT_GE(tensor["error_max"], tensor["error_rms"]);
  }
  EXPECT_EQ(quantized, 21);
  const Ran table = run_tandem("inspect " + kTiny + " --tensors");
  EXPECT_THAT(table.out, HasSubstr("model.layers.2.mlp.down_proj.weight"));
  EXPECT_EQ(std::count(table.out.begin(), table.out.end(), '\n'), static_cast<int64_t>(all.size()) + 1);
}

TEST(Inspect, FormatsComparedOverTheLinearLayers) {
  const json list = run_json("inspect " + kTiny + " --compare fp32,int8,nf4,fp4,absmax,zeropoint")["formats"];
  ASSERT_EQ(list.size(), 6u);
  std::map<std::string, json> by_name;
  for (const json& row : list) by_name[row["format"]] = row;
  EXPECT_EQ(by_name["fp32"]["error_max"], 0);
  EXPECT_TRUE(by_name["fp32"]["sqnr_db"].is_null());  // infinite
  EXPECT_GT(by_name["int8"]["sqnr_db"], by_name["nf4"]["sqnr_db"]);
  EXPECT_GT(by_name["nf4"]["sqnr_db"], by_name["fp4"]["sqnr_db"]);
  EXPECT_GT(by_name["int8"]["sqnr_db"], by_name["absmax"]["sqnr_db"]);
  EXPECT_EQ(by_name["fp32"]["bytes"], 4 * by_name["fp32"]["weights"].get<int64_t>());
  EXPECT_EQ(by_name["fp32"]["bits"], 32);
  EXPECT_THAT(run_tandem("inspect " + kTiny + " --compare int8,nf4").out, HasSubstr("SQNR dB"));
}

TEST(Inspect, Histograms) {
  const TemporaryFolder folder;
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  const json one = run_json("inspect " + kTiny + " --format nf4 --histogram " + name)["histograms"];
  ASSERT_EQ(one.size(), 1u);
  for (const char* key : {"original", "quantized"}) {
    uint64_t count = 0;
    for (const uint64_t n : one[0][key]) count += n;
    EXPECT_EQ(count, 48u * 104) << key;
  }
  const Ran bars = run_tandem("inspect " + kTiny + " --format nf4 --histogram " + name);
  EXPECT_THAT(bars.out, testing::AllOf(HasSubstr("####"), HasSubstr("original"), HasSubstr("| nf4"), HasSubstr("SQNR")));
  const std::string html = folder / "h.html", svg = folder / "h.svg";
  ASSERT_EQ(run_tandem("inspect " + kTiny + " --format nf4 --histogram all --html " + html + " --svg " + svg).code, 0);
  const std::string page = read_whole(html), picture = read_whole(svg);
  EXPECT_THAT(picture, testing::StartsWith("<svg xmlns"));
  for (const std::string& text : {page, picture}) {
    EXPECT_THAT(text, testing::AllOf(HasSubstr("model.layers.2.self_attn.o_proj.weight"), HasSubstr("all 21 weights together")));
    EXPECT_THAT(text, testing::Not(HasSubstr("nan")));
  }
  size_t pictures = 0;
  for (size_t at = 0; (at = page.find("<svg", at)) != std::string::npos; ++at) ++pictures;
  EXPECT_EQ(pictures, 22u);
  // Of a norm, and of nothing but the original.
  EXPECT_EQ(run_json("inspect " + kTiny + " --histogram model.norm.weight")["histograms"][0]["quantized"].size(), 0u);
}

TEST(Perplexity, IsThatOfTheLogits) {
  const TemporaryFolder folder;
  std::ofstream(folder / "t.txt") << kText;
  const json ids = run_json("tokenize " + kTiny + " --prompt '" + kText + "'")["ids"];
  constexpr size_t kWindow = 16;
  double total = 0;
  int64_t counted = 0;
  for (size_t begin = 0; begin + 2 <= ids.size(); begin += kWindow) {
    const size_t end = std::min(ids.size(), begin + kWindow);
    std::string list;
    for (size_t i = begin; i < end; ++i) list += (list.empty() ? "" : ",") + ids[i].dump();
    ASSERT_EQ(run_tandem("logits " + kTiny + " --compute fp32 --prompt-ids " + list + " -o " + (folder / "l.npy")).code, 0);
    const std::string npy = read_whole(folder / "l.npy");
    const size_t vocab = 509, rows = end - begin;
    const char* data = npy.data() + npy.size() - rows * vocab * sizeof(float);
    for (size_t r = 0; r + 1 < rows; ++r) {
      double sum = 0;
      const auto at = [&](size_t i) {
        float value;
        std::memcpy(&value, data + (r * vocab + i) * sizeof value, sizeof value);
        return static_cast<double>(value);
      };
      for (size_t i = 0; i < vocab; ++i) sum += std::exp(at(i));
      total += std::log(sum) - at(ids[begin + r + 1].get<size_t>());
      ++counted;
    }
  }
  const json one = run_json("perplexity " + kTiny + " " + (folder / "t.txt") + " --compute fp32 --context 16");
  EXPECT_EQ(one["tokens"], counted);
  EXPECT_NEAR(one["mean_nll"], total / static_cast<double>(counted), 1e-5);
  EXPECT_NEAR(one["perplexity"].get<double>(), std::exp(total / static_cast<double>(counted)), 1e-2);

  const json many = run_json("perplexity " + kTiny + " " + (folder / "t.txt") + " --compute fp32 --context 16 --compare fp32,fp32,int8,nf4");
  EXPECT_EQ(many["tokens"], counted);
  const json& list = many["formats"];
  ASSERT_EQ(list.size(), 4u);
  EXPECT_EQ(list[0]["mean_nll"], one["mean_nll"]);
  EXPECT_EQ(list[0]["mean_kl"], 0);
  EXPECT_EQ(list[1]["mean_nll"], one["mean_nll"]);  // the same model again, to the bit
  EXPECT_LT(std::fabs(list[1]["mean_kl"].get<double>()), 1e-12);
  EXPECT_EQ(list[1]["top1_agreement"], 1);
  EXPECT_GT(list[2]["mean_kl"], 0);
  EXPECT_GT(list[3]["mean_kl"], list[2]["mean_kl"]);
  EXPECT_LT(list[3]["top1_agreement"], 1);
  EXPECT_LT(list[3]["footprint_bytes"], list[0]["footprint_bytes"]);
  EXPECT_EQ(list[3]["mean_nll"], run_json("perplexity " + kTiny + " " + (folder / "t.txt") + " --compute fp32 --context 16 --format nf4")["mean_nll"]);
  EXPECT_THAT(run_tandem("perplexity " + kTiny + " " + (folder / "t.txt") + " --context 16 --compare fp32,nf4").out, testing::AllOf(HasSubstr("mean KL"), HasSubstr("100.00 %")));
}

TEST(Bench, FormatsInOneTable) {
  const Ran ran = run_tandem("bench " + kTiny + " --compare fp32,int8,nf4 --tokens 64 --repeat 1 --prompt-tokens 8 --json");
  ASSERT_EQ(ran.code, 0) << ran.err;
  std::stringstream lines(ran.out);
  std::vector<std::string> seen;
  for (std::string line; std::getline(lines, line);) {
    const json figure = json::parse(line);
    EXPECT_GT(figure["value"], 0) << line;
    EXPECT_GT(figure["footprint_bytes"], 0) << line;
    seen.push_back(figure["format"].get<std::string>() + " " + figure["case"].get<std::string>());
  }
  ASSERT_EQ(seen.size(), 9u);
  EXPECT_EQ(seen[1], "fp32 decode/b1/c8");
  EXPECT_EQ(seen[2], "fp32 decode/b20/c8");
  EXPECT_THAT(seen[8], HasSubstr("nf4"));
  const Ran table = run_tandem("bench " + kTiny + " --compare fp32,nf4 --tokens 64 --repeat 1 --prompt-tokens 8");
  EXPECT_THAT(table.out, testing::AllOf(HasSubstr("batch 20 tok/s"), HasSubstr("\nfp32 "), HasSubstr("\nnf4 ")));
}

struct Wrong { const char* arguments; const char* says; };
void PrintTo(const Wrong& wrong, std::ostream* out) { *out << wrong.arguments; }
class ComparisonRefuses : public testing::TestWithParam<Wrong> {};

TEST_P(ComparisonRefuses, InOneLine) {
  const TemporaryFolder folder;
  std::ofstream(folder / "t.txt") << kText;
  std::string arguments = GetParam().arguments;
  for (size_t at = 0; (at = arguments.find('%', at)) != std::string::npos; at += folder.path().size()) arguments.replace(at, 1, folder.path());
  const Ran ran = run_tandem(arguments);
  EXPECT_EQ(ran.code, 2) << ran.err;
  EXPECT_EQ(error_lines(ran), 1) << ran.err;
  EXPECT_THAT(ran.err, HasSubstr(GetParam().says));
  EXPECT_EQ(ran.out, "");
}

#define TINY TANDEM_FIXTURES "/llama-tiny "
constexpr Wrong kWrong[] = {
    {"inspect " TINY "--compare nf4,nonsense", "nonsense"},
    {"inspect " TINY "--compare nf4,,int8", "--compare"},
    {"inspect " TINY "--compare q4_0", "not a multiple"},
    {"inspect " TINY "--compare nf4 --format int8", "--compare"},
    {"inspect " TINY "--compare nf4 --tensors", "another view"},
    {"inspect " TINY "--histogram nothing", "nothing"},
    {"inspect " TINY "--histogram model.norm.weight --format nf4", "leaves"},
    {"inspect " TINY "--histogram all --html /no/such/h.html", "--html"},
    {"inspect " TINY "--html %/h.html", "--histogram"},
    {"inspect " TINY "--tensors -o %/x.npy", "--dequantize"},
    {"inspect preset:smollm2-135m --tensors", "no weights"},
    {"inspect preset:smollm2-135m --compare nf4", "no weights"},
    {"inspect " TANDEM_FIXTURES "/gguf/llama-q4.gguf --compare q4_k", "q4_k"},
    {"perplexity " TINY "%/t.txt --compare fp32,nonsense", "nonsense"},
    {"perplexity " TINY "%/t.txt --compare ,", "--compare"},
    {"perplexity " TINY "%/t.txt --compare nf4 --format int8", "--compare"},
    {"perplexity " TINY "%/t.txt --compare nf4 --trace %/t.json", "--trace"},
    {"bench " TINY "--compare nonsense", "nonsense"},
    {"bench " TINY "--compare nf4 --format int8", "--compare"},
    {"bench " TINY "--compare nf4 --cases load", "--cases"},
    {"bench " TINY "--compare nf4 --max-batch 4", "--max-batch"},
};
INSTANTIATE_TEST_SUITE_P(Table, ComparisonRefuses, testing::ValuesIn(kWrong));

}  // namespace
}  // namespace tandem
