// What a user asks for, and what comes back, as the command line and the wire both say it: text in, text out, everything optional that
// has a default elsewhere. `tandem generate` answers an Ask in its own process, `tandem client` sends it. Values only.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/serving/request.h"

namespace tandem {

struct ChatInput {
  std::string messages_json;  // a JSON list of {role, content, ...}
  std::string tools_json;     // "": none
};

struct Ask {
  std::string request_id;                                                            // "": one is made
  std::string model;                                                                 // "": the only one
  std::variant<std::monostate, std::string, std::vector<int32_t>, ChatInput> input;  // text, ids, chat

  // Unset: generation_config.json's, then the neutral value.
  std::optional<float> temperature, top_p, min_p, typical_p, repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<int32_t> top_k, no_repeat_ngram;
  std::vector<TokenBias> logit_bias;  // distinct ids
  std::vector<int32_t> allowed_ids;   // empty: all
  uint32_t choice = 0;                // which of several answers with one seed
  std::optional<uint64_t> seed;     // unset: drawn, and reported
  std::optional<int32_t> logprobs;  // unset: none; 0: of the chosen token; K: and of the K best

  std::optional<int32_t> max_tokens;  // unset: what the context leaves
  int32_t min_tokens = 0;
  std::vector<std::string> stop_strings;
  std::vector<int32_t> stop_ids;  // besides the model's own
  bool ignore_eos = false;

  bool stream = true;
  int32_t priority = 0;
  std::string tenant;
  std::vector<int32_t> resume;  // generated before an interruption: goes on after them
  bool return_prompt_ids = false;
  bool echo = false;  // the text begins with the prompt's
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;
};

struct AnswerDelta {
  std::string text;  // whole characters, never cumulative; may be empty while text is held back
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;
  bool empty() const { return text.empty() && token_ids.empty(); }
};

struct AnswerEnd {
  FinishReason reason = FinishReason::none;
  std::string matched;      // the stop string, or the piece of the stop token
  int32_t matched_id = -1;  // the stop token
  int32_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  Timings timings;
  uint64_t seed = 0;
  std::string compute;
  std::vector<int32_t> prompt_ids;  // when asked for
};

}  // namespace tandem
