// Every command's help fits one screen and ends with an example; wrong options give one error line and exit code 2.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using testing::HasSubstr;

constexpr const char* kCommands[] = {"plan", "probe", "generate", "serve", "client", "chat", "inspect", "tokenize", "logits", "perplexity", "bench", "quantize"};

TEST(Help, FitsOneScreen) {
  for (const char* command : kCommands) {
    const Ran ran = run_tandem(std::string(command) + " --help");
    EXPECT_EQ(ran.code, 0) << command << "\n" << ran.err;
    EXPECT_LE(std::count(ran.out.begin(), ran.out.end(), '\n'), 40) << ran.out;
    EXPECT_THAT(ran.out, HasSubstr("Example")) << command;
    EXPECT_EQ(ran.err, "") << command;
  }
}

TEST(Help, OfTheProgramListsEveryCommand) {
  const Ran ran = run_tandem("--help");
  EXPECT_EQ(ran.code, 0);
  EXPECT_LE(std::count(ran.out.begin(), ran.out.end(), '\n'), 40) << ran.out;
  for (const char* command : kCommands) EXPECT_THAT(ran.out, HasSubstr(command));
}

TEST(Help, AllExplainsWhatTheShortOneOnlyNames) {
  EXPECT_THAT(run_tandem("generate --help").out, HasSubstr("--typical-p"));
  EXPECT_THAT(run_tandem("generate --help-all").out, HasSubstr("tokens of typical surprise"));
}

TEST(Help, Version) {
  const Ran ran = run_tandem("--version");
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.out, testing::StartsWith("tandem "));
}

struct Wrong { const char* arguments; const char* says; };

void PrintTo(const Wrong& wrong, std::ostream* out) { *out << wrong.arguments; }

class WrongOptions : public testing::TestWithParam<Wrong> {};

TEST_P(WrongOptions, GiveOneLineAndExitCode2) {
  const Ran ran = run_tandem(GetParam().arguments);
  EXPECT_EQ(ran.code, 2) << ran.err;
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(error_lines(ran), 1) << ran.err;
  EXPECT_THAT(ran.err, HasSubstr(GetParam().says));
}

constexpr Wrong kWrong[] = {
    {"", "command line"},
    {"nonsense", "command line"},
    {"plan --nonsense", "--nonsense"},
    {"plan", "MODEL: is missing"},
    {"plan preset:llama-3.1-9b", "llama-3.1-8b"},
    {"plan /no/such/model", "/no/such/model"},
    {"plan preset:llama-3.2-1b --ranks 3 --tp 2", "--ranks"},
    {"plan preset:llama-3.2-1b --ranks 4 --pp 3", "--ranks"},
    {"plan preset:llama-3.2-1b --ranks -1", "--ranks"},
    {"plan preset:llama-3.2-1b --pp 17", "17"},
    {"plan preset:llama-3.2-1b --tp 7", "--tp"},
    {"plan preset:llama-3.2-1b --context -1", "--context"},
    {"plan preset:llama-3.2-1b --chunk -1", "--chunk"},
    {"plan preset:llama-3.2-1b --page 0", "--page"},
    {"plan preset:llama-3.2-1b --max-batch -2", "--max-batch"},
    {"plan preset:llama-3.2-1b --gpus 2xnonsense", "--gpus"},
    {"plan preset:llama-3.2-1b --gpus 1xrtx3090 --cluster x.json", "--gpus"},
    {"plan preset:llama-3.2-1b --cluster /no/such/file.json", "/no/such/file.json"},
    {"plan preset:llama-3.2-1b --max-memory 0", "--max-memory"},
    {"plan preset:llama-3.2-1b --reserve many", "--reserve"},
    {"plan preset:llama-3.2-1b --objective beauty", "--objective"},
    {"plan preset:llama-3.2-1b --format nonsense", "nonsense"},
    {"plan preset:llama-3.2-1b --compute int3", "--compute"},
    {"plan preset:llama-3.2-1b --kv-dtype int3", "--kv-dtype"},
    {"plan preset:llama-3.2-1b --device gpu", "--device"},
    {"plan preset:llama-3.2-1b --device toaster", "--device"},
    {"plan preset:llama-3.2-1b --plan /no/such/plan.json", "/no/such/plan.json"},
    {"plan preset:llama-3.2-1b -o /no/such/folder/plan.json", "-o"},
    {"plan preset:llama-3.2-1b --html /no/such/folder/plan.html", "--html"},
    {"inspect", "MODEL"},
    {"inspect preset:llama-3.2-1b --dequantize", "--tensor"},
    {"inspect preset:llama-3.2-1b --tensor model.norm.weight", "--dequantize"},
    {"tokenize", "MODEL"},
    {"tokenize /no/such/model --prompt x", "/no/such/model"},
    {"tokenize preset:llama-3.2-1b --prompt x", "tokenizer"},
    {"tokenize " TANDEM_FIXTURES "/llama-tiny", "--prompt"},
    {"tokenize " TANDEM_FIXTURES "/llama-tiny --prompt a --decode 1", "--prompt"},
    {"tokenize " TANDEM_FIXTURES "/llama-tiny --decode 1,x", "--decode"},
    {"tokenize " TANDEM_FIXTURES "/llama-tiny --decode 1 --no-special", "--prompt"},
    {"tokenize " TANDEM_FIXTURES "/llama-tiny --prompt x --skip-special", "--decode"},
    {"tokenize " TANDEM_FIXTURES "/llama-tiny --chat /no/such/chat.json", "/no/such/chat.json"},
    {"client", "--prompt"},
    {"client --prompt a --prompt-ids 1", "--prompt"},
    {"client --prompt-ids 1,-2", "--prompt-ids"},
    {"client --prompt a --temperature warm", "--temperature"},
    {"client --prompt a --connect-seconds -1", "--connect-seconds"},
};
INSTANTIATE_TEST_SUITE_P(Table, WrongOptions, testing::ValuesIn(kWrong));

}  // namespace
}  // namespace tandem
