#include "runtime/serving/request.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

namespace tandem {
namespace {

EngineOptions options() {
  EngineOptions o;
  o.context = 64;
  o.vocab = 100;
  return o;
}

Request good() {
  Request r;
  r.id = "a";
  r.prompt = {1, 2, 3};
  return r;
}

TEST(Request, ValidOnesPass) {
  EXPECT_NO_THROW(validate(good(), options()));
  Request r = good();
  r.prompt.assign(63, 5);
  r.sampling = {2.0f, 50, 0.9f, 0.1f, 0.9f, 1.2f, 1, 1, 4, 0, ~uint64_t{0}, kMaxLogprobs};
  r.stopping = {.max_tokens = std::numeric_limits<int32_t>::max(), .min_tokens = 5, .stop_ids = {0, 99}};
  EXPECT_NO_THROW(validate(r, options()));
  r = good();
  r.all_logits = true;
  r.prompt.assign(64, 5);
  EXPECT_NO_THROW(validate(r, options()));
}

TEST(Request, EveryBadFieldIsNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const std::vector<std::pair<const char*, std::function<void(Request&)>>> cases = {
      {"request_id", [](Request& r) { r.id.clear(); }},
      {"request_id", [](Request& r) { r.id.assign(300, 'x'); }},
      {"prompt", [](Request& r) { r.prompt.clear(); }},
      {"prompt",
       [](Request& r) {
         r.prompt = {1, -1};
       }},
      {"prompt", [](Request& r) { r.prompt = {100}; }},
      {"prompt", [](Request& r) { r.prompt.assign(64, 1); }},
      {"temperature", [=](Request& r) { r.sampling.temperature = nan; }},
      {"temperature", [=](Request& r) { r.sampling.temperature = infinity; }},
      {"temperature", [](Request& r) { r.sampling.temperature = -1; }},
      {"top_k", [](Request& r) { r.sampling.top_k = -1; }},
      {"top_p", [](Request& r) { r.sampling.top_p = 0; }},
      {"top_p", [=](Request& r) { r.sampling.top_p = nan; }},
      {"top_p", [](Request& r) { r.sampling.top_p = 1.5f; }},
      {"min_p", [](Request& r) { r.sampling.min_p = 2; }},
      {"typical_p", [](Request& r) { r.sampling.typical_p = 0; }},
      {"repetition_penalty", [](Request& r) { r.sampling.repetition_penalty = 0; }},
      {"repetition_penalty", [=](Request& r) { r.sampling.repetition_penalty = nan; }},
      {"presence_penalty", [=](Request& r) { r.sampling.presence_penalty = infinity; }},
      {"frequency_penalty", [](Request& r) { r.sampling.frequency_penalty = -1e9f; }},
      {"logprobs", [](Request& r) { r.sampling.logprobs = kMaxLogprobs + 1; }},
      {"logprobs", [](Request& r) { r.sampling.logprobs = -2; }},
      {"no_repeat_ngram_size", [](Request& r) { r.sampling.no_repeat_ngram = -1; }},
      {"logit_bias", [](Request& r) { r.logit_bias = {{100, 1}}; }},
      {"logit_bias", [=](Request& r) { r.logit_bias = {{1, nan}}; }},
      {"logit_bias", [=](Request& r) { r.logit_bias = {{1, infinity}}; }},
      {"logit_bias", [](Request& r) { r.logit_bias.assign(kMostBiases + 1, {1, 0}); }},
      {"allowed_token_ids", [](Request& r) { r.allowed_ids = {-1}; }},
      {"allowed_token_ids",
       [](Request& r) {
         r.allowed_ids = {5, 6};
         r.stopping = {.min_tokens = 2, .stop_ids = {5, 6, 7}};
       }},
      {"max_tokens", [](Request& r) { r.stopping.max_tokens = -5; }},
      {"min_tokens", [](Request& r) { r.stopping.min_tokens = -5; }},
      {"min_tokens", [](Request& r) { r.stopping = {.max_tokens = 3, .min_tokens = 4}; }},
      {"stop_token_ids", [](Request& r) { r.stopping.stop_ids = {100}; }},
      {"stop_token_ids", [](Request& r) { r.stopping.stop_ids.assign(65, 1); }},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    Request r = good();
    cases[i].second(r);
    try {
      validate(r, options());
      ADD_FAILURE() << "case " << i << " (" << cases[i].first << ") was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument) << "case " << i;
      EXPECT_EQ(error.where, cases[i].first) << "case " << i;
    }
  }
}

TEST(Request, ReasonsHaveTheContractsNames) {
  EXPECT_EQ(name(FinishReason::stop), "stop");
  EXPECT_EQ(name(FinishReason::length), "length");
  EXPECT_EQ(name(FinishReason::stop_string), "stop_string");
  EXPECT_EQ(name(FinishReason::cancelled), "cancelled");
}

}  // namespace
}  // namespace tandem
