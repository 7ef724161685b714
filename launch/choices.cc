#include "launch/choices.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <random>
#include <thread>

#include "kernels/base/error.h"

namespace tandem {
namespace {

double mean_logprob(const LocalAnswer& answer) {
  double sum = 0;
  for (const TokenLogprob& token : answer.all.logprobs) sum += static_cast<double>(token.logprob);
  return answer.all.logprobs.empty() ? 0 : sum / static_cast<double>(answer.all.logprobs.size());
}

}  // namespace

int32_t choices_made(const ChoiceOptions& options) { return options.best_of ? options.best_of : options.n; }

std::vector<LocalAnswer> ask_choices(const Ask& ask, const ChoiceOptions& options, size_t at_once, const AskOnce& ask_once) {
  if (options.best_of && options.best_of < options.n) {
    bad_input("--best-of", "is " + std::to_string(options.best_of) + " (at least --n, " + std::to_string(options.n) + ")");
  }
  const auto count = static_cast<size_t>(choices_made(options));
  const bool ranked = options.best_of > options.n;
  Ask common = ask;
  if (!common.seed) {
    std::random_device random;
    common.seed = static_cast<uint64_t>(random()) << 32 | random();
  }
  if (ranked && !common.logprobs) common.logprobs = 0;

  std::vector<LocalAnswer> answers(count);
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    for (size_t i; (i = next++) < count;) {
      try {
        Ask mine = common;
        mine.choice = static_cast<uint32_t>(i);
        answers[i] = ask_once(mine);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        next = count;
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (size_t i = 1; i < std::min(count, at_once); ++i) threads.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
  if (ranked) {
    std::stable_sort(answers.begin(), answers.end(), [](const LocalAnswer& a, const LocalAnswer& b) { return mean_logprob(a) > mean_logprob(b); });
    answers.resize(static_cast<size_t>(options.n));
    if (!ask.logprobs) {
      for (LocalAnswer& answer : answers) answer.all.logprobs.clear();
    }
  }
  return answers;
}

}  // namespace tandem
