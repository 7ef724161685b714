#include "runtime/text/gguf_tokenizer_json.h"

#include <nlohmann/json.hpp>

#include "kernels/base/error.h"

namespace tandem {
namespace {

using nlohmann::ordered_json;

constexpr int32_t kUnknown = 2, kControl = 3, kUserDefined = 4;  // token types

std::string dumped(const ordered_json& value) { return value.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n"; }

ordered_json byte_level(bool prefix, bool regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"trim_offsets", true}, {"use_regex", regex}};
}

// Tokens around a text, as TemplateProcessing puts them.
ordered_json around(const GgufVocabulary& v, std::optional<int32_t> before, std::optional<int32_t> after) {
  ordered_json specials = ordered_json::object();
  const auto sequence = [](const char* id, int type) { return ordered_json{{"Sequence", {{"id", id}, {"type_id", type}}}}; };
  const auto list = [&](bool pair) {
    ordered_json items = ordered_json::array();
    const auto add = [&](std::optional<int32_t> id) {
      if (!id) return;
      const std::string& content = v.tokens[static_cast<size_t>(*id)];
      items.push_back({{"SpecialToken", {{"id", content}, {"type_id", 0}}}});
      specials[content] = {{"id", content}, {"ids", {*id}}, {"tokens", {content}}};
    };
    add(before);
    items.push_back(sequence("A", 0));
    if (pair) items.push_back(sequence("B", 1));
    add(after);
    return items;
  };
  ordered_json single = list(false), pair = list(true);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
}

}  // namespace

TokenizerFiles gguf_tokenizer_files(const GgufVocabulary& v, const std::string& chat_template, const std::string& where) {
  if (v.model != "gpt2") return {};
  const auto checked = Tokenizer::from_gguf(v, where);
  const GgufPre pre = gguf_pre(v.pre, where);
  ordered_json added = ordered_json::array();
  for (size_t i = 0; i < v.types.size(); ++i) {
    if (v.types[i] != kControl && v.types[i] != kUserDefined && v.types[i] != kUnknown) continue;
    added.push_back({{"id", i}, {"content", v.tokens[i]}, {"single_word", false}, {"lstrip", false}, {"rstrip", false}, {"normalized", false}, {"special", v.types[i] != kUserDefined}});
  }
  ordered_json steps = ordered_json::array();
  for (const std::string_view split : pre.splits) steps.push_back({{"type", "Split"}, {"pattern", {{"Regex", split}}}, {"behavior", "Isolated"}, {"invert", false}});
  steps.push_back(byte_level(false, false));
  nlohmann::json vocabulary = nlohmann::json::object();
  for (size_t i = 0; i < v.tokens.size(); ++i) vocabulary[v.tokens[i]] = i;
  const bool bos = v.add_bos.value_or(pre.add_bos) && v.bos, eos = v.add_eos.value_or(false) && v.eos;

  ordered_json tokenizer = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"added_tokens", added}};
  tokenizer["normalizer"] = pre.nfc ? ordered_json{{"type", "NFC"}} : ordered_json();
  tokenizer["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
  tokenizer["post_processor"] = bos || eos ? around(v, bos ? v.bos : std::nullopt, eos ? v.eos : std::nullopt) : byte_level(true, false);
  tokenizer["decoder"] = byte_level(true, true);
  tokenizer["model"] = {{"type", "BPE"}, {"dropout", nullptr}, {"unk_token", nullptr}, {"continuing_subword_prefix", nullptr}, {"end_of_word_suffix", nullptr},
                        {"fuse_unk", false}, {"byte_fallback", false}, {"ignore_merges", pre.ignore_merges}};
  tokenizer["model"]["vocab"] = vocabulary;
  tokenizer["model"]["merges"] = v.merges;

  ordered_json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  const auto name = [&](const char* key, std::optional<int32_t> id) {
    if (id) config[key] = v.tokens[static_cast<size_t>(*id)];
  };
  name("bos_token", v.bos);
  name("eos_token", v.eos);
  name("unk_token", v.unknown);
  name("pad_token", v.padding);
  if (!chat_template.empty()) config["chat_template"] = chat_template;
  return {dumped(tokenizer), dumped(config)};
}

}  // namespace tandem
