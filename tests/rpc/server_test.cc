#include "rpc/server.h"

#include <random>
#include <thread>

#include "runtime/text/utf8.h"
#include "tests/rpc/served.h"

namespace tandem {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

TEST(Generate, StreamsWhatTheModelSays) {
  Served s;
  s.start();
  for (const int32_t tokens : {1, 2, 7, 200}) {
    Ask ask = ask_text("Tell me about seed " + std::to_string(tokens), tokens);
    ask.request_id = "one-" + std::to_string(tokens);
    ask.return_prompt_ids = true;
    ask.ignore_eos = true;
    const Heard heard = s.hear(ask);
    const auto expected = s.expected(ask);
    EXPECT_THAT(heard.ids, ElementsAreArray(expected));
    EXPECT_EQ(heard.text, toy_tokenizer().decode(expected, true));
    for (const std::string& piece : heard.pieces) EXPECT_TRUE(is_valid_utf8(piece));
    EXPECT_EQ(heard.end.reason, FinishReason::length);
    EXPECT_EQ(heard.end.completion_tokens, tokens);
    EXPECT_THAT(heard.end.prompt_ids, ElementsAreArray(toy_tokenizer().encode(std::get<std::string>(ask.input), true)));
    EXPECT_EQ(heard.end.prompt_tokens, static_cast<int32_t>(heard.end.prompt_ids.size()));
    EXPECT_EQ(heard.end.compute, "fp32");
  }
  EXPECT_TRUE(s.idle());
}

TEST(Generate, IdsInIdsOut) {
  Served s;
  s.start();
  Ask ask;
  ask.input = std::vector<int32_t>{5, 6, 7};
  ask.max_tokens = 12;
  ask.logprobs = 0;
  ask.seed = 77;
  const Heard heard = s.hear(ask);
  EXPECT_THAT(heard.ids, ElementsAreArray(s.expected(ask)));
  ASSERT_EQ(heard.logprobs.size(), heard.ids.size());
  for (size_t i = 0; i < heard.ids.size(); ++i) {
    EXPECT_EQ(heard.logprobs[i].id, heard.ids[i]);
    EXPECT_EQ(heard.logprobs[i].logprob, -0.5f);
  }
  EXPECT_EQ(heard.end.seed, 77u);
  EXPECT_EQ(heard.end.prompt_tokens, 3);
}

TEST(Generate, WithoutStreamComesInOnePiece) {
  Served s;
  s.start();
  Ask ask = ask_text("all at once", 60);
  ask.stream = false;
  const Heard heard = s.hear(ask);
  EXPECT_EQ(heard.pieces.size(), 1u);
  EXPECT_THAT(heard.ids, ElementsAreArray(s.expected(ask)));
}

TEST(Generate, StopTokenEndsItAndIsCounted) {
  Served s;
  s.start();
  Ask ask = ask_text("stop somewhere", 40);
  const auto free = s.expected(ask);
  ask.stop_ids = {free[9]};
  const Heard heard = s.hear(ask);
  EXPECT_EQ(heard.end.reason, FinishReason::stop);
  EXPECT_EQ(heard.end.matched_id, free[9]);
  EXPECT_EQ(heard.end.matched, toy_tokenizer().piece(free[9]));
  EXPECT_EQ(heard.ids.back(), free[9]);
  EXPECT_EQ(heard.end.completion_tokens, static_cast<int32_t>(heard.ids.size()));
}

TEST(Generate, StopStringsCutTheText) {
  Served s(toy_engine(), slow_steps(1));
  s.start();
  std::mt19937 random(11);
  for (int round = 0; round < 20; ++round) {
    Ask ask = ask_text("round " + std::to_string(round), 60);
    const std::string whole = toy_tokenizer().decode(s.expected(ask), true);
    size_t begin = random() % (whole.size() / 2), end = begin + 2 + random() % 12;
    while (begin < whole.size() && (whole[begin] & 0xc0) == 0x80) ++begin;
    while (end < whole.size() && (whole[end] & 0xc0) == 0x80) ++end;
    const std::string stop = whole.substr(begin, end - begin);
    ask.stop_strings = {"never said by anybody", stop};
    const Heard heard = s.hear(ask);
    EXPECT_EQ(heard.text, whole.substr(0, whole.find(stop))) << "round " << round;
    EXPECT_EQ(heard.end.reason, FinishReason::stop_string);
    EXPECT_EQ(heard.end.matched, stop);
    EXPECT_EQ(heard.end.completion_tokens, static_cast<int32_t>(heard.ids.size()));
    if (stop.ends_with(replacement_character)) continue;  // half a character at the end would look like one
    auto before = heard.ids;                              // the last id is the one that completed it, no earlier one did
    before.pop_back();
    EXPECT_EQ(toy_tokenizer().decode(before, true).find(stop), std::string::npos);
  }
  EXPECT_TRUE(s.idle());
}

TEST(Generate, ResumeGoesOnWhereItWasCut) {
  Served s;
  s.start();
  Ask ask = ask_text("a long story", 50);
  ask.seed = 5;
  ask.temperature = 1.0f;
  const Heard whole = s.hear(ask);
  for (const size_t cut : {1u, 20u, 49u}) {
    Ask rest = ask;
    rest.resume.assign(whole.ids.begin(), whole.ids.begin() + static_cast<std::ptrdiff_t>(cut));
    const Heard heard = s.hear(rest);
    EXPECT_EQ(heard.ids, std::vector<int32_t>(whole.ids.begin() + static_cast<std::ptrdiff_t>(cut), whole.ids.end()));
    EXPECT_EQ(heard.end.completion_tokens, static_cast<int32_t>(50 - cut));
    EXPECT_EQ(heard.end.prompt_tokens, whole.end.prompt_tokens);
    // What had been certain before the cut, and what comes now, is the whole.
    ASSERT_LE(heard.text.size(), whole.text.size());
    EXPECT_EQ(whole.text.substr(whole.text.size() - heard.text.size()), heard.text);
  }
}

TEST(Generate, CancelledInTheMiddle) {
  Served s(toy_engine(), slow_steps(5));
  s.start();
  Client client = s.client();
  Client::Call call;
  int deltas = 0;
  try {
    client.generate(
        ask_text("cancel me", 400),
        [&](const AnswerDelta&) {
          if (++deltas == 5) call.cancel();
        },
        0, &call);
    ADD_FAILURE() << "ended well";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::cancelled);
  }
  EXPECT_LT(deltas, 50);
  EXPECT_TRUE(s.idle());
}

