// The file of `generate --prompts`: one prompt a line, or, in a file whose name ends in .jsonl, one JSON object a line.
#pragma once
#include <string>
#include <vector>

#include "launch/options.h"

namespace tandem {

struct PromptLine {
  int number = 0;  // in the file, from 1
  Ask ask;
};

// An object has one of "prompt", "prompt_ids" and "messages" (with "tools"), and may have "system" and what the wire calls sampling and
// stopping: temperature, top_k, top_p, min_p, typical_p, repetition_penalty, presence_penalty, frequency_penalty, no_repeat_ngram_size, logit_bias,
// allowed_token_ids, echo, seed, logprobs,
// max_tokens, min_tokens, stop (a text or a list), ignore_eos. What it leaves out is as `common` says. Empty lines are passed over.
// Errors: as read_text_file's; Code::invalid_argument naming "<file>:<line>".
std::vector<PromptLine> read_prompts(const std::string& path, const PromptOptions& common);

}  // namespace tandem
