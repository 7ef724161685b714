#include "launch/answer_json.h"

namespace tandem {

nlohmann::ordered_json logprobs_json(const std::vector<TokenLogprob>& tokens) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const TokenLogprob& token : tokens) {
    nlohmann::ordered_json top = nlohmann::ordered_json::array();
    for (const auto& [id, logprob] : token.top) top.push_back({id, logprob});
    json.push_back({{"token_id", token.id}, {"logprob", token.logprob}, {"top", top}});
  }
  return json;
}

nlohmann::ordered_json answer_json(const AnswerDelta& all, const AnswerEnd& end, const AnswerTimes& times) {
  nlohmann::ordered_json json;
  json["prompt_token_ids"] = end.prompt_ids;
  json["token_ids"] = all.token_ids;
  json["text"] = all.text;
  json["finish_reason"] = name(end.reason);
  json["seed"] = end.seed;
  json["compute"] = end.compute;
  if (!all.logprobs.empty()) json["logprobs"] = logprobs_json(all.logprobs);
  json["usage"] = {{"prompt_tokens", end.prompt_tokens}, {"completion_tokens", end.completion_tokens}};
  json["timings"] = {{"load_seconds", times.load_seconds}, {"ttft_seconds", times.ttft_seconds}, {"decode_tokens_per_second", times.decode_tokens_per_second}};
  return json;
}

}  // namespace tandem