TEST(Generate, DeadlineEndsIt) {
  Served s(toy_engine(), slow_steps(10));
  s.start();
  const auto began = Clock::now();
  Heard heard;
  try {
    s.hear(ask_text("be quick", 400), 0.3);
    ADD_FAILURE() << "ended well";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::deadline_exceeded);
  }
  EXPECT_LT(std::chrono::duration<double>(Clock::now() - began).count(), 1.5 * kSlowFactor);
  EXPECT_TRUE(s.idle());
}

TEST(Generate, ImposedDeadline) {
  ServerOptions options;
  options.default_deadline_seconds = 0.2;
  Served s(toy_engine(), slow_steps(10), options);
  s.start();
  // Our client always sends a deadline, of a day if need be; a bare stub is tested in wire_test.
  EXPECT_EQ(s.hear(ask_text("no hurry", 30)).end.completion_tokens, 30);
}

TEST(Generate, FullQueueIsRefusedAndRetriedInvisibly) {
  EngineOptions options = toy_engine();
  options.max_batch = 1;
  options.max_queue = 1;
  Served s(options, slow_steps(static_cast<int>(4 * kSlowFactor)));
  s.start();
  s.hear(ask_text("warm", 40));  // by which the server knows how fast places get free
  std::vector<std::jthread> threads;
  std::atomic<int> done{0};
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      s.hear(ask_text("occupy " + std::to_string(i), 40));
      ++done;
    });
  }
  while (s.engine.load().running + s.engine.load().waiting < 2) std::this_thread::yield();
  std::string message;
  EXPECT_EQ(s.refusal(ask_text("no place", 5), &message), Code::resource_exhausted);
  EXPECT_THAT(message, HasSubstr("queue"));
  EXPECT_LT(done, 2);
  // The same with the client's policy: the refusals are never seen.
  const Heard heard = s.hear(ask_text("patient", 5));
  EXPECT_EQ(heard.end.completion_tokens, 5);
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(s.idle());
}

