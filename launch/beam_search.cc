#include "launch/beam_search.h"

#include <algorithm>
#include <cmath>
#include <future>

#include "kernels/base/error.h"

namespace tandem {
namespace {

struct Beam {
  std::vector<int32_t> ids;  // generated
  double sum = 0;            // of their log-probabilities
};
struct Candidate {
  size_t beam;
  int32_t id;
  double sum;
};

std::vector<std::pair<int32_t, float>> next_of(const Beam& beam, const std::vector<int32_t>& prompt, int32_t best, const AskOnce& ask_once) {
  std::vector<int32_t> ids = prompt;
  ids.insert(ids.end(), beam.ids.begin(), beam.ids.end());
  Ask ask;
  ask.input = std::move(ids);
  ask.temperature = 0;
  ask.max_tokens = 1;
  ask.ignore_eos = true;
  ask.logprobs = best;
  return ask_once(ask).all.logprobs.at(0).top;
}

// The `count` likeliest ways to go on, over all beams.
std::vector<Candidate> candidates_of(const std::vector<Beam>& beams, const std::vector<int32_t>& prompt, int32_t count, const AskOnce& ask_once) {
  std::vector<std::future<std::vector<std::pair<int32_t, float>>>> asked;
  for (const Beam& beam : beams) asked.push_back(std::async(std::launch::async, [&] { return next_of(beam, prompt, count, ask_once); }));
  std::vector<Candidate> all;
  for (size_t b = 0; b < beams.size(); ++b) {
    for (const auto& [id, logprob] : asked[b].get()) all.push_back({b, id, beams[b].sum + static_cast<double>(logprob)});
  }
  std::stable_sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) { return a.sum > b.sum; });
  if (all.size() > static_cast<size_t>(count)) all.resize(static_cast<size_t>(count));
  return all;
}

}  // namespace

BeamAnswer beam_search(const std::vector<int32_t>& prompt, int32_t max_tokens, const std::vector<int32_t>& stops, const BeamOptions& options,
                       const AskOnce& ask_once) {
  const int32_t per_beam = std::max<int32_t>(2, 1 + static_cast<int32_t>(stops.size()));  // so that end tokens never take all
  const auto width = static_cast<size_t>(options.beams);
  if (options.beams < 1 || options.beams > kMaxLogprobs / per_beam) {
    bad_input("--beams", "is " + std::to_string(options.beams) + " (1 to " + std::to_string(kMaxLogprobs / per_beam) + " with this model's end tokens)");
  }
  const auto score_of = [&](double sum, size_t tokens) { return sum / std::pow(static_cast<double>(tokens), options.length_penalty); };
  std::vector<Beam> running(1);
  std::vector<BeamAnswer> finished;  // the best first
  for (int32_t tokens = 1; tokens <= max_tokens && !running.empty(); ++tokens) {
    const std::vector<Candidate> candidates = candidates_of(running, prompt, options.beams * per_beam, ask_once);
    std::vector<Beam> next;
    for (size_t rank = 0; rank < candidates.size(); ++rank) {
      const Candidate& c = candidates[rank];
      std::vector<int32_t> ids = running[c.beam].ids;
      ids.push_back(c.id);
      const bool stopped = std::find(stops.begin(), stops.end(), c.id) != stops.end();
      if (!stopped && tokens < max_tokens) {
        if (next.size() < width) next.push_back({std::move(ids), c.sum});
      } else if (rank < width) {
        finished.push_back({std::move(ids), score_of(c.sum, static_cast<size_t>(tokens)), stopped});
      }
    }
    std::stable_sort(finished.begin(), finished.end(), [](const BeamAnswer& a, const BeamAnswer& b) { return a.score > b.score; });
    if (finished.size() > width) finished.resize(width);
    running = std::move(next);
    const bool hopeless = finished.size() == width && !running.empty() && score_of(running[0].sum, static_cast<size_t>(tokens)) <= finished.back().score;
    if (hopeless) break;
  }
  return finished.at(0);
}

}  // namespace tandem
