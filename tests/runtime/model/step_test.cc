#include "runtime/model/step.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "kernels/base/error.h"

namespace tandem {
namespace {

Step full_step() {
  Step s{.number = 7, .epoch = 3, .group = 2, .ids_from = 5, .releases = {1, 4}};
  Admission a{.slot = 4, .serial = 9, .cached = 64, .prompt_tokens = 66, .min_tokens = 3};
  a.sampling = {0.7f, 40, 0.9f, 0.05f, 0.95f, 1.1f, 0.2f, 0.3f, 3, 2, 0xfedcba9876543210, 5};
  a.ids = {5, 6, 7};
  a.stop_ids = {2};
  a.bias_ids = {7, 9};
  a.biases = {-1.5f, 3};
  a.allowed_ids = {7, 9, 11};
  s.admissions = {a, {.slot = 1, .serial = 10, .ids = {1}}};
  s.grants = {{4, 0, {11, 12}}, {1, 1, {}}};
  s.copies = {{0, 3, 4}};
  s.rows = {
      {.slot = 3, .tokens = 1, .sample = true}, {.slot = 4, .tokens = 2, .sample = true, .all_logits = true}, {.slot = 1, .tokens = 1}};
  s.digest = 0x123456789abcdef0;
  return s;
}

void expect_equal(const Step& a, const Step& b) {
  EXPECT_EQ(a.number, b.number);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.group, b.group);
  EXPECT_EQ(a.ids_from, b.ids_from);
  EXPECT_EQ(a.digest, b.digest);
  EXPECT_EQ(a.releases, b.releases);
  ASSERT_EQ(a.admissions.size(), b.admissions.size());
  for (size_t i = 0; i < a.admissions.size(); ++i) {
    const Admission &x = a.admissions[i], &y = b.admissions[i];
    EXPECT_EQ(x.slot, y.slot);
    EXPECT_EQ(x.serial, y.serial);
    EXPECT_EQ(x.cached, y.cached);
    EXPECT_EQ(x.prompt_tokens, y.prompt_tokens);
    EXPECT_EQ(x.min_tokens, y.min_tokens);
    EXPECT_EQ(x.ids, y.ids);
    EXPECT_EQ(x.stop_ids, y.stop_ids);
    EXPECT_EQ(x.bias_ids, y.bias_ids);
    EXPECT_EQ(x.biases, y.biases);
    EXPECT_EQ(x.allowed_ids, y.allowed_ids);
    EXPECT_EQ(x.sampling.no_repeat_ngram, y.sampling.no_repeat_ngram);
    EXPECT_EQ(x.sampling.choice, y.sampling.choice);
    EXPECT_EQ(x.sampling.temperature, y.sampling.temperature);
    EXPECT_EQ(x.sampling.top_k, y.sampling.top_k);
    EXPECT_EQ(x.sampling.top_p, y.sampling.top_p);
    EXPECT_EQ(x.sampling.min_p, y.sampling.min_p);
    EXPECT_EQ(x.sampling.typical_p, y.sampling.typical_p);
    EXPECT_EQ(x.sampling.repetition_penalty, y.sampling.repetition_penalty);
    EXPECT_EQ(x.sampling.presence_penalty, y.sampling.presence_penalty);
    EXPECT_EQ(x.sampling.frequency_penalty, y.sampling.frequency_penalty);
    EXPECT_EQ(x.sampling.seed, y.sampling.seed);
    EXPECT_EQ(x.sampling.logprobs, y.sampling.logprobs);
  }
  ASSERT_EQ(a.grants.size(), b.grants.size());
  for (size_t i = 0; i < a.grants.size(); ++i) {
    EXPECT_EQ(a.grants[i].slot, b.grants[i].slot);
    EXPECT_EQ(a.grants[i].group, b.grants[i].group);
    EXPECT_EQ(a.grants[i].pages, b.grants[i].pages);
  }
  ASSERT_EQ(a.copies.size(), b.copies.size());
  for (size_t i = 0; i < a.copies.size(); ++i) {
    EXPECT_EQ(a.copies[i].group, b.copies[i].group);
    EXPECT_EQ(a.copies[i].from, b.copies[i].from);
    EXPECT_EQ(a.copies[i].to, b.copies[i].to);
  }
  ASSERT_EQ(a.rows.size(), b.rows.size());
  for (size_t i = 0; i < a.rows.size(); ++i) {
    EXPECT_EQ(a.rows[i].slot, b.rows[i].slot);
    EXPECT_EQ(a.rows[i].tokens, b.rows[i].tokens);
    EXPECT_EQ(a.rows[i].sample, b.rows[i].sample);
    EXPECT_EQ(a.rows[i].all_logits, b.rows[i].all_logits);
  }
}

StepResult full_result() {
  StepResult r{.number = 7, .epoch = 3, .seconds = 0.25};
  r.tokens = {{3, 8, 1234, -0.5f, {{1234, -0.5f}, {7, -1.5f}}}, {4, 9, 5, -2.0f, {}}};
  r.logits = {{4, 9, 64, 2, {1, 2, 3, 4}}, {1, 10, 0, 0, {}}};
  return r;
}

TEST(Step, SurvivesEncoding) {
  expect_equal(decode_step(encode(full_step())), full_step());
  expect_equal(decode_step(encode(Step{})), Step{});
}

TEST(Step, ResultSurvivesEncoding) {
  const StepResult a = full_result(), b = decode_result(encode(a));
  EXPECT_EQ(a.number, b.number);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.seconds, b.seconds);
  ASSERT_EQ(a.tokens.size(), b.tokens.size());
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    EXPECT_EQ(a.tokens[i].slot, b.tokens[i].slot);
    EXPECT_EQ(a.tokens[i].serial, b.tokens[i].serial);
    EXPECT_EQ(a.tokens[i].id, b.tokens[i].id);
    EXPECT_EQ(a.tokens[i].logprob, b.tokens[i].logprob);
    EXPECT_EQ(a.tokens[i].top, b.tokens[i].top);
  }
  ASSERT_EQ(a.logits.size(), b.logits.size());
  for (size_t i = 0; i < a.logits.size(); ++i) {
    EXPECT_EQ(a.logits[i].slot, b.logits[i].slot);
    EXPECT_EQ(a.logits[i].serial, b.logits[i].serial);
    EXPECT_EQ(a.logits[i].first, b.logits[i].first);
    EXPECT_EQ(a.logits[i].rows, b.logits[i].rows);
    EXPECT_EQ(a.logits[i].values, b.logits[i].values);
  }
}

