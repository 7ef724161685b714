#include "runtime/serving/request.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace tandem {
namespace {

constexpr size_t kMaxStopIds = 64, kMaxIdBytes = 256;

void in_range(const char* field, float value, float least, float most) {  // false for NaN
  if (!(value >= least && value <= most)) {
    bad_input(field, std::to_string(value) + " is out of range (" + std::to_string(least) + " to " + std::to_string(most) + ")");
  }
}

void not_negative(const char* field, int32_t value) {
  if (value < 0) bad_input(field, std::to_string(value) + " is negative (0 or more)");
}

void ids_in_vocabulary(const char* field, const std::vector<int32_t>& ids, int32_t vocab) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab)
      bad_input(field, "id " + std::to_string(id) + " is not in the vocabulary (0 to " + std::to_string(vocab - 1) + ")");
  }
}

}  // namespace

std::string_view name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "none";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::stop_string:
      return "stop_string";
    case FinishReason::cancelled:
      return "cancelled";
  }
  return "none";
}

void validate(const Request& request, const EngineOptions& options) {
  if (request.id.empty()) bad_input("request_id", "is empty (1 to " + std::to_string(kMaxIdBytes) + " bytes)");
  if (request.id.size() > kMaxIdBytes) bad_input("request_id", "is longer than " + std::to_string(kMaxIdBytes) + " bytes");
  const size_t context = static_cast<size_t>(options.context);
  if (request.prompt.empty()) bad_input("prompt", "has no tokens (at least 1)");
  if (request.all_logits ? request.prompt.size() > context : request.prompt.size() >= context) {
    bad_input("prompt", "has " + std::to_string(request.prompt.size()) + " tokens (at most " +
                            std::to_string(request.all_logits ? context : context - 1) + ": the context is " + std::to_string(context) +
                            ")");
  }
  ids_in_vocabulary("prompt", request.prompt, options.vocab);

  const Sampling& s = request.sampling;
  in_range("temperature", s.temperature, 0, 100);
  not_negative("top_k", s.top_k);
  in_range("top_p", s.top_p, 0, 1);
  in_range("min_p", s.min_p, 0, 1);
  in_range("typical_p", s.typical_p, 0, 1);
  if (s.top_p == 0) bad_input("top_p", "is 0 (above 0, up to 1)");
  if (s.typical_p == 0) bad_input("typical_p", "is 0 (above 0, up to 1)");
  in_range("repetition_penalty", s.repetition_penalty, 0.01f, 100);
  in_range("presence_penalty", s.presence_penalty, -100, 100);
  in_range("frequency_penalty", s.frequency_penalty, -100, 100);
  if (s.logprobs < -1 || s.logprobs > kMaxLogprobs) {
    bad_input("logprobs", std::to_string(s.logprobs) + " is out of range (0 to " + std::to_string(kMaxLogprobs) + ")");
  }

  not_negative("no_repeat_ngram_size", s.no_repeat_ngram);
  if (request.logit_bias.size() > kMostBiases) bad_input("logit_bias", "has more than " + std::to_string(kMostBiases) + " ids");
  for (const TokenBias& bias : request.logit_bias) {
    ids_in_vocabulary("logit_bias", {bias.id}, options.vocab);
    in_range("logit_bias", bias.value, -kMostBias, kMostBias);
  }
  ids_in_vocabulary("allowed_token_ids", request.allowed_ids, options.vocab);

  const Stopping& stop = request.stopping;
  not_negative("max_tokens", stop.max_tokens);
  not_negative("min_tokens", stop.min_tokens);
  if (stop.max_tokens && stop.min_tokens > stop.max_tokens) {
    bad_input("min_tokens", std::to_string(stop.min_tokens) + " is more than max_tokens, " + std::to_string(stop.max_tokens));
  }
  if (stop.stop_ids.size() > kMaxStopIds) bad_input("stop_token_ids", "has more than " + std::to_string(kMaxStopIds) + " ids");
  ids_in_vocabulary("stop_token_ids", stop.stop_ids, options.vocab);
  const auto stops = [&stop](int32_t id) { return std::find(stop.stop_ids.begin(), stop.stop_ids.end(), id) != stop.stop_ids.end(); };
  if (stop.min_tokens > 0 && !request.allowed_ids.empty() && std::all_of(request.allowed_ids.begin(), request.allowed_ids.end(), stops)) {
    bad_input("allowed_token_ids", "are all stop ids, which min_tokens forbids (at least one other)");
  }
}

}  // namespace tandem
