// Files that are wrong: one Error each that names the file, never a crash.
#include <gmock/gmock.h>

#include <random>

#include "kernels/base/error.h"
#include "runtime/text/tokenizer.h"
#include "tests/runtime/text/fixture_files.h"

namespace tandem {
namespace {

using testing::HasSubstr;

std::string refusal(std::string_view json, std::string_view config = {}) {
  try {
    Tokenizer::from_json(json, config, "dir/tokenizer.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    EXPECT_THAT(error.where, HasSubstr("dir/tokenizer"));
    return error.what();
  }
  return "";
}

std::string with(const std::string& member) {
  return R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]},)" + member + "}";
}

TEST(MalformedTokenizer, IsRefusedByName) {
  const std::pair<std::string, std::string> rows[] = {
      {"", "not JSON"},
      {"[", "not JSON"},
      {"[]", "top level"},
      {"{}", "model"},
      {R"({"model":5})", "model"},
      {R"({"model":{"type":"Unigram","vocab":[]}})", "vocab list"},
      {R"({"model":{"type":"WordPiece","vocab":{}}})", "WordPiece"},
      {R"({"model":{"type":"BPE","merges":[]}})", "vocab"},
      {R"({"model":{"type":"BPE","vocab":{}}})", "merges"},
      {R"({"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}})", "-1"},
      {R"({"model":{"type":"BPE","vocab":{"a":1.5},"merges":[]}})", "something other"},
      {R"({"model":{"type":"BPE","vocab":{"a":"b"},"merges":[]}})", "something other"},
      {R"({"model":{"type":"BPE","vocab":{"a":{}},"merges":[]}})", "something other"},
      {R"({"model":{"type":"BPE","vocab":{"a":[]},"merges":[]}})", "something other"},
      {R"({"model":{"type":"BPE","vocab":{"a":99999999999999999999999},"merges":[]}})", "something other"},
      {R"({"model":{"type":"BPE","vocab":{"a":4294967296},"merges":[]}})", "2147483648"},
      {R"({"model":{"type":"BPE","vocab":{"a":2147483647},"merges":[]}})", "2147483647"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}})", "merges[0] names b"},
      {R"({"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}})", "merges[0] names ab"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":["a"]}})", "merges[0]"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":["a b c"]}})", "merges[0]"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[["a"]]}})", "merges[0]"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[["a","b","c"]]}})", "merges[0]"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[5]}})", "merges[0]"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[[["a"]]]}})", "merges[0]"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[{}]}})", "merges[0]"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[],"unk_token":"?"}})", "unk_token"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[],"dropout":0.1}})", "dropout"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[],"byte_fallback":"yes"}})", "byte_fallback"},
      {with(R"("pre_tokenizer":{"type":"Telepathy"})"), "Telepathy"},
      {with(R"("pre_tokenizer":{})"), "type"},
      {with(R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated"})"), "regular expression"},
      {with(R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"a"},"behavior":"Sideways"})"), "Sideways"},
      {with(R"("pre_tokenizer":{"type":"Split","pattern":{},"behavior":"Isolated"})"), "String"},
      {with(R"("pre_tokenizer":{"type":"Metaspace","replacement":"ab"})"), "one character"},
      {with(R"("pre_tokenizer":{"type":"FixedLength","length":0})"), "length"},
      {with(R"("pre_tokenizer":{"type":"Sequence","pretokenizers":{}})"), "pretokenizers"},
      {with(R"("normalizer":{"type":"Precompiled"})"), "precompiled_charsmap"},
      {with(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAAAA=="})"), "cut short"},
      {with(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":"A?"})"), "base64"},
      {with(R"("normalizer":[])"), "normalizer"},
      {with(R"("decoder":{"type":"CTC"})"), "CTC"},
      {with(R"("decoder":{"type":"Replace","pattern":{"String":""},"content":""})"), "empty"},
      {with(R"("decoder":{"type":"Strip","content":"","start":0,"stop":0})"), "one character"},
      {with(R"("decoder":{"type":"Strip","content":" ","start":-1,"stop":0})"), "start"},
      {with(R"("post_processor":{"type":"Mystery"})"), "Mystery"},
      {with(
           R"("post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A"}},{"SpecialToken":{"id":"x"}}],"special_tokens":{}})"),
       "x"},
      {with(
           R"("post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A"}},{"SpecialToken":{"id":"x"}}],"special_tokens":{"x":{"ids":[77]}}})"),
       "77"},
      {with(R"("post_processor":{"type":"TemplateProcessing","single":[],"special_tokens":{}})"), "single"},
      {with(R"("post_processor":{"type":"BertProcessing","sep":["a",0],"cls":["a"]})"), "cls"},
      {with(R"("added_tokens":[{"id":1e9,"content":"x"}])"), "id"},
      {with(R"("added_tokens":[{"id":1000000000,"content":"x"}])"), "1000000000"},
      {with(R"("added_tokens":[{"id":-3,"content":"x"}])"), "-3"},
      {with(R"("added_tokens":[{"content":"x"}])"), "id"},
      {with(R"("added_tokens":[{"id":3}])"), "content"},
      {with(R"("added_tokens":[5])"), "added_tokens[0]"},
      {with(R"("added_tokens":{})"), "added_tokens"},
      {with("\"x\":" + std::string(100, '[') + std::string(100, ']')), "64 levels"},
      {with("\"x\":" + std::string(100000, '[')), "64 levels"},
  };
  for (const auto& [json, expected] : rows) EXPECT_THAT(refusal(json), HasSubstr(expected)) << json.substr(0, 200);
  EXPECT_EQ(refusal(with(R"("added_tokens":[{"id":3,"content":""},{"id":4,"content":"x"},{"id":4,"content":"y"},{"id":9,"content":"a"}])")),
            "");
}

