#include "rpc/answer.h"

#include <random>

#include "runtime/text/utf8.h"
#include "tests/rpc/served.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

RequestEvent said(std::vector<int32_t> ids, FinishReason finish = FinishReason::none) {
  RequestEvent event;
  for (const int32_t id : ids) event.tokens.push_back({.id = id, .logprob = -1});
  event.finish = finish;
  return event;
}

// An answer whose tokens spell `text` byte by byte where they must.
struct Told {
  explicit Told(const std::string& text, std::vector<std::string> stops, int32_t tokens_an_event = 1) {
    Ask ask = ask_text("x", 200);
    ask.stop_strings = std::move(stops);
    const Prepared prepared = prepare(ask, side);
    Answer answer(side, prepared);
    ids = toy_tokenizer().encode(text, false);
    for (size_t at = 0; at < ids.size() && !match; at += static_cast<size_t>(tokens_an_event)) {
      const size_t end = std::min(ids.size(), at + static_cast<size_t>(tokens_an_event));
      answer.take(said({ids.begin() + static_cast<std::ptrdiff_t>(at), ids.begin() + static_cast<std::ptrdiff_t>(end)}));
      match = answer.take_match();
      add(answer.take_delta());
    }
    answer.take(said({1, 2, 3}, FinishReason::length));
    add(answer.take_delta());
    EXPECT_TRUE(answer.done());
    end = answer.end();
  }
  void add(const AnswerDelta& delta) {
    EXPECT_TRUE(is_valid_utf8(delta.text));
    shown += delta.text;
    heard.insert(heard.end(), delta.token_ids.begin(), delta.token_ids.end());
    longest = std::max(longest, shown.size());
  }
  TextSide side = toy_text(256);
  std::vector<int32_t> ids, heard;
  std::string shown;
  size_t longest = 0;
  std::optional<int32_t> match;
  AnswerEnd end;
};

TEST(Answer, CutsBeforeTheStopStringHoweverTheTokensFall) {
  const std::string text = "One two. Größe 日本語 <|end>|> tail";
  for (const int32_t tokens : {1, 2, 3, 50}) {
    for (const char* stop : {"two", ". G", "öß", "日本", "語 <", "<|end>|>", " tail", "l"}) {
      const Told told(text, {"absent", stop}, tokens);
      EXPECT_EQ(told.shown, text.substr(0, text.find(stop))) << stop;
      EXPECT_EQ(told.end.reason, FinishReason::stop_string);
      EXPECT_EQ(told.end.matched, stop);
      ASSERT_TRUE(told.match) << stop;
      // Engine::finish wants the index of the token that completed it; nothing after that is counted.
      EXPECT_EQ(*told.match + 1, told.end.completion_tokens);
      EXPECT_EQ(told.heard, std::vector<int32_t>(told.ids.begin(), told.ids.begin() + told.end.completion_tokens));
    }
  }
}

TEST(Answer, WhatOnlyLooksLikeAStopStringComesInTheEnd) {
  const Told told("almost STO", {"STOP"});
  EXPECT_EQ(told.shown.substr(0, 10), "almost STO");
  EXPECT_EQ(told.end.reason, FinishReason::length);
  EXPECT_FALSE(told.match);
}

TEST(Answer, ErrorAfterTheStopStringDoesNotSpoilIt) {
  TextSide side = toy_text(256);
  Ask ask = ask_text("x", 20);
  ask.stop_strings = {"b"};
  Answer answer(side, prepare(ask, side));
  answer.take(said(toy_tokenizer().encode("abc", false)));
  EXPECT_TRUE(answer.take_match());
  RequestEvent lost;
  lost.error = Error(Code::unavailable, "", "lost");
  answer.take(std::move(lost));
  EXPECT_TRUE(answer.done());
  EXPECT_FALSE(answer.error());
  EXPECT_EQ(answer.end().reason, FinishReason::stop_string);
}

TEST(Answer, ErrorsKeepWhatWasSaid) {
  TextSide side = toy_text(256);
  Answer answer(side, prepare(ask_text("x", 20), side));
  answer.take(said({5, 6}));
  RequestEvent lost;
  lost.error = Error(Code::aborted, "", "by hand");
  answer.take(std::move(lost));
  ASSERT_TRUE(answer.error());
  EXPECT_EQ(answer.error()->code, Code::aborted);
  EXPECT_THAT(answer.take_delta().token_ids, ElementsAre(5, 6));
}

TEST(Answer, ResumeAfterAStopStringIsRefused) {
  TextSide side = toy_text(256);
  Ask ask = ask_text("x", 100);
  ask.stop_strings = {"END"};
  ask.resume = toy_tokenizer().encode("all said. END", false);
  const Prepared prepared = prepare(ask, side);
  EXPECT_THROW(Answer(side, prepared), Error);
}

TEST(Prepare, DefaultsAreTheModels) {
  TextSide side = toy_text(100);
  side.stop_ids = {496};
  side.defaults.temperature = 0.7f;
  side.defaults.top_p = 0.9f;
  Ask ask;
  ask.input = std::vector<int32_t>(30, 1);
  Prepared prepared = prepare(ask, side);
  EXPECT_EQ(prepared.request.sampling.temperature, 0.7f);
  EXPECT_EQ(prepared.request.sampling.top_p, 0.9f);
  EXPECT_EQ(prepared.request.sampling.logprobs, -1);
  EXPECT_EQ(prepared.request.stopping.max_tokens, 70);  // what the context leaves
  EXPECT_THAT(prepared.request.stopping.stop_ids, ElementsAre(496));
  EXPECT_EQ(prepared.request.id.size(), 32u);
  EXPECT_NE(prepared.request.id, prepare(ask, side).request.id);
  EXPECT_NE(prepared.request.sampling.seed, prepare(ask, side).request.sampling.seed);

  ask.temperature = 0;
  ask.max_tokens = 90;
  ask.stop_ids = {3, 496, 3};
  prepared = prepare(ask, side);
  EXPECT_EQ(prepared.request.sampling.temperature, 0);
  EXPECT_EQ(prepared.request.stopping.max_tokens, 70);
  EXPECT_THAT(prepared.request.stopping.stop_ids, ElementsAre(3, 496));
  ask.ignore_eos = true;
  prepared = prepare(ask, side);
  EXPECT_THAT(prepared.request.stopping.stop_ids, ElementsAre(3, 496));  // named by the user: stops all the same
  EXPECT_FALSE(prepared.request.stopping.ignore_eos);
}

TEST(Prepare, ChatsGoThroughTheTemplate) {
  const ChatTemplate chat(
      "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}{{ tools }}", "t");
  TextSide side = toy_text(100);
  side.chat = &chat;
  Ask ask;
  ask.input = ChatInput{R"([{"role":"user","content":"hi"}])", "[1]"};
  std::string rendered;
  EXPECT_THAT(tokenize_input(ask, side, true, true, &rendered), ElementsAreArray(toy_tokenizer().encode("<user>hi<bot>[1]", false)));
  EXPECT_EQ(rendered, "<user>hi<bot>[1]");
  tokenize_input(ask, side, true, false, &rendered);
  EXPECT_EQ(rendered, "<user>hi[1]");
  for (const char* bad : {"", "{}", "[]", "[1]", R"([{"content":"x"}])", "[[[[["}) {
    ask.input = ChatInput{bad, ""};
    EXPECT_THROW(prepare(ask, side), Error) << bad;
  }
}

}  // namespace
}  // namespace tandem
