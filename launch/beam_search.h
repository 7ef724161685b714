// Beam search (--beams), as transformers' does it with early_stopping off: one call a beam and token, which the prefix cache makes cheap.
// The engine knows nothing of it.
#pragma once
#include <vector>

#include "launch/choices.h"

namespace tandem {

struct BeamOptions {
  int32_t beams = 1;
  double length_penalty = 1;  // a finished answer's score is its log-probability / its tokens to this power
};

// The best answer's ids and its score. `stops`: distinct end tokens. Errors: ask_once's; invalid_argument when there are more beams than
// the reported log-probabilities can feed.
struct BeamAnswer {
  std::vector<int32_t> ids;
  double score = 0;
  bool stopped = false;  // by an end token, which is the last id
};
BeamAnswer beam_search(const std::vector<int32_t>& prompt, int32_t max_tokens, const std::vector<int32_t>& stops, const BeamOptions& options,
                       const AskOnce& ask_once);

}  // namespace tandem
