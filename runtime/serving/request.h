// A generation request as the engine knows it (ids in, ids out) and what comes back. Text lives outside: templates, tokenizer,
// detokenizer and stop strings belong to the text threads. Values only.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/program/backend.h"
#include "runtime/model/step.h"
#include "runtime/serving/engine_options.h"

namespace tandem {

using Clock = std::chrono::steady_clock;

struct Stopping {
  int32_t max_tokens = 0;            // 0: what the context leaves
  int32_t min_tokens = 0;
  std::vector<int32_t> stop_ids;     // the model's end tokens included by whoever builds the request
  bool ignore_eos = false;           // stop_ids do not stop
};

struct TokenBias { int32_t id; float value; };  // added to the id's logit

struct Request {
  std::string id;                    // unique among those in flight
  std::vector<int32_t> prompt;
  Sampling sampling;
  std::vector<TokenBias> logit_bias;  // distinct ids
  std::vector<int32_t> allowed_ids;   // only these may be drawn; empty: all
  Stopping stopping;
  int32_t priority = 0;              // higher first
  std::optional<Clock::time_point> deadline;
  bool all_logits = false;           // logits of every prompt row instead of a generation (logits, perplexity)
  bool cache_prefix = true;          // may use pages that earlier requests left, and leave its own
  uint64_t cache_salt = 0;           // only requests with the same salt share pages
};

// Errors: invalid_argument with the field's name in `where`, for anything the engine or a worker could not carry out.
inline constexpr size_t kMostBiases = 1024;
inline constexpr float kMostBias = 10000;
void validate(const Request& request, const EngineOptions& options);

enum class FinishReason : uint8_t { none, stop, length, stop_string, cancelled };
std::string_view name(FinishReason reason);  // "stop", "length", "stop_string", "cancelled"

struct Timings { double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0, ttft_seconds = 0; };

// What the engine tells about a request. Exactly one terminal event: finish != none, or error.
struct RequestEvent {
  std::vector<StepToken> tokens;
  std::vector<StepLogits> logits;
  FinishReason finish = FinishReason::none;
  int32_t matched_id = -1;           // the stop id
  std::optional<Error> error;        // terminal: the stream failed
  // Of the terminal event. completion_tokens: how many of the tokens pushed count (a stop string ends before the last of them);
  // cached_tokens: prompt tokens that were not computed again.
  int32_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  Timings timings;                   // filled with the terminal event
};

// Where events go. push() is called on the engine's thread and must not block; a sink whose reader is slow keeps the events (they are
// bounded by the request's max_tokens).
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void push(RequestEvent event) = 0;
};

}  // namespace tandem
