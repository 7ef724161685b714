#include "runtime/text/tokenizer.h"

#include <gmock/gmock.h>

#include <thread>

#include "runtime/text/detokenizer.h"
#include "tests/runtime/text/fixture_files.h"

namespace tandem {
namespace {

// One of the two tokenizers that Hugging Face's library judged.
struct Judged {
  const char* name;
  std::unique_ptr<Tokenizer> (*make)();
};

class JudgedTokenizer : public testing::TestWithParam<Judged> {
 protected:
  void SetUp() override {
    tokenizer_ = GetParam().make();
    if (!tokenizer_) GTEST_SKIP() << "no " << smollm2_path();
    expected_ = read_json(fixture(std::string("text/") + GetParam().name + ".json"));
  }
  std::unique_ptr<Tokenizer> tokenizer_;
  nlohmann::ordered_json expected_;
};

TEST_P(JudgedTokenizer, EncodesAndDecodesAsHuggingFaceDoes) {
  for (const auto& row : expected_["cases"]) {
    const std::string text = row.contains("hex") ? from_hex(row["hex"]) : row["text"].get<std::string>();
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    SCOPED_TRACE(row.dump().substr(0, 300));
    EXPECT_EQ(tokenizer_->encode(text, true), ids);
    EXPECT_EQ(tokenizer_->encode(text, false), row.contains("ids_no_special") ? row["ids_no_special"].get<std::vector<int32_t>>() : ids);
    EXPECT_EQ(tokenizer_->decode(ids, false), row["decoded"]);
    EXPECT_EQ(tokenizer_->decode(ids, true), row["decoded_skip"]);
  }
  EXPECT_GE(expected_["cases"].size(), 150u);
}

TEST_P(JudgedTokenizer, DecodesAnyIds) {
  for (const auto& row : expected_["decode"]) {
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer_->decode(ids, false), row["decoded"]);
    EXPECT_EQ(tokenizer_->decode(ids, true), row["decoded_skip"]);
    Detokenizer detokenizer(*tokenizer_);
    std::string joined;
    for (const int32_t id : ids) joined += detokenizer.feed(id);
    EXPECT_EQ(joined + detokenizer.flush(), row["decoded_skip"]);
  }
}

TEST_P(JudgedTokenizer, StreamsPrefixesOfTheWhole) {
  for (const auto& row : expected_["streams"]) {
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    Detokenizer detokenizer(*tokenizer_, false);
    std::string shown;
    for (size_t i = 0; i < ids.size(); ++i) {
      shown += detokenizer.feed(ids[i]);
      EXPECT_EQ(tokenizer_->decode(std::span(ids).first(i), false), row["prefixes"][i]);
      const std::string now = tokenizer_->decode(std::span(ids).first(i + 1), false);
      EXPECT_TRUE(now.starts_with(shown)) << shown << " | " << now;
    }
    EXPECT_EQ(shown + detokenizer.flush(), tokenizer_->decode(ids, false));
  }
}

INSTANTIATE_TEST_SUITE_P(HuggingFace, JudgedTokenizer,
                         testing::Values(Judged{"tiny", tiny_tokenizer}, Judged{"smollm2", smollm2_tokenizer}),
                         [](const auto& info) { return info.param.name; });

TEST(Tokenizer, KnowsItsTokens) {
  const auto tokenizer = tiny_tokenizer();
  EXPECT_EQ(tokenizer->size(), 509);
  EXPECT_EQ(tokenizer->bos(), 495);
  EXPECT_TRUE(tokenizer->is_special(495));
  EXPECT_FALSE(tokenizer->is_special(503));
  EXPECT_EQ(tokenizer->find("<tool>"), 503);
  EXPECT_EQ(tokenizer->find("no such piece"), std::nullopt);
  EXPECT_EQ(tokenizer->piece(220), "\xC4\xA0");
  EXPECT_EQ(tokenizer->token_bytes(220), " ");
  EXPECT_EQ(tokenizer->token_bytes(503), "<tool>");
  for (const int32_t id : {-1, 509, INT32_MAX, INT32_MIN}) {
    EXPECT_FALSE(tokenizer->has(id));
    EXPECT_FALSE(tokenizer->is_special(id));
    EXPECT_EQ(tokenizer->piece(id), "");
    EXPECT_EQ(tokenizer->token_bytes(id), "");
    EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{id}, false), "");
  }
}