TEST(Generate, IdInFlightTwice) {
  Served s(toy_engine(), slow_steps(5));
  s.start();
  Ask ask = ask_text("mine", 100);
  ask.request_id = "the id";
  std::jthread first([&] { s.hear(ask); });
  while (s.engine.load().running == 0) std::this_thread::yield();
  EXPECT_EQ(s.refusal(ask), Code::already_exists);
  first.join();
  EXPECT_EQ(s.hear(ask).end.completion_tokens, 100);  // free again
}

TEST(Generate, WrongFieldsAreNamed) {
  Served s;
  s.start();
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinite = std::numeric_limits<float>::infinity();
  struct Case {
    const char* field;
    std::function<void(Ask&)> spoil;
    Code code = Code::invalid_argument;
  };
  const Case cases[] = {
      {"temperature", [&](Ask& a) { a.temperature = nan; }},
      {"temperature", [&](Ask& a) { a.temperature = -0.5f; }},
      {"temperature", [&](Ask& a) { a.temperature = 1e30f; }},
      {"temperature", [&](Ask& a) { a.temperature = infinite; }},
      {"top_k", [&](Ask& a) { a.top_k = -1; }},
      {"top_p", [&](Ask& a) { a.top_p = 0; }},
      {"top_p", [&](Ask& a) { a.top_p = 1.5f; }},
      {"top_p", [&](Ask& a) { a.top_p = nan; }},
      {"min_p", [&](Ask& a) { a.min_p = -1; }},
      {"typical_p", [&](Ask& a) { a.typical_p = 2; }},
      {"repetition_penalty", [&](Ask& a) { a.repetition_penalty = 0; }},
      {"repetition_penalty", [&](Ask& a) { a.repetition_penalty = nan; }},
      {"presence_penalty", [&](Ask& a) { a.presence_penalty = infinite; }},
      {"frequency_penalty", [&](Ask& a) { a.frequency_penalty = -1e9f; }},
      {"no_repeat_ngram_size", [&](Ask& a) { a.no_repeat_ngram = -1; }},
      {"logit_bias", [&](Ask& a) { a.logit_bias = {{100000, 1}}; }},
      {"logit_bias", [&](Ask& a) { a.logit_bias = {{1, nan}}; }},
      {"allowed_token_ids", [&](Ask& a) { a.allowed_ids = {100000}; }},
      {"logprobs", [&](Ask& a) { a.logprobs = -1; }},
      {"logprobs", [&](Ask& a) { a.logprobs = 1000; }},
      {"max_tokens", [&](Ask& a) { a.max_tokens = 0; }},
      {"max_tokens", [&](Ask& a) { a.max_tokens = -5; }},
      {"max_tokens", [&](Ask& a) { a.max_tokens = INT32_MAX; }},
      {"min_tokens", [&](Ask& a) { a.min_tokens = -1; }},
      {"min_tokens", [&](Ask& a) { a.min_tokens = 11; }},
      {"stop_strings", [&](Ask& a) { a.stop_strings = {""}; }},
      {"stop_strings", [&](Ask& a) { a.stop_strings.assign(1000, "x"); }},
      {"stop_strings", [&](Ask& a) { a.stop_strings = {std::string(100000, 'x')}; }},
      {"stop_token_ids", [&](Ask& a) { a.stop_ids = {100000}; }},
      {"token_ids",
       [&](Ask& a) {
         a.input = std::vector<int32_t>{1, -2};
       }},
      {"token_ids",
       [&](Ask& a) {
         a.input = std::vector<int32_t>{1, s.text.vocab};
       }},
      {"input", [&](Ask& a) { a.input = std::vector<int32_t>{}; }},
      {"input", [&](Ask& a) { a.input = std::monostate(); }},
      {"input", [&](Ask& a) { a.input = std::vector<int32_t>(512, 1); }},
      {"resume", [&](Ask& a) { a.resume = {-1}; }},
      {"resume", [&](Ask& a) { a.resume.assign(10, 1); }},
      {"request_id", [&](Ask& a) { a.request_id = "new\nline"; }},
      {"request_id", [&](Ask& a) { a.request_id = std::string(300, 'a'); }},
      {"tenant", [&](Ask& a) { a.tenant = "\x01"; }},
      {"chat",
       [&](Ask& a) {
         a.input = ChatInput{R"([{"role":"user","content":"hi"}])", ""};
       },
       Code::failed_precondition},
      {"model", [&](Ask& a) { a.model = "another"; }, Code::not_found},
  };
  for (const Case& c : cases) {
    Ask ask = ask_text("fine", 10);
    c.spoil(ask);
    std::string message;
    EXPECT_EQ(s.refusal(ask, &message), c.code) << c.field << ": " << message;
    EXPECT_THAT(message, HasSubstr(c.field));
  }
  EXPECT_EQ(s.hear(ask_text("fine", 10)).end.completion_tokens, 10);
  EXPECT_TRUE(s.idle());
}

