#include "launch/prompts_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/base/error.h"
#include "launch/text_file.h"
#include "runtime/model/checkpoint/config.h"
#include "sharding/fields.h"

namespace tandem {
namespace {

constexpr size_t kMostBytes = 256 << 20;

template <class T>
void take(const Fields& fields, const char* name, std::optional<T>& value) {
  constexpr double kMost = 3.4e38;
  if (fields.has(name)) value = fields.get<T>(name, -kMost, kMost);
}

void check_names(const nlohmann::json& object, const std::string& where) {
  constexpr std::array kNames = {"prompt", "prompt_ids", "messages", "tools", "system", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
                                 "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "logit_bias", "allowed_token_ids", "echo", "seed", "logprobs", "max_tokens", "min_tokens", "stop", "ignore_eos"};
  for (const auto& item : object.items()) {
    if (std::find(kNames.begin(), kNames.end(), item.key()) != kNames.end()) continue;
    std::string known;
    for (const char* name : kNames) known += (known.empty() ? "" : ", ") + std::string(name);
    bad_input(where, "has a field " + item.key().substr(0, 40) + " (known: " + known + ")");
  }
}

std::vector<TokenBias> biases_from(const Fields& fields, const nlohmann::json& object) {
  constexpr const char* kRight = "an object of token ids to numbers, such as {\"13\": -5}";
  if (!object.is_object()) fields.refuse("logit_bias", kRight);
  std::vector<TokenBias> biases;
  for (const auto& [name, value] : object.items()) {
    int32_t id = -1;
    const auto [last, error] = std::from_chars(name.data(), name.data() + name.size(), id);
    if (error != std::errc() || last != name.data() + name.size() || !value.is_number()) fields.refuse("logit_bias", kRight);
    biases.push_back({id, value.get<float>()});
  }
  return biases;
}

Ask ask_from(const std::string& line, const std::string& where, const PromptOptions& common) {
  const nlohmann::json object = parse_json(line, where);
  const Fields fields(object, where, "");
  check_names(object, where);
  PromptOptions options = common;
  Ask& ask = options.ask;
  take(fields, "temperature", ask.temperature);
  take(fields, "top_k", ask.top_k);
  take(fields, "top_p", ask.top_p);
  take(fields, "min_p", ask.min_p);
  take(fields, "typical_p", ask.typical_p);
  take(fields, "repetition_penalty", ask.repetition_penalty);
  take(fields, "presence_penalty", ask.presence_penalty);
  take(fields, "frequency_penalty", ask.frequency_penalty);
  take(fields, "no_repeat_ngram_size", ask.no_repeat_ngram);
  if (fields.has("allowed_token_ids")) ask.allowed_ids = fields.get<std::vector<int32_t>>("allowed_token_ids");
  if (fields.has("logit_bias")) ask.logit_bias = biases_from(fields, object["logit_bias"]);
  ask.echo = fields.get_or<bool>("echo", ask.echo);
  if (fields.has("seed")) ask.seed = fields.get<uint64_t>("seed", 0, 1.9e19);
  take(fields, "logprobs", ask.logprobs);
  take(fields, "max_tokens", ask.max_tokens);
  ask.min_tokens = fields.get_or<int32_t>("min_tokens", ask.min_tokens);
  ask.ignore_eos = fields.get_or<bool>("ignore_eos", ask.ignore_eos);
  options.system = fields.get_or<std::string>("system", options.system);
  if (fields.has("stop")) {
    ask.stop_strings = object["stop"].is_string() ? std::vector<std::string>{fields.get<std::string>("stop")} : fields.get<std::vector<std::string>>("stop");
  }
  if (fields.has("prompt") + fields.has("prompt_ids") + fields.has("messages") != 1) {
    bad_input(where, "has none or several of prompt, prompt_ids and messages (exactly one of them)");
  }
  if (fields.has("prompt_ids")) {
    if (!options.system.empty()) bad_input(where, "has prompt_ids, and a system message is given (it goes with prompt or messages)");
    ask.input = fields.get<std::vector<int32_t>>("prompt_ids");
    return ask;
  }
  if (fields.has("prompt")) {
    options.has_prompt = true;
    options.prompt = fields.get<std::string>("prompt");
    return ask_of(options);
  }
  const auto ordered = nlohmann::ordered_json::parse(line);  // templates show members in their order
  nlohmann::ordered_json messages = ordered["messages"];
  if (!messages.is_array()) fields.refuse("messages", "a list of messages");
  if (!options.system.empty()) messages.insert(messages.begin(), {{"role", "system"}, {"content", options.system}});
  ChatInput chat{messages.dump(), ""};
  if (fields.has("tools") && !object["tools"].empty()) chat.tools_json = ordered["tools"].dump();
  ask.input = std::move(chat);
  return ask;
}

}  // namespace

std::vector<PromptLine> read_prompts(const std::string& path, const PromptOptions& common) {
  const std::string text = read_text_file(path, kMostBytes);
  const bool objects = path.ends_with(".jsonl");
  std::vector<PromptLine> prompts;
  int number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (objects) {
      const std::string where = path + ":" + std::to_string(number);
      prompts.push_back({number, ask_from(line, where, common)});
      continue;
    }
    PromptOptions options = common;
    options.has_prompt = true;
    options.prompt = std::move(line);
    prompts.push_back({number, ask_of(options)});
  }
  if (prompts.empty()) bad_input(path, "holds no prompt (one a line; a .jsonl file: one object a line, such as {\"prompt\": \"Hi\"})");
  return prompts;
}

}  // namespace tandem
