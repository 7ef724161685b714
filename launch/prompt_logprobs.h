// Log-probabilities of a prompt's own tokens (--prompt-logprobs): one pass over the prompt whose logits all come back.
#pragma once
#include <vector>

#include "launch/wiring.h"
#include "rpc/ask.h"

namespace tandem {

// One entry for each token but the first: its log-probability after those before it, and the `top` best. Errors: the engine's.
std::vector<TokenLogprob> prompt_logprobs(Deployment& deployment, const std::vector<int32_t>& prompt, int32_t top);

}  // namespace tandem
