// quantize through the real program: whole folders, full disks, wrong options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

const std::string kTiny = TANDEM_FIXTURES "/llama-tiny", kTied = TANDEM_FIXTURES "/llama-tied";

std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : fs::directory_iterator(folder)) all[entry.path().filename()] = read_whole(entry.path());
  return all;
}

json generated(const std::string& model, const std::string& options) {
  const Ran ran = run_tandem("generate " + model + " --prompt-ids 5,6,7,8 --max-tokens 12 --ignore-eos --temperature 0 --logprobs 2 --json " + options);
  EXPECT_EQ(ran.code, 0) << ran.err;
  json answer = json::parse(ran.out, nullptr, false);
  answer.erase("timings");
  answer.erase("seed");
  return answer;
}

TEST(Quantize, WhatIsWrittenAnswersAsTheModelQuantizedOnLoad) {
  for (const char* format : {"nf4", "nf4 --double-quant", "int8", "fp8"}) {
    const TemporaryFolder folder;
    const std::string out = folder / "out";
    const Ran ran = run_tandem("quantize " + kTied + " -o " + out + " --json --shard-size 40000 --format " + format);
    ASSERT_EQ(ran.code, 0) << ran.err;
    const json report = json::parse(ran.out);
    EXPECT_GT(report["files"], 1);
    EXPECT_EQ(report["resumed_bytes"], 0);
    for (const char* name : {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"}) EXPECT_TRUE(fs::exists(out + "/" + name)) << name;
    for (const auto& [name, text] : contents(out)) EXPECT_FALSE(name.starts_with(".") || name.ends_with(".partial")) << name;
    EXPECT_EQ(read_whole(out + "/tokenizer.json"), read_whole(kTied + "/tokenizer.json"));
    EXPECT_EQ(generated(out, ""), generated(kTied, std::string("--format ") + format)) << format;
  }
}

// The tokenizer and the template of a GGUF file, as files.
TEST(Quantize, AGgufFileTokenizesAsBefore) {
  for (const char* name : {"llama-q4", "llama-k"}) {
    const TemporaryFolder folder;
    const std::string gguf = std::string(TANDEM_FIXTURES "/gguf/") + name + ".gguf", out = folder / "out";
    ASSERT_EQ(run_tandem("quantize " + gguf + " --format nf4 -o " + out).code, 0);
    for (const char* text : {"Hello <left> world, it'\\''s 42", "  two  spaces\n\n1234 Grüße 日本語", "x"}) {
      const Ran a = run_tandem(std::string("tokenize --json --prompt '") + text + "' " + gguf), b = run_tandem(std::string("tokenize --json --prompt '") + text + "' " + out);
      EXPECT_EQ(a.code, 0) << a.err;
      EXPECT_EQ(a.out, b.out) << text;
    }
    std::ofstream(folder / "chat.json") << R"([{"role": "user", "content": "Hi there"}])";
    const Ran a = run_tandem("tokenize --chat " + (folder / "chat.json") + " " + gguf), b = run_tandem("tokenize --chat " + (folder / "chat.json") + " " + out);
    EXPECT_EQ(a.code, b.code);
    EXPECT_EQ(a.out, b.out);
  }
}

TEST(Quantize, AFullDiskLeavesWholeFilesAndSaysHowToGoOn) {
  const TemporaryFolder folder;
  const std::string out = folder / "out", whole = folder / "whole", options = " --format int8 --shard-size 120000 -o ";
  ASSERT_EQ(run_tandem("quantize " + kTied + options + whole).code, 0);
  // No file may be larger than 100 blocks of 1 KiB: the second kind of shards is.
  const std::string line = "bash -c 'ulimit -f 60; exec " TANDEM_BINARY " quantize " + kTied + options + out + "' 2>" + (folder / "err");
  const int status = std::system(line.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  const std::string err = read_whole(folder / "err");
  EXPECT_THAT(err, AllOf(testing::StartsWith("error: "), HasSubstr(out + "/model-0000"), HasSubstr("File too large"), HasSubstr("same command again")));
  EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  EXPECT_FALSE(fs::exists(out + "/config.json"));
  const Ran ran = run_tandem("quantize " + kTied + options + out);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(contents(out) == contents(whole));
}

struct Wrong { const char* arguments; const char* says; };
void PrintTo(const Wrong& wrong, std::ostream* out) { *out << wrong.arguments; }
class QuantizeRefuses : public testing::TestWithParam<Wrong> {};

TEST_P(QuantizeRefuses, InOneLine) {
  const TemporaryFolder folder;
  fs::copy(kTiny, folder / "model", fs::copy_options::recursive);
  fs::create_directory(folder / "full");
  std::ofstream(folder / "full/notes.txt") << "mine";
  std::string arguments = GetParam().arguments;
  for (size_t at = 0; (at = arguments.find('%', at)) != std::string::npos; at += folder.path().size()) arguments.replace(at, 1, folder.path());
  const auto before = contents(folder / "model");
  const Ran ran = run_tandem("quantize " + arguments);
  EXPECT_EQ(ran.code, 2) << ran.err;
  EXPECT_EQ(error_lines(ran), 1) << ran.err;
  EXPECT_THAT(ran.err, HasSubstr(GetParam().says));
  EXPECT_EQ(ran.out, "");
  EXPECT_TRUE(contents(folder / "model") == before);
  EXPECT_FALSE(fs::exists(folder / "new"));
  EXPECT_EQ(contents(folder / "full").size(), 1u);
}

constexpr Wrong kWrong[] = {
    {"", "MODEL"},
    {"%/model -o %/new", "--format"},
    {"%/model --format nf4", "-o"},
    {"%/none -o %/new --format nf4", "none"},
    {"%/model -o %/model --format nf4", "the model itself"},
    {"%/model -o %/model/../model --format nf4", "the model itself"},
    {"%/model -o %/full --format nf4", "holds files"},
    {"%/model -o %/full/notes.txt --format nf4", "a file"},
    {"%/model -o %/full/notes.txt/below --format nf4", "-o"},
    {"%/model -o %/new.gguf --format q4_0", "GGUF"},
    {"%/model -o %/new --format nonsense", "nonsense"},
    {"%/model -o %/new --format absmax", "no library"},
    {"%/model -o %/new --format q8_0", "is not a multiple of 32"},
    {"%/model -o %/new --format int4_sym", "is not a multiple of 128"},
    {"%/model -o %/new --format nf4,mlp=int8", "mixes"},
    {"%/model -o %/new --format nf4,elsewhere=bf16", "elsewhere"},
    {"%/model -o %/new --format int8 --double-quant", "--double-quant"},
    {"%/model -o %/new --format nf4 --shard-size 0", "--shard-size"},
    {"%/model -o %/new --format nf4 --shard-size many", "--shard-size"},
    {"%/model -o %/new --format nf4 --threads 0", "--threads"},
    {"%/model/config.json -o %/new --format nf4", "holds no weights"},
    {"preset:smollm2-135m -o %/new --format nf4", "holds no weights"},
};
INSTANTIATE_TEST_SUITE_P(Table, QuantizeRefuses, testing::ValuesIn(kWrong));

}  // namespace
}  // namespace tandem