TEST(Tokenizer, TokenBytesJoinToTheText) {
  const auto tokenizer = tiny_tokenizer();
  const std::string text = "naïve 你好 \xF0\x9F\xA6\x99 x\n\n  y";
  std::string joined;
  for (const int32_t id : tokenizer->encode(text, false)) joined += tokenizer->token_bytes(id);
  EXPECT_EQ(joined, text);
}

TEST(Tokenizer, ManyThreadsShareOne) {
  const auto tokenizer = tiny_tokenizer();
  const std::string text = read_file(fixture("README.md"));
  const auto expected = tokenizer->encode(text, true);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) EXPECT_EQ(tokenizer->encode(text, true), expected);
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST(Tokenizer, Phi3TurnTokensFromGgufSwallowSpaces) {
  GgufVocabulary vocabulary{.tokens = {"<unk>", "<s>", "</s>", "\xE2\x96\x81", "a", "<|user|>", "<|endoftext|>"}, .types = {2, 3, 3, 1, 1, 3, 3}, .scores = {0, 0, 0, -1, -2, 0, 0}, .model = "llama", .bos = 1, .add_bos = false, .add_space_prefix = false};
  for (const std::string architecture : {"phi3", "llama"}) {
    vocabulary.architecture = architecture;
    const auto tokenizer = Tokenizer::from_gguf(vocabulary, "x.gguf");
    EXPECT_EQ(tokenizer->encode("<|user|> a", false), architecture == "phi3" ? (std::vector<int32_t>{5, 4}) : (std::vector<int32_t>{5, 3, 4}));
    EXPECT_EQ(tokenizer->encode("<|endoftext|> a", false), (std::vector<int32_t>{6, 3, 4}));
  }
}

TEST(Tokenizer, GuardedTextIsNoSpecialToken) {
  const std::string guard = "\xEF\xB7\x90";
  const auto tokenizer = tiny_tokenizer();
  const std::string special = tokenizer->piece(*tokenizer->bos());
  const std::string text = "a" + special + "b<" + special + special.substr(1) + " <tool>";
  const std::string guarded = tokenizer->guarded(text, guard);
  const auto ids = tokenizer->encode(special + guarded, false, guard);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *tokenizer->bos()), 1) << "the template's own one";
  EXPECT_EQ(ids[0], *tokenizer->bos());
  EXPECT_EQ(tokenizer->decode(ids, false), special + text) << "and nothing is lost";
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *tokenizer->find("<tool>")), 1) << "which is not special";
  EXPECT_EQ(tokenizer->guarded("nothing here", guard), "nothing here");
}

TEST(Tokenizer, TakesLinearTime) {
  for (const auto& tokenizer : {tiny_tokenizer(), smollm2_tokenizer()}) {
    if (!tokenizer) continue;
    for (const char letter : {'a', ' ', '!', '\n', '\xFF'}) {
      const double start = thread_milliseconds();
      const std::string text(1 << 20, letter);
      const auto ids = tokenizer->encode(text, false);
      const double took = thread_milliseconds() - start;
      EXPECT_LT(took, 1000 * TANDEM_SLOW_FACTOR) << "1 MiB of " << static_cast<int>(letter) << " became " << ids.size() << " ids";
      if (letter != '\xFF') {
        EXPECT_EQ(tokenizer->decode(ids, false), text);
      }
    }
  }
}

TEST(Tokenizer, StartsAndEncodesFast) {
  if (!smollm2_tokenizer()) GTEST_SKIP() << "no " << smollm2_path();
  double construct = 1e9, encode = 1e9;
  for (int i = 0; i < 5; ++i) {
    GgufVocabulary vocabulary = read_gguf_vocabulary(smollm2_path());
    double start = thread_milliseconds();
    const auto tokenizer = Tokenizer::from_gguf(std::move(vocabulary), "SmolLM2.gguf");
    construct = std::min(construct, thread_milliseconds() - start);
    const std::string text = read_file(fixture("README.md")).substr(0, 2000);
    start = thread_milliseconds();
    const auto ids = tokenizer->encode(text, true);
    encode = std::min(encode, thread_milliseconds() - start);
    EXPECT_GT(ids.size(), 400u);
  }
  RecordProperty("construct_ms", std::to_string(construct));
  RecordProperty("encode_2000_characters_ms", std::to_string(encode));
  EXPECT_LT(construct, 40 * TANDEM_SLOW_FACTOR);
  EXPECT_LT(encode, 1 * TANDEM_SLOW_FACTOR);
}

}  // namespace
}  // namespace tandem
