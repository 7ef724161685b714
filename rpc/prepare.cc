#include "rpc/prepare.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

constexpr size_t kMaxIdBytes = 256;
constexpr size_t kMaxStopStrings = 64, kMaxStopBytes = 4096, kMaxStopIds = 32;

std::string number(float value) {
  std::string text = std::to_string(value);
  if (text.find('.') != std::string::npos) text.erase(text.find_last_not_of('0') + 1);
  if (!text.empty() && text.back() == '.') text.pop_back();
  return text;
}

// The asked value when there is one, else the default; in [low, high], or in (low, high] when `open`.
float in_range(const char* field, const std::optional<float>& asked, float otherwise, float low, float high, bool open = false) {
  if (!asked) return otherwise;
  if (!(*asked >= low && *asked <= high) || (open && *asked == low)) {
    bad_input(field, "is " + number(*asked) + " (" + (open ? "above " : "from ") + number(low) + " to " + number(high) + ")");
  }
  return *asked;
}

int32_t whole_in_range(const char* field, const std::optional<int32_t>& asked, int32_t otherwise, int32_t low, int32_t high) {
  if (!asked) return otherwise;
  if (*asked < low || *asked > high) {
    bad_input(field, "is " + std::to_string(*asked) + " (" + std::to_string(low) + " to " + std::to_string(high) + ")");
  }
  return *asked;
}

void check_ids(const char* field, const std::vector<int32_t>& ids, int32_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab) continue;
    bad_input(field, "id " + std::to_string(ids[i]) + " at index " + std::to_string(i) + " is outside of the vocabulary (0 to " +
                         std::to_string(vocab - 1) + ")");
  }
}

// Ids travel in metadata, where only printable ASCII may stand.
void check_name(const char* field, const std::string& value) {
  if (value.size() > kMaxIdBytes)
    bad_input(field, "is " + std::to_string(value.size()) + " bytes (at most " + std::to_string(kMaxIdBytes) + ")");
  const auto odd = [](unsigned char c) { return c < 0x20 || c > 0x7e; };
  if (std::any_of(value.begin(), value.end(), odd)) bad_input(field, "holds other characters than printable ASCII (letters, digits, signs)");
}

std::string make_id() {
  static constexpr char digits[] = "0123456789abcdef";
  std::random_device device;
  std::string id;
  for (int word = 0; word < 4; ++word) {
    uint32_t bits = device();
    for (int i = 0; i < 8; ++i, bits >>= 4) id += digits[bits & 15];
  }
  return id;
}

nlohmann::ordered_json parse_list(const char* field, const std::string& text) {
  auto value = nlohmann::ordered_json::parse(text, nullptr, false);
  if (!value.is_array()) bad_input(field, "is not a list (must be a JSON list)");
  return value;
}

// A character that the chat itself does not hold: one of Unicode's noncharacters, which no text means.
std::string pick_guard(const ChatInput& chat) {
  for (unsigned char last = 0x90; last <= 0xAF; ++last) {
    const std::string guard = {'\xEF', '\xB7', static_cast<char>(last)};
    if (chat.messages_json.find(guard) == std::string::npos && chat.tools_json.find(guard) == std::string::npos) return guard;
  }
  bad_input("chat.messages", "hold every one of the noncharacters U+FDD0 to U+FDEF (at least one not)");
}

// Every text in it, so that what reads like a special token there stays text.
void guard_texts(nlohmann::ordered_json& value, const Tokenizer& tokenizer, const std::string& guard) {
  if (value.is_string()) value = tokenizer.guarded(value.get_ref<const std::string&>(), guard);
  if (value.is_structured()) {
    for (auto& inner : value) guard_texts(inner, tokenizer, guard);
  }
}

std::string render(const ChatInput& chat, const TextSide& text, bool generation_prompt, const std::string& guard) {
  if (text.chat == nullptr) fail(Code::failed_precondition, "chat", "the model has no chat template (send text or token_ids)");
  auto messages = parse_list("chat.messages", chat.messages_json);
  if (messages.empty()) bad_input("chat.messages", "is empty (at least one message)");
  for (const auto& message : messages) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
      bad_input("chat.messages", "holds a message without a role (a list of {role, content})");
    }
  }
  nlohmann::ordered_json tools = chat.tools_json.empty() ? nlohmann::ordered_json() : parse_list("chat.tools", chat.tools_json);
  guard_texts(messages, *text.tokenizer, guard);
  guard_texts(tools, *text.tokenizer, guard);
  return text.chat->render(messages, tools, generation_prompt,
                           text.chat_variables != nullptr ? *text.chat_variables : nlohmann::ordered_json::object());
}

