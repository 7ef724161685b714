// What stands in for options that a user left out: sampling defaults and end tokens.
#include "launch/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/error.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(SamplingDefaults, GreedyUnlessDoSample) {
  EXPECT_EQ(sampling_defaults(json::object(), "g").temperature, 0);
  EXPECT_EQ(sampling_defaults({{"temperature", 0.6}}, "g").temperature, 0);
  EXPECT_EQ(sampling_defaults({{"do_sample", false}, {"temperature", 0.6}}, "g").temperature, 0);
  EXPECT_FLOAT_EQ(sampling_defaults({{"do_sample", true}, {"temperature", 0.6}}, "g").temperature, 0.6f);
  EXPECT_EQ(sampling_defaults({{"do_sample", true}}, "g").temperature, 1);
}

TEST(SamplingDefaults, EveryKeyAndNull) {
  const Sampling s = sampling_defaults({{"do_sample", true}, {"top_k", 20}, {"top_p", 0.8}, {"min_p", 0.05}, {"typical_p", 0.9}, {"repetition_penalty", 1.1}}, "g");
  EXPECT_EQ(s.top_k, 20);
  EXPECT_FLOAT_EQ(s.top_p, 0.8f);
  EXPECT_FLOAT_EQ(s.min_p, 0.05f);
  EXPECT_FLOAT_EQ(s.typical_p, 0.9f);
  EXPECT_FLOAT_EQ(s.repetition_penalty, 1.1f);
  const Sampling neutral = sampling_defaults({{"top_k", nullptr}, {"top_p", nullptr}}, "g");
  EXPECT_EQ(neutral.top_k, 0);
  EXPECT_EQ(neutral.top_p, 1);
}

TEST(SamplingDefaults, RefusalsNameFileAndKey) {
  for (const auto& [key, value] : {std::pair<const char*, json>{"top_p", 1.5}, {"top_p", 0}, {"top_k", -1}, {"temperature", "warm"}, {"min_p", 2}, {"repetition_penalty", 0}, {"do_sample", 1}}) {
    try {
      sampling_defaults({{key, value}}, "dir/generation_config.json");
      ADD_FAILURE() << key << " " << value;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument);
      EXPECT_THAT(error.what(), HasSubstr("dir/generation_config.json"));
      EXPECT_THAT(error.what(), HasSubstr(key));
    }
  }
}

Checkpoint checkpoint(json generation, json config) {
  Checkpoint checkpoint;
  checkpoint.path = "dir";
  checkpoint.config_file = "dir/config.json";
  checkpoint.generation_config = std::move(generation);
  checkpoint.config = std::move(config);
  return checkpoint;
}

TEST(EndTokens, OneOrManyAndFallback) {
  EXPECT_THAT(end_tokens(checkpoint({{"eos_token_id", 7}}, {{"eos_token_id", 3}}), 10, nullptr, nullptr), ElementsAre(7));
  EXPECT_THAT(end_tokens(checkpoint({{"eos_token_id", {7, 8, 7}}}, json::object()), 10, nullptr, nullptr), ElementsAre(7, 8));
  EXPECT_THAT(end_tokens(checkpoint(json::object(), {{"eos_token_id", 3}}), 10, nullptr, nullptr), ElementsAre(3));
  EXPECT_THAT(end_tokens(checkpoint({{"eos_token_id", nullptr}}, {{"eos_token_id", {3, 4}}}), 10, nullptr, nullptr), ElementsAre(3, 4));
  EXPECT_THAT(end_tokens(checkpoint(json::object(), json::object()), 10, nullptr, nullptr), ElementsAre());
}

TEST(EndTokens, OutsideOfTheVocabulary) {
  try {
    end_tokens(checkpoint({{"eos_token_id", 10}}, json::object()), 10, nullptr, nullptr);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("dir/generation_config.json: eos_token_id"));
  }
}

TEST(OpenText, DirectoryAndGguf) {
  const Arithmetic arithmetic;
  for (const char* path : {TANDEM_FIXTURES "/llama-tiny", TANDEM_FIXTURES "/gguf/llama-tiny.gguf"}) {
    const Blueprint blueprint = make_blueprint(path, {}, arithmetic);
    const auto text = open_text(blueprint);
    ASSERT_TRUE(text->tokenizer) << path;
    EXPECT_EQ(text->side.tokenizer, text->tokenizer.get());
    EXPECT_EQ(text->side.vocab, blueprint.model->shape.vocab);
    EXPECT_FALSE(text->side.stop_ids.empty()) << path;
    EXPECT_TRUE(text->side.chat_variables->contains("bos_token")) << path;
  }
}

TEST(OpenText, WithoutTokenizer) {
  const auto text = open_text(make_blueprint("preset:llama-3.1-8b", {}, Arithmetic{}));
  EXPECT_EQ(text->side.tokenizer, nullptr);
  EXPECT_THAT(text->side.stop_ids, ElementsAre(128001, 128008, 128009));
}

}  // namespace
}  // namespace tandem
