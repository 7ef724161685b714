#include "launch/prompt_logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "launch/ask_engine.h"

namespace tandem {
namespace {

TokenLogprob logprob_of(const float* logits, int32_t vocab, int32_t id, int32_t top) {
  const double highest = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int32_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - highest);
  const double log_total = highest + std::log(sum);
  TokenLogprob out{id, static_cast<float>(logits[id] - log_total), {}};
  if (top == 0) return out;
  std::vector<int32_t> order(static_cast<size_t>(vocab));
  std::iota(order.begin(), order.end(), 0);
  const auto last = order.begin() + std::min(top, vocab);
  std::partial_sort(order.begin(), last, order.end(), [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  for (auto at = order.begin(); at != last; ++at) out.top.emplace_back(*at, static_cast<float>(logits[*at] - log_total));
  return out;
}

}  // namespace

std::vector<TokenLogprob> prompt_logprobs(Deployment& deployment, const std::vector<int32_t>& prompt, int32_t top) {
  const int32_t vocab = deployment.text->side.vocab;
  std::vector<TokenLogprob> out(prompt.size() - 1);
  prompt_logits(deployment, prompt, [&](const StepLogits& logits) {
    for (int32_t row = 0; row < logits.rows; ++row) {
      const auto next = static_cast<size_t>(logits.first + row) + 1;
      if (next < prompt.size()) out[next - 1] = logprob_of(logits.values.data() + static_cast<size_t>(row) * static_cast<size_t>(vocab), vocab, prompt[next], top);
    }
  });
  return out;
}

}  // namespace tandem