const Tokenizer& need_tokenizer(const char* field, const TextSide& text) {
  if (text.tokenizer == nullptr) fail(Code::failed_precondition, field, "the model has no tokenizer (send token_ids)");
  return *text.tokenizer;
}

}  // namespace

void check_model(const std::string& asked, const TextSide& text) {
  if (!asked.empty() && asked != text.model) fail(Code::not_found, "model", "'" + asked + "' is not served here ('" + text.model + "' is)");
}

std::vector<int32_t> tokenize_input(const Ask& ask, const TextSide& text, bool special, bool generation_prompt, std::string* rendered) {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&ask.input)) return *ids;
  if (const auto* plain = std::get_if<std::string>(&ask.input)) return need_tokenizer("text", text).encode(*plain, special);
  if (const auto* chat = std::get_if<ChatInput>(&ask.input)) {
    const Tokenizer& tokenizer = need_tokenizer("chat", text);
    const std::string guard = pick_guard(*chat);
    const std::string prompt = render(*chat, text, generation_prompt, guard);
    std::vector<int32_t> ids = tokenizer.encode(prompt, false, guard);
    if (rendered != nullptr) *rendered = without(prompt, guard);
    return ids;
  }
  bad_input("input", "is missing (one of text, token_ids, chat)");
}

Prepared prepare(const Ask& ask, const TextSide& text) {
  check_model(ask.model, text);
  check_name("request_id", ask.request_id);
  check_name("tenant", ask.tenant);
  Prepared out;
  Request& request = out.request;

  Sampling& sampling = request.sampling;
  const Sampling& other = text.defaults;
  sampling.temperature = in_range("sampling.temperature", ask.temperature, other.temperature, 0, 100);
  sampling.top_k = whole_in_range("sampling.top_k", ask.top_k, other.top_k, 0, INT32_MAX);
  if (sampling.top_k >= text.vocab) sampling.top_k = 0;  // everything passes: the same as off
  sampling.top_p = in_range("sampling.top_p", ask.top_p, other.top_p, 0, 1, true);
  sampling.min_p = in_range("sampling.min_p", ask.min_p, other.min_p, 0, 1);
  sampling.typical_p = in_range("sampling.typical_p", ask.typical_p, other.typical_p, 0, 1, true);
  sampling.repetition_penalty = in_range("sampling.repetition_penalty", ask.repetition_penalty, other.repetition_penalty, 0.01f, 100);
  sampling.presence_penalty = in_range("sampling.presence_penalty", ask.presence_penalty, other.presence_penalty, -100, 100);
  sampling.frequency_penalty = in_range("sampling.frequency_penalty", ask.frequency_penalty, other.frequency_penalty, -100, 100);
  sampling.no_repeat_ngram = whole_in_range("sampling.no_repeat_ngram_size", ask.no_repeat_ngram, other.no_repeat_ngram, 0, text.context);
  sampling.choice = ask.choice;
  if (ask.logit_bias.size() > kMostBiases) bad_input("sampling.logit_bias", "has " + std::to_string(ask.logit_bias.size()) + " ids (at most " + std::to_string(kMostBiases) + ")");
  for (const TokenBias& bias : ask.logit_bias) {
    check_ids("sampling.logit_bias", {bias.id}, text.vocab);
    (void)in_range("sampling.logit_bias", bias.value, 0, -kMostBias, kMostBias);
  }
  request.logit_bias = ask.logit_bias;
  check_ids("sampling.allowed_token_ids", ask.allowed_ids, text.vocab);
  request.allowed_ids = ask.allowed_ids;
  sampling.logprobs = whole_in_range("logprobs", ask.logprobs, -1, 0, kMaxLogprobs);
  std::random_device random;
  sampling.seed = ask.seed ? *ask.seed : (static_cast<uint64_t>(random()) << 32 | random());

  if (ask.stop_strings.size() > kMaxStopStrings) bad_input("stopping.stop_strings", "are " + std::to_string(ask.stop_strings.size()) + " (at most " + std::to_string(kMaxStopStrings) + ")");
  for (const std::string& stop : ask.stop_strings) {
    if (stop.empty()) bad_input("stopping.stop_strings", "holds an empty string (at least one character each)");
    if (stop.size() > kMaxStopBytes)
      bad_input("stopping.stop_strings", "holds one of " + std::to_string(stop.size()) + " bytes (at most " + std::to_string(kMaxStopBytes) + ")");
  }
  if (!ask.stop_strings.empty()) need_tokenizer("stopping.stop_strings", text);
  out.stop_strings = ask.stop_strings;
  if (ask.stop_ids.size() > kMaxStopIds) bad_input("stopping.stop_token_ids", "are " + std::to_string(ask.stop_ids.size()) + " (at most " + std::to_string(kMaxStopIds) + ")");
  check_ids("stopping.stop_token_ids", ask.stop_ids, text.vocab);
  if (ask.min_tokens < 0) bad_input("stopping.min_tokens", "is " + std::to_string(ask.min_tokens) + " (0 or more)");
  if (ask.max_tokens) whole_in_range("stopping.max_tokens", ask.max_tokens, 0, 1, text.context);

  request.prompt = tokenize_input(ask, text, true, true);
  if (request.prompt.empty()) bad_input("input", "is empty (at least one token)");
  check_ids("token_ids", request.prompt, text.vocab);
  check_ids("resume.token_ids", ask.resume, text.vocab);
  const int64_t known = static_cast<int64_t>(request.prompt.size() + ask.resume.size());
  const int64_t left = text.context - known;
  if (left < 1) {
    bad_input("input", "is " + std::to_string(known) + " tokens, which leaves none of the context of " + std::to_string(text.context) + " (at most " + std::to_string(text.context - 1) + ")");
  }
  const int32_t resumed = static_cast<int32_t>(ask.resume.size());
  Stopping& stopping = request.stopping;
  stopping.max_tokens = static_cast<int32_t>(left);
  if (ask.max_tokens) {
    if (*ask.max_tokens <= resumed) bad_input("resume.token_ids", "are as many as max_tokens (fewer, so that something is left to generate)");
    stopping.max_tokens = std::min(stopping.max_tokens, *ask.max_tokens - resumed);
  }
  stopping.min_tokens = std::max(0, ask.min_tokens - resumed);
  if (stopping.min_tokens > stopping.max_tokens) {
    bad_input("stopping.min_tokens", "is " + std::to_string(ask.min_tokens) + " (at most max_tokens and the context left, " +
                                         std::to_string(stopping.max_tokens + resumed) + ")");
  }
  stopping.ignore_eos = ask.ignore_eos;
  if (resumed > 0) {
    if (sampling.presence_penalty != 0 || sampling.frequency_penalty != 0) {
      fail(Code::failed_precondition, "resume",
           "presence and frequency penalties count generated tokens only, which a resumed answer cannot tell");
    }
    out.resume = ask.resume;
    request.prompt.insert(request.prompt.end(), ask.resume.begin(), ask.resume.end());
  }
  // ignore_eos is about the model's own end tokens; those that the user names stop always.
  stopping.stop_ids = ask.stop_ids;
  if (!ask.ignore_eos) stopping.stop_ids.insert(stopping.stop_ids.end(), text.stop_ids.begin(), text.stop_ids.end());
  std::sort(stopping.stop_ids.begin(), stopping.stop_ids.end());
  stopping.stop_ids.erase(std::unique(stopping.stop_ids.begin(), stopping.stop_ids.end()), stopping.stop_ids.end());
  stopping.ignore_eos = ask.ignore_eos && ask.stop_ids.empty();

  const auto stops = [&](int32_t id) { return std::binary_search(stopping.stop_ids.begin(), stopping.stop_ids.end(), id); };
  if (stopping.min_tokens > 0 && !ask.allowed_ids.empty() && std::all_of(ask.allowed_ids.begin(), ask.allowed_ids.end(), stops)) {
    bad_input("sampling.allowed_token_ids", "are all stop ids, which min_tokens forbids (at least one other)");
  }

  out.echo = ask.echo;
  if (ask.echo) need_tokenizer("echo", text);
  request.id = ask.request_id.empty() ? make_id() : ask.request_id;
  request.priority = ask.priority;
  out.return_prompt_ids = ask.return_prompt_ids;
  return out;
}

}  // namespace tandem
