#include "runtime/text/detokenizer.h"

#include <gmock/gmock.h>

#include <random>

#include "runtime/text/utf8.h"
#include "tests/runtime/text/fixture_files.h"

namespace tandem {
namespace {

// A vocabulary as Llama-2's: U+2581 for spaces and a piece for every byte.
std::unique_ptr<Tokenizer> sentence_piece_tokenizer() {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = {"<unk>", "<s>", "</s>"};
  vocabulary.types = {2, 3, 3};
  for (int b = 0; b < 256; ++b) {
    char piece[8];
    std::snprintf(piece, sizeof piece, "<0x%02X>", b);
    vocabulary.tokens.emplace_back(piece);
    vocabulary.types.push_back(6);
  }
  for (const char* piece : {"▁", "a", "b", "▁a", "ab", "▁ab", "é", "▁▁"}) {
    vocabulary.tokens.emplace_back(piece);
    vocabulary.types.push_back(1);
  }
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) vocabulary.scores.push_back(-static_cast<float>(i));
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  vocabulary.unknown = 0;
  return Tokenizer::from_gguf(std::move(vocabulary), "test.gguf");
}

TEST(Detokenizer, JoinedPiecesAreTheWhole) {
  const unsigned seed = 7;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (const auto& tokenizer : {tiny_tokenizer(), sentence_piece_tokenizer()}) {
    for (int round = 0; round < 3000; ++round) {
      std::vector<int32_t> ids;
      for (size_t i = random() % 12; i > 0; --i)
        ids.push_back(static_cast<int32_t>(random() % static_cast<unsigned>(tokenizer->size() + 3)) - 1);
      for (const bool skip : {true, false}) {
        Detokenizer detokenizer(*tokenizer, skip);
        std::string joined;
        for (const int32_t id : ids) {
          const std::string piece = detokenizer.feed(id);
          ASSERT_TRUE(is_valid_utf8(piece));
          joined += piece;
        }
        ASSERT_EQ(joined + detokenizer.flush(), tokenizer->decode(ids, skip));
      }
    }
  }
}

TEST(Detokenizer, ShowsTextAsSoonAsItIsCertain) {
  const auto tokenizer = sentence_piece_tokenizer();
  auto id = [&](const char* piece) { return *tokenizer->find(piece); };
  Detokenizer detokenizer(*tokenizer);
  EXPECT_EQ(detokenizer.feed(id("▁a")), "a");  // the first space is not the text's
  EXPECT_EQ(detokenizer.feed(id("▁a")), " a");
  EXPECT_EQ(detokenizer.feed(id("<0xC3>")), "");
  EXPECT_EQ(detokenizer.feed(id("<0xA9>")), "");  // the next byte could still spoil the run
  EXPECT_EQ(detokenizer.feed(id("b")), "éb");
  EXPECT_EQ(detokenizer.feed(id("</s>")), "");
  EXPECT_EQ(detokenizer.feed(id("<0xC3>")), "");
  EXPECT_EQ(detokenizer.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(tokenizer->encode("a é\xF0\x9F\xA6\x99", true),
            (std::vector<int32_t>{1, id("▁a"), id("▁"), id("é"), id("<0xF0>"), id("<0x9F>"), id("<0xA6>"), id("<0x99>")}));
  EXPECT_EQ(tokenizer->token_bytes(id("<0xF0>")), "\xF0");
  EXPECT_EQ(tokenizer->token_bytes(id("▁ab")), " ab");
}

}  // namespace
}  // namespace tandem