TEST(Generate, RefusedWhileLoadingThenServed) {
  Served s(toy_engine(), {.load_time = std::chrono::milliseconds(300)});
  EXPECT_EQ(s.refusal(ask_text("early", 3)), Code::unavailable);
  EXPECT_FALSE(s.client().healthy());
  s.engine.start();
  EXPECT_EQ(s.hear(ask_text("patient", 3)).end.completion_tokens, 3);  // by retries
  EXPECT_TRUE(s.client().healthy());
  EXPECT_TRUE(s.client().healthy("model/toy"));
  EXPECT_TRUE(s.client().healthy("stage/0"));
  EXPECT_THROW(s.client().healthy("stage/1"), Error);
}

TEST(Generate, LostStageEndsStreamsWithUnavailable) {
  std::atomic<bool> fail{false};
  FakeGroupOptions options = slow_steps(2);
  options.fate = [&](uint32_t, uint64_t) { return fail.exchange(false) ? FakeGroupOptions::Fate::fails : FakeGroupOptions::Fate::fine; };
  Served s(toy_engine(), options);
  s.start();
  try {
    int deltas = 0;
    s.client().generate(ask_text("unlucky", 400), [&](const AnswerDelta&) {
      if (++deltas == 3) fail = true;
    });
    ADD_FAILURE() << "ended well";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::unavailable);
  }
  EXPECT_EQ(s.hear(ask_text("next epoch", 4)).end.completion_tokens, 4);
  EXPECT_EQ(s.engine.epoch(), 2u);
}

TEST(Control, Tells) {
  Served s(toy_engine(), slow_steps(5), {}, {.version = "9.9", .build = "b"});
  s.start();
  Client client = s.client();
  EXPECT_EQ(client.state(), "serving");
  const ServedModel model = client.model();
  EXPECT_EQ(model.name, "toy");
  EXPECT_EQ(model.context, 512);
  EXPECT_EQ(model.vocab, s.text.vocab);
  EXPECT_TRUE(model.text);
  EXPECT_FALSE(model.chat);
  const ServedTopology topology = client.topology();
  EXPECT_EQ(topology.epoch, 1u);
  ASSERT_EQ(topology.ranks.size(), 1u);
  EXPECT_EQ(topology.ranks[0].host, "here");

  Ask ask = ask_text("long", 400);
  ask.request_id = "a";
  std::optional<Code> ended;
  std::jthread running([&] { ended = s.refusal(ask); });
  while (client.load().running == 0) std::this_thread::yield();
  EXPECT_LT(client.load().kv_pages_free, client.load().kv_pages_total);
  EXPECT_THAT(client.abort({"a", "b"}), ::testing::ElementsAre(true, false));
  running.join();
  EXPECT_EQ(ended, Code::aborted);
  EXPECT_TRUE(s.idle());
}

TEST(Tokens, ThereAndBack) {
  Served s;
  s.start();
  Client client = s.client();
  const std::string text = "Größe, 日本 and ðŸ";
  const Tokens tokens = client.tokenize(ask_text(text, 1));
  EXPECT_THAT(tokens.ids, ElementsAreArray(toy_tokenizer().encode(text, true)));
  EXPECT_EQ(tokens.pieces.size(), tokens.ids.size());
  EXPECT_EQ(client.count_tokens(ask_text(text, 1)), static_cast<int32_t>(tokens.ids.size()));
  EXPECT_EQ(client.detokenize(tokens.ids, true), text);
  EXPECT_THROW(client.detokenize({s.text.vocab}), Error);
}

TEST(Server, DrainLetsRunningAnswersEnd) {
  Served s(toy_engine(), slow_steps(5));
  s.start();
  std::optional<AnswerEnd> end;
  std::jthread running([&] { end = s.hear(ask_text("finish me", 60)).end; });
  while (s.engine.load().running == 0) std::this_thread::yield();
  Client late = s.client(false);
  EXPECT_EQ(late.state(), "serving");  // is connected
  s.engine.drain();
  std::jthread stopping([&] { s.server->stop(20 * kSlowFactor); });
  const auto refused = [&] {
    try {
      late.generate(ask_text("too late", 3), {});
    } catch (const Error& error) {
      return error.code;
    }
    return Code::internal;
  };
  EXPECT_EQ(refused(), Code::unavailable);
  running.join();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->completion_tokens, 60);
  stopping.join();
  EXPECT_TRUE(s.engine.wait_for(EngineState::stopped, limit(5000)));
}

