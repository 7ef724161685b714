// The JSON of an answer, the same for `generate --json` and `client --json`. See docs/wire.md.
#pragma once
#include <nlohmann/json.hpp>

#include "rpc/ask.h"

namespace tandem {

struct AnswerTimes { double load_seconds = 0, ttft_seconds = 0, decode_tokens_per_second = 0; };
nlohmann::ordered_json logprobs_json(const std::vector<TokenLogprob>& tokens);
nlohmann::ordered_json answer_json(const AnswerDelta& all, const AnswerEnd& end, const AnswerTimes& times);

}  // namespace tandem
