// Small tokenizers in the style of each family, from every kind of file, against transformers (tests/fixtures/tokenizers, written by
// make_tokenizers.py).
#include <gmock/gmock.h>

#include <sstream>

#include "kernels/base/error.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"
#include "tests/runtime/text/fixture_files.h"

namespace tandem {
namespace {

enum class From { json, sentencepiece, vocabulary };
struct Family {
  const char* name;
  From from;
};

std::unique_ptr<Tokenizer> open(const Family& family) {
  const std::string folder = fixture(std::string("tokenizers/") + family.name + "/");
  const std::string config = read_file(folder + "tokenizer_config.json");
  switch (family.from) {
    case From::json:
      return Tokenizer::from_json(read_file(folder + "tokenizer.json"), {}, folder + "tokenizer.json");
    case From::sentencepiece:
      return Tokenizer::from_sentencepiece(read_file(folder + "tokenizer.model"), config, folder + "tokenizer.model");
    case From::vocabulary:
      return Tokenizer::from_vocabulary(read_file(folder + "vocab.json"), read_file(folder + "merges.txt"), config, folder + "vocab.json");
  }
  return nullptr;
}

class EveryFamily : public testing::TestWithParam<Family> {};

TEST_P(EveryFamily, EncodesAndDecodesAsTransformersDoes) {
  const auto tokenizer = open(GetParam());
  // Other texts than the committed ones: TANDEM_TOKENIZER_CASES names a folder that `make_tokenizers.py fuzz` has written.
  const char* other = std::getenv("TANDEM_TOKENIZER_CASES");
  std::istringstream lines(read_file(other ? std::string(other) + "/" + GetParam().name + ".jsonl" : fixture(std::string("tokenizers/") + GetParam().name + "/cases.jsonl")));
  int seen = 0;
  for (std::string line; std::getline(lines, line); ++seen) {
    const auto row = nlohmann::json::parse(line);
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    SCOPED_TRACE(line.substr(0, 600));
    ASSERT_EQ(tokenizer->encode(row["text"].get<std::string>(), true), ids);
    ASSERT_EQ(tokenizer->encode(row["text"].get<std::string>(), false), row.contains("ids_no_special") ? row["ids_no_special"].get<std::vector<int32_t>>() : ids);
    ASSERT_EQ(tokenizer->decode(ids, false), row["decoded"]);
    ASSERT_EQ(tokenizer->decode(ids, true), row["decoded_skip"]);
    Detokenizer detokenizer(*tokenizer);
    std::string joined;
    for (const int32_t id : ids) joined += detokenizer.feed(id);
    ASSERT_EQ(joined + detokenizer.flush(), row["decoded_skip"]);
  }
  EXPECT_GE(seen, 90);
}

TEST_P(EveryFamily, TakesLinearTime) {
  const auto tokenizer = open(GetParam());
  for (const char* letter : {"a", " ", "\n", "\xE4\xBD\xA0", "\xCC\x81", "\xE2\x96\x81"}) {
    std::string text;
    while (text.size() < (1 << 20)) text += letter;
    const double start = thread_milliseconds();
    const auto ids = tokenizer->encode(text, false);
    const double took = thread_milliseconds() - start;
    EXPECT_LT(took, 1000 * TANDEM_SLOW_FACTOR) << "1 MiB of " << letter << " became " << ids.size() << " ids";
    RecordProperty(std::string("ms_") + std::to_string(static_cast<uint8_t>(*letter)), std::to_string(took));
  }
}

INSTANTIATE_TEST_SUITE_P(Json, EveryFamily,
                         testing::Values(Family{"llama2", From::json}, Family{"llama2-first", From::json}, Family{"phi3", From::json}, Family{"gemma", From::json},
                                         Family{"unigram", From::json}, Family{"unigram-bytes", From::json}, Family{"spm-bpe", From::json}));
INSTANTIATE_TEST_SUITE_P(SentencePiece, EveryFamily,
                         testing::Values(Family{"llama2", From::sentencepiece}, Family{"llama2-first", From::sentencepiece}, Family{"gemma", From::sentencepiece},
                                         Family{"unigram", From::sentencepiece}, Family{"spm-bpe", From::sentencepiece}));
INSTANTIATE_TEST_SUITE_P(VocabularyAndMerges, EveryFamily, testing::Values(Family{"opt", From::vocabulary}));

// A damaged file is refused in one line or read; nothing else happens.
TEST(SentencePieceFile, DamagedFilesAreRefused) {
  const std::string whole = read_file(fixture("tokenizers/unigram/tokenizer.model"));
  const auto attempt = [](const std::string& bytes) {
    try {
      Tokenizer::from_sentencepiece(bytes, {}, "tokenizer.model")->encode("Hello \xEF\xAC\x81 \xE4\xBD\xA0", true);
      return std::string();
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  EXPECT_EQ(attempt(whole), "");
  EXPECT_THAT(attempt(""), testing::HasSubstr("is not a SentencePiece model"));
  EXPECT_THAT(attempt("{\"model\": 1}"), testing::HasSubstr("is not a SentencePiece model"));
  int refused = 0;
  for (size_t length = 1; length < whole.size(); length += 97) refused += attempt(whole.substr(0, length)) != "";
  EXPECT_GT(refused, 20);
  uint32_t state = 1;
  for (int i = 0; i < 300; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 3; ++k) {
      state = state * 1664525 + 1013904223;
      bytes[(state >> 8) % bytes.size()] = static_cast<char>(state);
    }
    const std::string error = attempt(bytes);
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
}

TEST(Unigram, RefusesWhatItCannotDo) {
  const auto open_text = [](const std::string& model) {
    return Tokenizer::from_json("{\"model\": " + model + "}", {}, "tokenizer.json");
  };
  const auto what = [&](const std::string& model) {
    try {
      open_text(model)->encode("ab\xE4\xBD\xA0", false);
      return std::string();
    } catch (const Error& error) {
      return error.where + ": " + error.what();
    }
  };
  EXPECT_EQ(what(R"({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -1.5], ["ab", -1]]})"), "");
  EXPECT_THAT(what(R"({"type": "Unigram", "vocab": [["a", -1]]})"), testing::HasSubstr("no unknown token"));
  EXPECT_THAT(what(R"({"type": "Unigram", "vocab": [["a", -1], ["b"]]})"), testing::HasSubstr("model.vocab[1] is not a piece and its score"));
  EXPECT_THAT(what(R"({"type": "Unigram", "unk_id": 7, "vocab": [["a", -1]]})"), testing::HasSubstr("unk_id"));
  EXPECT_THAT(what(R"({"type": "Unigram", "vocab": [[["a"], -1]]})"), testing::HasSubstr("model.vocab[0]"));
  EXPECT_THAT(what(R"({"type": "WordPiece", "vocab": {"a": 1}})"), testing::HasSubstr("is WordPiece (BPE, Unigram)"));
  EXPECT_THAT(what("{\"type\": \"Unigram\", \"vocab\": [[\"" + std::string(2000, 'a') + "\", -1]]}"), testing::HasSubstr("has 2000 bytes"));
}

}  // namespace
}  // namespace tandem
