// Several answers to one prompt (--n, --best-of): the same call with one seed and choice 0, 1, 2, ... Whoever asks says how one is made.
#pragma once
#include <functional>
#include <vector>

#include "launch/ask_engine.h"
#include "launch/options.h"

namespace tandem {

using AskOnce = std::function<LocalAnswer(const Ask&)>;

// n answers: in order of their choice, or with best_of the likeliest first. `at_once` of them are asked for at the same time, from other
// threads; more than one also when best_of is 1. Errors: the first call's; invalid_argument when best_of is less than n.
std::vector<LocalAnswer> ask_choices(const Ask& ask, const ChoiceOptions& options, size_t at_once, const AskOnce& ask_once);
int32_t choices_made(const ChoiceOptions& options);

}  // namespace tandem
