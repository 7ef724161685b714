// client and chat against a real server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/serve_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;

constexpr const char* kModel = TANDEM_FIXTURES "/llama-tiny";

class AgainstServer : public testing::Test {
 protected:
  static void SetUpTestSuite() { served_ = new Served(kModel, "--context 128"); }
  static void TearDownTestSuite() {
    delete served_;
    served_ = nullptr;
  }
  void SetUp() override { ASSERT_NE(served_->address(), "") << served_->said(); }
  static Ran client(const std::string& arguments) { return run_tandem("client " + served_->address() + " " + arguments); }
  static Ran chat(const std::string& arguments, const std::string& input) { return run_tandem("chat " + served_->address() + " " + arguments, input); }
  static Served* served_;
};
Served* AgainstServer::served_ = nullptr;

TEST_F(AgainstServer, JsonIsGeneratesJson) {
  const std::string asked = " --prompt-ids 495,39,286 --max-tokens 8 --ignore-eos --temperature 0 --seed 7 --logprobs 2 --json";
  const Ran ran = client(asked);
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json remote = json::parse(ran.out);
  for (const char* key : {"prompt_token_ids", "token_ids", "text", "finish_reason", "seed", "compute", "logprobs", "usage", "timings"}) EXPECT_TRUE(remote.contains(key)) << key;
  EXPECT_EQ(remote["prompt_token_ids"], json({495, 39, 286}));
  EXPECT_EQ(remote["token_ids"].size(), 8u);
  EXPECT_EQ(remote["finish_reason"], "length");
  EXPECT_EQ(remote["seed"], 7);
  EXPECT_EQ(remote["logprobs"].size(), 8u);
  EXPECT_EQ(remote["usage"], json({{"prompt_tokens", 3}, {"completion_tokens", 8}}));

  const Ran here = run_tandem("generate " + std::string(kModel) + " --context 128" + asked);
  ASSERT_EQ(here.code, 0) << here.err;
  json local = json::parse(here.out), streamed = remote;
  for (json* answer : {&local, &streamed}) answer->erase("timings");
  EXPECT_EQ(local, streamed);
}

TEST_F(AgainstServer, TextIsStreamedToStdout) {
  const std::string asked = "--prompt 'Hello world' --max-tokens 12 --ignore-eos --temperature 0";
  const Ran plain = client(asked), with_json = client(asked + " --json");
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(plain.out, json::parse(with_json.out)["text"].get<std::string>() + "\n");
  EXPECT_EQ(plain.err, "");
}

TEST_F(AgainstServer, StatusesHaveTheirExitCodes) {
  const Ran wrong = client("--prompt-ids 1,2,99999");
  EXPECT_EQ(wrong.code, 2);
  EXPECT_EQ(wrong.out, "");
  EXPECT_THAT(wrong.err, StartsWith("error: INVALID_ARGUMENT: "));
  EXPECT_EQ(error_lines(wrong), 1);
  const Ran late = client("--prompt-ids 1,2 --max-tokens 100 --ignore-eos --deadline-seconds 0.001");
  EXPECT_EQ(late.code, 1);
  EXPECT_THAT(late.err, StartsWith("error: DEADLINE_EXCEEDED: "));
}

TEST(Client, NobodyListens) {
  const Ran ran = run_tandem("client 127.0.0.1:1 --prompt x --connect-seconds 0");
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, StartsWith("error: UNAVAILABLE: nobody listens"));
  EXPECT_EQ(error_lines(ran), 1);
}

TEST_F(AgainstServer, ChatThroughPipes) {
  const std::string sampling = "--max-tokens 6 --ignore-eos --temperature 0";
  const Ran once = chat(sampling, "Hi\n");
  ASSERT_EQ(once.code, 0) << once.err;
  EXPECT_EQ(once.err, "");
  EXPECT_NE(once.out, "");
  // The same message after /clear has the same answer; /exit ends before what follows; empty lines say nothing.
  const Ran cleared = chat(sampling, "Hi\n\n/clear\nHi\n/exit\nHi\n");
  ASSERT_EQ(cleared.code, 0) << cleared.err;
  EXPECT_EQ(cleared.out, once.out + once.out);
}

TEST_F(AgainstServer, ChatRemembers) {
  const std::string sampling = "--max-tokens 6 --ignore-eos --temperature 0";
  const Ran twice = chat(sampling, "Hi\nHi\n"), once = chat(sampling, "Hi\n");
  ASSERT_EQ(twice.code, 0) << twice.err;
  EXPECT_TRUE(twice.out.starts_with(once.out));
  EXPECT_NE(twice.out, once.out + once.out);  // the second answer depends on the first exchange
}

TEST_F(AgainstServer, ChatInPipesEndsAtAnError) {
  const Ran ran = chat("--temperature -1", "Hi\nHi\n");
  EXPECT_EQ(ran.code, 2);
  EXPECT_EQ(error_lines(ran), 1);
  EXPECT_THAT(ran.err, HasSubstr("INVALID_ARGUMENT"));
}

}  // namespace
}  // namespace tandem
