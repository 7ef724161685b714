// Builds a Tokenizer from the vocabulary inside of a GGUF file. Such a file names its pre-tokenizer by a word (`pre`) instead of
// spelling it out: the table below says what the words stand for (the split patterns are those of the models' own tokenizer.json).
#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/base/error.h"
#include "runtime/text/gguf_tokenizer_json.h"
#include "runtime/text/regex.h"
#include "runtime/text/tokenizer_parts.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

constexpr std::string_view gpt2_split = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view llama3_split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view qwen2_split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view qwen35_split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view tekken_split =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view gpt4o_split =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view deepseek3_split =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view deepseek_llm_letters =
    R"(\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}\x{370}-\x{373})"
    R"(\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-)"
    R"(\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-)"
    R"(\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-)"
    R"(\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-)"
    R"(\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-)"
    R"(\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f})"
    R"(\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-)"
    R"(\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-)"
    R"(\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2})"
    R"(\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+)";
constexpr std::string_view bloom_split = R"( ?[^(\s|.,!?…。，、।۔،)]+)";
constexpr std::string_view digit = R"(\p{N})";

struct PreRow {
  std::vector<std::string_view> names;
  std::vector<std::string_view> splits;  // one after the other
  bool ignore_merges = false, nfc = false, add_bos = false;
};