TEST(MalformedTokenizer, ConfigIsRefusedByName) {
  const std::pair<std::string, std::string> rows[] = {
      {"{", "not JSON"},
      {"5", "not an object"},
      {R"({"bos_token":5})", "bos_token"},
      {R"({"bos_token":{}})", "content"},
      {R"({"added_tokens_decoder":[]})", "added_tokens_decoder"},
      {R"({"added_tokens_decoder":{"x":{"content":"y"}}})", "added_tokens_decoder.x"},
      {R"({"added_tokens_decoder":{"999999999":{"content":"y"}}})", "999999999"},
      {R"({"added_tokens_decoder":{"9999999999999999999":{"content":"y"}}})", "9999999999999999999"},
      {R"({"added_tokens_decoder":{"5":7}})", "added_tokens_decoder.5"},
      {R"({"additional_special_tokens":5})", "additional_special_tokens"},
      {R"({"add_bos_token":"no"})", "add_bos_token"},
      {std::string(200000, '['), "not JSON"},
  };
  for (const auto& [json, expected] : rows) {
    const std::string line = refusal(with(R"("normalizer":null)"), json);
    EXPECT_THAT(line, HasSubstr(expected)) << json.substr(0, 200);
    EXPECT_THAT(line, HasSubstr("dir/tokenizer_config.json"));
  }
}

TEST(MalformedTokenizer, ConfigAddsSpecialTokensAndTheirPlaces) {
  const auto tokenizer =
      Tokenizer::from_json(with(R"("decoder":{"type":"Fuse"})"),
                           R"({"bos_token":{"content":"<s>"},"eos_token":"b","add_bos_token":true,"add_eos_token":true})", "t");
  EXPECT_EQ(tokenizer->bos(), 3);
  EXPECT_EQ(tokenizer->eos(), 1);
  EXPECT_EQ(tokenizer->encode("aab", true), (std::vector<int32_t>{3, 0, 0, 1, 1}));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{3, 0, 2, 1}, true), "aab");
}

TEST(MalformedTokenizer, TruncatedAndDamagedFilesEndInAnErrorOrATokenizer) {
  const std::string good = read_file(fixture("tokenizer/tokenizer.json"));
  for (size_t length = 0; length < good.size(); length += 97) refusal(std::string_view(good).substr(0, length));
  const unsigned seed = 11;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    std::string bad = good;
    for (int k = 0; k < 3; ++k) bad[random() % bad.size()] = static_cast<char>(random());
    refusal(bad);
  }
}

TEST(MalformedGguf, IsRefusedByName) {
  auto line = [](const auto& change) {
    GgufVocabulary v;
    v.model = "gpt2";
    v.pre = "gpt-2";
    v.tokens = {"a", "b", "ab"};
    v.types = {1, 1, 1};
    v.merges = {"a b"};
    change(v);
    try {
      Tokenizer::from_gguf(std::move(v), "x.gguf");
    } catch (const Error& error) {
      EXPECT_EQ(error.where, "x.gguf");
      return std::string(error.what());
    }
    return std::string();
  };
  using V = GgufVocabulary;
  EXPECT_EQ(line([](V&) {}), "");
  EXPECT_THAT(line([](V& v) { v.tokens.clear(); }), HasSubstr("tokens is empty"));
  EXPECT_THAT(line([](V& v) { v.types.pop_back(); }), HasSubstr("token_type"));
  EXPECT_THAT(line([](V& v) { v.types[1] = 99; }), HasSubstr("token_type[1]"));
  EXPECT_THAT(line([](V& v) { v.model = "t5"; }), HasSubstr("t5"));
  EXPECT_THAT(line([](V& v) { v.pre = "martian"; }), HasSubstr("martian"));
  EXPECT_THAT(line([](V& v) { v.merges = {"ab"}; }), HasSubstr("merges[0]"));
  EXPECT_THAT(line([](V& v) { v.merges = {""}; }), HasSubstr("merges[0]"));
  EXPECT_THAT(line([](V& v) { v.merges = {"a c"}; }), HasSubstr("names c"));
  EXPECT_THAT(line([](V& v) { v.bos = 3; }), HasSubstr("bos_token_id is 3"));
  EXPECT_THAT(line([](V& v) { v.eos = -1; }), HasSubstr("eos_token_id is -1"));
  EXPECT_THAT(line([](V& v) { v.tokens[0] = "\xFF"; }), HasSubstr("tokens[0] is not UTF-8"));
  EXPECT_THAT(line([](V& v) { v.model = "llama"; }), HasSubstr("scores"));
  EXPECT_THAT(line([](V& v) { v.model = "llama", v.scores = {0, NAN, 0}; }), HasSubstr("scores[1]"));
  EXPECT_EQ(line([](V& v) { v.model = "llama", v.scores = {0, -INFINITY, 1e30f}; }), "");
}

TEST(GgufPreTokenizers, EveryNameOfTheTableCompiles) {
  for (const char* pre :
       {"gpt-2",        "smollm",         "llama-bpe", "dbrx",  "glm4",   "qwen2",      "qwen35",     "tekken",   "gpt-4o",  "deepseek-v3",
        "deepseek-llm", "deepseek-coder", "falcon",    "bloom", "viking", "seed-coder", "bailingmoe", "superbpe", "default", ""}) {
    GgufVocabulary v;
    v.model = "gpt2";
    v.pre = pre;
    for (int b = 33; b < 127; ++b) v.tokens.emplace_back(1, static_cast<char>(b));
    const auto tokenizer = Tokenizer::from_gguf(std::move(v), pre);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode("Abc1234,x", false), false), "Abc1234,x") << pre;
  }
}

}  // namespace
}  // namespace tandem
