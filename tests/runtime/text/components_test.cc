// Normalizers, pre-tokenizers and decoders, one by one, against the tokenizers library (components.json, written by make_cases.py).
#include <gmock/gmock.h>

#include "runtime/text/decoder.h"
#include "runtime/text/normalizer.h"
#include "runtime/text/pretokenizer.h"
#include "tests/runtime/text/fixture_files.h"

namespace tandem {
namespace {

const nlohmann::json& components() {
  static const nlohmann::json all = nlohmann::json::parse(read_file(std::string(TANDEM_FIXTURES) + "/../runtime/text/components.json"));
  return all;
}

TEST(PreTokenizer, CutsAsTheReferenceDoes) {
  int seen = 0;
  for (const auto& row : components()) {
    if (!row.contains("pre_tokenizer")) continue;
    const auto pre_tokenizer = make_pre_tokenizer(JsonField(row["pre_tokenizer"], "components.json", "pre_tokenizer"));
    for (const auto& example : row["cases"]) {
      ++seen;
      const std::string text = example[0];
      Words words;
      words.start(text, true);
      if (!text.empty()) pre_tokenizer->apply(words);
      std::vector<std::string> got;
      for (const Word& word : words.words) {
        if (!word.text.empty()) got.emplace_back(word.text);
      }
      EXPECT_EQ(got, example[1].get<std::vector<std::string>>()) << row["pre_tokenizer"] << " of " << example[0];
    }
  }
  EXPECT_GT(seen, 900);
}

TEST(Normalizer, ChangesAsTheReferenceDoes) {
  int seen = 0;
  for (const auto& row : components()) {
    if (!row.contains("normalizer")) continue;
    const auto normalizer = make_normalizer(JsonField(row["normalizer"], "components.json", "normalizer"));
    for (const auto& example : row["cases"]) {
      ++seen;
      std::string text = example[0];
      normalizer->apply(text);
      EXPECT_EQ(text, example[1]) << row["normalizer"] << " of " << example[0];
    }
  }
  EXPECT_GT(seen, 250);
}

// The reference's Unicode tables are older than ICU's: U+32FF and U+A7F4, of Unicode 12.1 and 14, stay; U+33FF and U+FB01 do not.
TEST(Normalizer, LeavesYoungerCharactersAlone) {
  const auto normalizer = make_unicode_normalizer("NFKC");
  std::string text = "\xE3\x8B\xBF\xEA\x9F\xB4\xE3\x8F\xBF\xEF\xAC\x81";
  normalizer->apply(text);
  EXPECT_EQ(text, "\xE3\x8B\xBF\xEA\x9F\xB4gal" "fi");
}

TEST(Decoder, JoinsAsTheReferenceDoes) {
  int seen = 0;
  for (const auto& row : components()) {
    if (!row.contains("decoder")) continue;
    Decoder decoder;
    add_decoder(JsonField(row["decoder"], "components.json", "decoder"), decoder);
    for (const auto& example : row["cases"]) {
      ++seen;
      DecoderStream stream = decoder.stream();
      std::string text;
      for (const auto& piece : example[0]) text += stream.feed(piece.get<std::string>());
      EXPECT_EQ(text + stream.flush(), example[1]) << row["decoder"] << " of " << example[0];
    }
  }
  EXPECT_GT(seen, 120);
}

}  // namespace
}  // namespace tandem
