// A whole server in this process: fake workers, engine, toy tokenizer, port 0. What the model says is known beforehand
// (SimulatedWorkers::alone), so every text can be judged.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "rpc/client.h"
#include "rpc/prepare.h"
#include "rpc/server.h"
#include "rpc/slow_factor.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "tests/support/fake_group.h"

namespace tandem {

inline std::string read_fixture(const std::string& path) {
  std::ifstream file(std::string(TANDEM_FIXTURES) + "/" + path);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

inline const Tokenizer& toy_tokenizer() {
  static const auto tokenizer =
      Tokenizer::from_json(read_fixture("tokenizer/tokenizer.json"), read_fixture("tokenizer/tokenizer_config.json"), "tokenizer.json");
  return *tokenizer;
}

inline TextSide toy_text(int32_t context) {
  TextSide text;
  text.tokenizer = &toy_tokenizer();
  text.vocab = toy_tokenizer().size();
  text.context = context;
  text.model = "toy";
  text.compute = "fp32";
  return text;
}

inline EngineOptions toy_engine() {
  EngineOptions o;
  o.max_batch = 8;
  o.chunk = 64;
  o.max_queue = 64;
  o.page_tokens = 16;
  o.context = 512;
  o.kv_pages = {512};
  o.vocab = toy_tokenizer().size();
  o.restart_seconds = 0.05;
  return o;
}

inline Ask ask_text(std::string text, int32_t max_tokens) {
  Ask ask;
  ask.input = std::move(text);
  ask.max_tokens = max_tokens;
  return ask;
}

struct Heard {  // one answer, put together
  AnswerEnd end;
  std::string text;
  std::vector<int32_t> ids;
  std::vector<TokenLogprob> logprobs;
  std::vector<std::string> pieces;
};

struct Served {
  explicit Served(EngineOptions engine_options = toy_engine(), FakeGroupOptions group_options = {}, ServerOptions server_options = {},
                  ServerInfo info = {})
      : text(toy_text(engine_options.context)),
        options(engine_options),
        group(engine_options, with_time(std::move(group_options))),
        engine(engine_options, group) {
    server_options.listen = "127.0.0.1:0";
    server = std::make_unique<Server>(std::move(server_options), engine, text, std::move(info));
    engine.on_state(server->follower());
  }
  ~Served() {
    server.reset();
    EXPECT_EQ(group.violation(), std::nullopt);
  }
  Served& start() {
    engine.start();
    EXPECT_TRUE(engine.wait_for(EngineState::serving, limit(20000)));
    return *this;
  }
  static FakeGroupOptions with_time(FakeGroupOptions options) {
    options.thorough = false;  // long answers would take quadratic time
    return options;
  }

  Client client(bool retry = true) const { return Client(server->address(), {.retry = retry}); }

  Heard hear(const Ask& ask, double deadline = 0, bool retry = true) const {
    Heard heard;
    heard.end = client(retry).generate(
        ask,
        [&](const AnswerDelta& delta) {
          heard.text += delta.text;
          heard.pieces.push_back(delta.text);
          heard.ids.insert(heard.ids.end(), delta.token_ids.begin(), delta.token_ids.end());
          heard.logprobs.insert(heard.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
        },
        deadline);
    return heard;
  }
  Code refusal(const Ask& ask, std::string* message = nullptr, bool retry = false) const {
    try {
      hear(ask, 20 * kSlowFactor, retry);
    } catch (const Error& error) {
      if (message != nullptr) *message = error.what();
      return error.code;
    }
    ADD_FAILURE() << "was accepted";
    return Code::internal;
  }
  std::vector<int32_t> expected(const Ask& ask) const {
    return SimulatedWorkers::alone(prepare(ask, text).request, options.context, options.vocab);
  }
  bool idle(double seconds = 10 * kSlowFactor) const {  // nothing runs, nothing waits, all pages but cached ones are free
    for (const auto until = Clock::now() + std::chrono::duration<double>(seconds); Clock::now() < until;) {
      const Load load = engine.load();
      if (load.running == 0 && load.waiting == 0 && server->open_calls() == 0) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return false;
  }

  TextSide text;
  EngineOptions options;
  FakeGroup group;
  Engine engine;
  std::unique_ptr<Server> server;
};

inline FakeGroupOptions slow_steps(int ms) { return {.step_time = std::chrono::milliseconds(ms)}; }

}  // namespace tandem