TEST(Server, StopCutsWhatTakesTooLong) {
  Served s(toy_engine(), slow_steps(10));
  s.start();
  std::optional<Code> ended;
  std::jthread running([&] { ended = s.refusal(ask_text("endless", 500)); });
  while (s.engine.load().running == 0) std::this_thread::yield();
  const auto began = Clock::now();
  s.server->stop(0.1);
  EXPECT_LT(std::chrono::duration<double>(Clock::now() - began).count(), 2 * kSlowFactor);
  running.join();
  EXPECT_TRUE(ended);
}

TEST(Server, PortInUseIsAnError) {
  Served s;
  try {
    ServerOptions options;
    options.listen = s.server->address();
    const Server second(options, s.engine, s.text, {});
    ADD_FAILURE() << "took the port";
  } catch (const Error& error) {
    EXPECT_EQ(error.where, "--listen");
    EXPECT_THAT(error.message, HasSubstr("in use"));
  }
  for (const char* bad : {"", "8001", "localhost", "localhost:", "localhost:70000", "localhost:80x", ":80", "no.such.host.invalid:80"}) {
    ServerOptions options;
    options.listen = bad;
    EXPECT_THROW(Server(options, s.engine, s.text, {}), Error) << bad;
  }
}

TEST(Client, NobodyListens) {
  std::string address;
  {
    Served s;
    address = s.server->address();
  }
  const auto began = Clock::now();
  try {
    Client(address).model();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::unavailable);
  }
  EXPECT_LT(std::chrono::duration<double>(Clock::now() - began).count(), 2 * kSlowFactor);
}

// Everything at once: each answer has exactly one end, the right one, and every text is what the model says.
TEST(Server, ManyClientsOfEveryKind) {
  EngineOptions options = toy_engine();
  options.max_queue = 128;
  options.groups = 2;
  Served s(options, {.step_time = std::chrono::microseconds(500)});
  s.start();
  const uint32_t seed = 20240;
  std::atomic<int> whole{0}, cancelled{0}, late{0};
  std::vector<std::jthread> threads;
  for (uint32_t i = 0; i < 64; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937 random(seed + i);
      for (int round = 0; round < 3; ++round) {
        Ask ask = ask_text("client " + std::to_string(i) + " round " + std::to_string(round), 1 + static_cast<int32_t>(random() % 120));
        ask.stream = random() % 4 != 0;
        const uint32_t kind = random() % 4;
        const double deadline = kind == 1 ? 0.001 + (random() % 50) * 0.001 : 60 * kSlowFactor;
        const int cancel_at = kind == 2 ? static_cast<int>(random() % 20) : -1;
        // With 64 that connect at once one attempt may fail, as with the listening queue full: that is not what is judged here.
        Client client(s.server->address(), {.connect_seconds = 10 * kSlowFactor});
        Client::Call call;
        std::vector<int32_t> ids;
        std::string text;
        int deltas = 0;
        const auto take = [&](const AnswerDelta& delta) {
          ids.insert(ids.end(), delta.token_ids.begin(), delta.token_ids.end());
          text += delta.text;
          if (deltas++ == cancel_at) call.cancel();
        };
        const auto expected = s.expected(ask);
        try {
          client.generate(ask, take, deadline, &call);
          EXPECT_EQ(ids, expected) << "seed " << seed + i;
          EXPECT_EQ(text, toy_tokenizer().decode(expected, true));
          ++whole;
        } catch (const Error& error) {
          EXPECT_TRUE((error.code == Code::deadline_exceeded && kind == 1) || (error.code == Code::cancelled && kind == 2)) << error.what();
          ASSERT_LE(ids.size(), expected.size());
          EXPECT_TRUE(std::equal(ids.begin(), ids.end(), expected.begin()));
          ++(error.code == Code::cancelled ? cancelled : late);
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(whole + cancelled + late, 64 * 3);
  EXPECT_GT(whole, 64);
  EXPECT_TRUE(s.idle());
}

}  // namespace
}  // namespace tandem