const std::vector<PreRow>& pre_rows() {
  static const std::vector<PreRow> rows = {
      {{"gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "exaone4", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0",
        "mellum", "trillion", "modern-bert", "granite-docling"},
       {gpt2_split}},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}, {digit, gpt2_split}},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}, {llama3_split}, true, false, true},
      {{"dbrx", "smaug-bpe"}, {llama3_split}},
      {{"glm4", "glm5", "chatglm-bpe"}, {llama3_split}, true},
      {{"qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open", "kormo", "grok-2"}, {qwen2_split}, false, true},
      {{"qwen35"}, {qwen35_split}, false, true},
      {{"tekken"}, {tekken_split}, true, false, true},
      {{"gpt-4o", "llama4", "kanana2", "minimax-m2"}, {gpt4o_split}, true},
      {{"deepseek-v3", "hunyuan-dense"}, {R"(\p{N}{1,3})", "[一-龥぀-ゟ゠-ヿ]+", deepseek3_split}},
      {{"deepseek-llm"},
       {"[\r\n]", deepseek_llm_letters, "\\s?[!-/:-~！-／：-～‘-‟　-。]+", R"(\s+$)", "[一-龥ࠀ-一가-퟿]+", R"(\p{N}+)"}},
      {{"deepseek-coder"}, {"[\r\n]", R"(\s?\p{L}+)", R"(\s?\p{P}+)", "[一-龥ࠀ-一가-퟿]+", digit}},
      {{"falcon"}, {R"([\p{P}\$\+<=>\^~\|`]+)", gpt2_split, "[0-9][0-9][0-9]"}},
      {{"bloom", "poro-chat", "gpt3-finnish"}, {bloom_split}},
      {{"viking"}, {bloom_split, digit}},
      {{"seed-coder"}, {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
      {{"bailingmoe", "bailingmoe2", "llada-moe"},
       {R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"}},
      {{"superbpe"}, {R"(\p{N}+)", R"((?=(\d{3})+(?!\d)))"}},
      {{"default", ""}, {R"([\p{P}\$\+<=>\^~\|]+)", gpt2_split, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
  };
  return rows;
}

const PreRow& find_pre(const std::string& name, const std::string& where) {
  std::string known;
  for (const PreRow& row : pre_rows()) {
    if (std::find(row.names.begin(), row.names.end(), name) != row.names.end()) return row;
    for (std::string_view n : row.names) {
      if (!n.empty()) known += (known.empty() ? "" : ", ") + std::string(n);
    }
  }
  bad_input(where, "tokenizer.ggml.pre is " + name + " (" + known + ")");
}

// GGUF cannot say rstrip. Phi-3's turn tokens swallow the white space behind them; these of its special tokens do not.
bool swallows_space(const AddedToken& token) {
  constexpr std::string_view kOthers[] = {"<unk>", "<s>", "<|endoftext|>"};
  return token.special && std::find(std::begin(kOthers), std::end(kOthers), token.content) == std::end(kOthers);
}

enum class TokenType : int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

}  // namespace

GgufPre gguf_pre(const std::string& name, const std::string& where) {
  const PreRow& row = find_pre(name, where);
  return {row.splits, row.ignore_merges, row.nfc, row.add_bos};
}

std::unique_ptr<Tokenizer> Tokenizer::from_gguf(GgufVocabulary given, const std::string& where) {
  const size_t count = given.tokens.size();
  if (count == 0) bad_input(where, "tokenizer.ggml.tokens is empty (at least one token)");
  if (count > INT32_MAX) bad_input(where, "tokenizer.ggml.tokens has " + std::to_string(count) + " tokens (less)");
  if (!given.types.empty() && given.types.size() != count) {
    bad_input(where, "tokenizer.ggml.token_type has " + std::to_string(given.types.size()) + " entries (one for each of " +
                         std::to_string(count) + " tokens)");
  }
  auto parts = std::make_unique<Parts>();
  for (size_t i = 0; i < count; ++i) {
    if (!is_valid_utf8(given.tokens[i])) bad_input(where, "tokenizer.ggml.tokens[" + std::to_string(i) + "] is not UTF-8");
    parts->vocabulary.add(given.tokens[i], static_cast<int32_t>(i));
  }
  parts->vocabulary.finish(where);
  auto check_id = [&](const std::optional<int32_t>& id, const char* name) {
    if (id && !parts->vocabulary.has(*id)) {
      bad_input(where, std::string("tokenizer.ggml.") + name + " is " + std::to_string(*id) + " (0 to " + std::to_string(count - 1) + ")");
    }
    return id;
  };
  parts->bos = check_id(given.bos, "bos_token_id");
  parts->eos = check_id(given.eos, "eos_token_id");
  parts->unknown = check_id(given.unknown, "unknown_token_id");
  parts->padding = check_id(given.padding, "padding_token_id");

  bool add_bos;
  if (given.model == "gpt2") {
    const PreRow& row = find_pre(given.pre, where);
    add_bos = row.add_bos;
    BpeOptions options;
    options.ignore_merges = row.ignore_merges;
    auto bpe = std::make_unique<Bpe>(parts->vocabulary, std::move(options), given.merges.size(), where);
    for (size_t i = 0; i < given.merges.size(); ++i) {
      const std::string_view merge = given.merges[i];
      const size_t space = merge.find(' ', 1);
      if (space == std::string_view::npos || space + 1 == merge.size()) {
        bad_input(where, "tokenizer.ggml.merges[" + std::to_string(i) + "] is not two pieces with a space between (\"left right\")");
      }
      bpe->add_merge(merge.substr(0, space), merge.substr(space + 1));
    }
    parts->model = std::move(bpe);
    if (row.nfc) parts->normalizer = make_unicode_normalizer("NFC");
    std::vector<std::unique_ptr<PreTokenizer>> steps;
    for (std::string_view split : row.splits) steps.push_back(make_regex_split(split, where));
    steps.push_back(make_byte_level(false, false));
    parts->pre_tokenizer = make_pre_tokenizer_sequence(std::move(steps));
    add_byte_level_decoder(parts->decoder);
  } else if (given.model == "llama") {
    if (given.scores.size() != count) {
      bad_input(where, "tokenizer.ggml.scores has " + std::to_string(given.scores.size()) + " entries (one for each of " +
                           std::to_string(count) + " tokens)");
    }
    for (size_t i = 0; i < count; ++i) {
      if (std::isnan(given.scores[i])) bad_input(where, "tokenizer.ggml.scores[" + std::to_string(i) + "] is not a number");
    }
    add_bos = true;
    const bool prefix = given.add_space_prefix.value_or(true);
    constexpr const char* space = "\xE2\x96\x81";
    std::vector<std::unique_ptr<Normalizer>> steps;
    if (prefix) steps.push_back(make_prepend_normalizer(space));
    steps.push_back(make_replace_normalizer(" ", space));
    parts->normalizer = make_normalizer_sequence(std::move(steps));
    parts->model = std::make_unique<ScoredBpe>(parts->vocabulary, std::move(given.scores), parts->unknown);
    add_sentence_piece_decoder(parts->decoder, prefix);
  } else {
    bad_input(where, "tokenizer.ggml.model is " + given.model + " (gpt2 or llama)");
  }

  for (size_t i = 0; i < given.types.size(); ++i) {
    const int32_t number = given.types[i];
    if (number < 0 || number > 6)
      bad_input(where, "tokenizer.ggml.token_type[" + std::to_string(i) + "] is " + std::to_string(number) + " (0 to 6)");
    const auto type = static_cast<TokenType>(number);
    if (type != TokenType::control && type != TokenType::user_defined && type != TokenType::unknown) continue;
    AddedToken token{given.tokens[i], static_cast<int32_t>(i)};
    token.special = type != TokenType::user_defined;
    token.rstrip = given.architecture == "phi3" && given.model == "llama" && swallows_space(token);
    parts->added.add(std::move(token));
  }
  parts->added.finish(nullptr);
  if (given.add_bos.value_or(add_bos) && parts->bos) parts->post_processor.before = {*parts->bos};
  if (given.add_eos.value_or(false) && parts->eos) parts->post_processor.after = {*parts->eos};
  return std::make_unique<Tokenizer>(std::move(parts));
}

}  // namespace tandem