TEST(Step, SteadyDecodeIsSmall) {
  Step s{.number = 1000, .epoch = 1, .ids_from = 999};
  for (SlotId slot = 0; slot < 64; ++slot) s.rows.push_back({.slot = slot, .tokens = 1, .sample = true});
  EXPECT_LT(encode(s).size(), 1024u);
  for (SlotId slot = 0; slot < 64; ++slot) s.grants.push_back({slot, 0, {slot}});  // all cross a page at once
  EXPECT_LT(encode(s).size(), 4096u);
}

template <typename Decode>
void expect_refused(std::span<const std::byte> bytes, Decode decode) {
  try {
    decode(bytes);
    ADD_FAILURE() << "was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::internal);
  }
}

TEST(Step, EveryTruncationIsRefused) {
  const std::vector<std::byte> step = encode(full_step()), result = encode(full_result());
  for (size_t n = 0; n < step.size(); ++n) expect_refused(std::span(step).first(n), decode_step);
  for (size_t n = 0; n < result.size(); ++n) expect_refused(std::span(result).first(n), decode_result);
  expect_refused(step, decode_result);
  expect_refused(result, decode_step);
  std::vector<std::byte> longer = step;
  longer.push_back({});
  expect_refused(longer, decode_step);
}

TEST(Step, HugeCountsAreRefusedBeforeAllocation) {
  const std::vector<std::byte> step = encode(full_step());
  for (size_t at = 4; at + 4 <= step.size(); ++at) {
    for (const uint32_t count : {0xffffffffu, 0x7fffffffu, 0x10000000u}) {
      std::vector<std::byte> bytes = step;
      std::memcpy(bytes.data() + at, &count, 4);
      try {
        decode_step(bytes);  // a value, not a count: fine
      } catch (const Error& error) {
        EXPECT_EQ(error.code, Code::internal);
      }  // std::bad_alloc or length_error would fail the test
    }
  }
}

TEST(Step, RandomBytesNeverCrash) {
  std::mt19937 random(1);
  const std::vector<std::byte> step = encode(full_step()), result = encode(full_result());
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> bytes = i % 2 ? step : result;
    for (int k = 1 + static_cast<int>(random() % 4); k > 0; --k) bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    try {
      i % 2 ? static_cast<void>(decode_step(bytes)) : static_cast<void>(decode_result(bytes));
    } catch (const Error&) {
    }
  }
}

TEST(Step, DigestTellsEveryFieldApart) {
  const uint64_t d = slot_digest(1, 2, 3, 4);
  EXPECT_EQ(d, slot_digest(1, 2, 3, 4));
  EXPECT_NE(d, slot_digest(2, 2, 3, 4));
  EXPECT_NE(d, slot_digest(1, 3, 3, 4));
  EXPECT_NE(d, slot_digest(1, 2, 4, 4));
  EXPECT_NE(d, slot_digest(1, 2, 3, 5));
  EXPECT_NE(d, slot_digest(2, 1, 4, 3));
}

}  // namespace
}  // namespace tandem
