// tandem generate: one answer on stdout, streamed; or the answers to a file of prompts, as JSON lines.
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <utility>
#include <variant>

#include "kernels/base/error.h"
#include "launch/answer_json.h"
#include "launch/ask_engine.h"
#include "launch/beam_search.h"
#include "launch/choices.h"
#include "launch/commands/commands.h"
#include "launch/help.h"
#include "launch/progress.h"
#include "launch/prompt_logprobs.h"
#include "launch/prompts_file.h"
#include "launch/terminal.h"
#include "rpc/prepare.h"
#include "runtime/text/tokenizer.h"

namespace tandem {
namespace {

constexpr int kDefaultBatch = 8;    // of --prompts
constexpr size_t kMostHeld = 1024;  // answers that wait for an earlier one

struct Options {
  DeployOptions deploy;
  PromptOptions prompt;
  ChoiceOptions choices;
  BeamOptions beams;
  std::string prompts_file;
  int32_t prompt_logprobs = -1;  // -1: none
  bool json = false;
};

// What a server would call a failed precondition is a wrong model or prompt here.
void check_input(const Ask& ask, const Deployment& deployment) {
  const TextSide& text = deployment.text->side;
  const std::string& model = deployment.blueprint.checkpoint.path;
  const bool ids = std::holds_alternative<std::vector<int32_t>>(ask.input);
  if (!text.tokenizer && (!ids || !ask.stop_strings.empty())) bad_input(model, "has no tokenizer (a directory with tokenizer.json, or --prompt-ids without --stop)");
  if (!text.chat && std::holds_alternative<ChatInput>(ask.input)) bad_input(model, "has no chat template (use --prompt without --system)");
  (void)prepare(ask, text);
}

std::string line_of(const nlohmann::ordered_json& json) { return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"; }

nlohmann::ordered_json json_of(const Deployment& deployment, const LocalAnswer& answer) {
  AnswerTimes times{deployment.load_seconds, answer.ttft_seconds, 0};
  if (answer.decode_seconds > 0) times.decode_tokens_per_second = static_cast<double>(answer.all.token_ids.size() - 1) / answer.decode_seconds;
  return answer_json(answer.all, answer.end, times);
}

std::string ids_text(const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

// --n and --best-of: shown once all of them are there.
int generate_choices(Options& o, Deployment& deployment, const Ask& ask) {
  const bool greedy = prepare(ask, deployment.text->side).request.sampling.temperature == 0;
  if (greedy) bad_input("--temperature", "is 0, which gives one answer only (above 0 with --n and --best-of)");
  const auto at_once = static_cast<size_t>(deployment.plan.workload.batch);
  const std::vector<LocalAnswer> answers = ask_choices(ask, o.choices, at_once, [&](const Ask& mine) { return ask_engine(deployment, mine, {}); });
  for (const LocalAnswer& answer : answers) {
    const std::string shown = deployment.text->side.tokenizer ? answer.all.text : ids_text(answer.all.token_ids);
    write_now(stdout, o.json ? line_of(json_of(deployment, answer)) : shown + "\n");
  }
  return 0;
}

void check_beams(const Options& o) {
  const Ask& a = o.prompt.ask;
  const bool sampled = a.temperature || a.top_k || a.top_p || a.min_p || a.typical_p || a.repetition_penalty || a.presence_penalty || a.frequency_penalty ||
                       a.no_repeat_ngram || !a.logit_bias.empty() || !a.allowed_ids.empty() || a.logprobs || !a.stop_strings.empty() || a.min_tokens || a.echo;
  if (sampled || choices_made(o.choices) > 1) bad_input("--beams", "is given with sampling, penalties, --stop, --logprobs, --min-tokens, --echo or --n (beams take none of them)");
  if (!o.prompts_file.empty()) bad_input("--beams", "is given with --prompts (one prompt)");
}

int generate_by_beams(Options& o, Deployment& deployment, const Ask& ask) {
  const TextSide& text = deployment.text->side;
  const Prepared prepared = prepare(ask, text);
  const Request& request = prepared.request;
  const AskOnce ask_once = [&](const Ask& mine) { return ask_engine(deployment, mine, {}); };
  const Clock::time_point started = Clock::now();
  const BeamAnswer best = beam_search(request.prompt, request.stopping.max_tokens, request.stopping.stop_ids, o.beams, ask_once);
  LocalAnswer answer;
  answer.all.token_ids = best.ids;
  if (text.tokenizer) answer.all.text = text.tokenizer->decode(best.ids, true);
  answer.end.reason = best.stopped ? FinishReason::stop : FinishReason::length;
  answer.end.prompt_tokens = static_cast<int32_t>(request.prompt.size());
  answer.end.completion_tokens = static_cast<int32_t>(best.ids.size());
  answer.end.prompt_ids = request.prompt;
  answer.end.compute = text.compute;
  answer.decode_seconds = std::chrono::duration<double>(Clock::now() - started).count();
  nlohmann::ordered_json json = json_of(deployment, answer);
  json["score"] = best.score;
  write_now(stdout, o.json ? line_of(json) : (text.tokenizer ? answer.all.text : ids_text(best.ids)) + "\n");
  return 0;
}

int generate_one(Options& o, ThisJob& job) {
  Ask ask = ask_of(o.prompt);
  ask.return_prompt_ids = o.json;
  if (o.prompt_logprobs >= 0 && !o.json) bad_input("--prompt-logprobs", "is given without --json (they are shown as JSON)");
  if (o.beams.beams > 1) check_beams(o);
  o.deploy.plan.all_logits = o.prompt_logprobs >= 0;
  o.deploy.plan.default_batch = std::min(std::max(choices_made(o.choices), o.beams.beams), kDefaultBatch);
  o.deploy.check = [&ask](const Deployment& deployment) { check_input(ask, deployment); };
  const auto deployment = Deployment::start(o.deploy, job);
  deployment->wait_ready();
  if (o.beams.beams > 1) return generate_by_beams(o, *deployment, ask);
  if (choices_made(o.choices) > 1) return generate_choices(o, *deployment, ask);
  const bool ids_only = deployment->text->side.tokenizer == nullptr;
  std::string before;  // of an id
  const LocalAnswer answer = ask_engine(*deployment, ask, [&](const AnswerDelta& delta) {
    if (o.json) return;
    std::string ids;
    for (const int32_t id : delta.token_ids) ids += std::exchange(before, ",") + std::to_string(id);
    show_now(stdout, ids_only ? ids : delta.text);
  });
  if (!o.json) {
    write_now(stdout, "\n");
    return 0;
  }
  nlohmann::ordered_json json = json_of(*deployment, answer);
  if (o.prompt_logprobs >= 0) json["prompt_logprobs"] = logprobs_json(prompt_logprobs(*deployment, answer.end.prompt_ids, o.prompt_logprobs));
  write_now(stdout, line_of(json));
  return 0;
}

// Lines that come in any order, taken in order. Whoever is too far ahead waits.
class InOrder {
 public:
  explicit InOrder(size_t count) : lines_(count) {}

  // The next prompt to work on; empty: none is left.
  std::optional<size_t> next() {
    std::unique_lock lock(mutex_);
    if (given_ == lines_.size()) return std::nullopt;
    const size_t mine = given_++;
    changed_.wait(lock, [&] { return failure_ || mine < taken_ + kMostHeld; });
    if (failure_) return std::nullopt;
    return mine;
  }
  void put(size_t index, std::string line) {
    std::lock_guard lock(mutex_);
    lines_[index] = std::move(line);
    changed_.notify_all();
  }
  void fail(std::exception_ptr failure) {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = failure;
    given_ = lines_.size();
    changed_.notify_all();
  }
  std::string take() {  // Errors: what fail() was given
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return failure_ || lines_[taken_]; });
    if (!lines_[taken_]) std::rethrow_exception(failure_);
    std::string line = std::move(*lines_[taken_]);
    lines_[taken_++]->clear();
    changed_.notify_all();
    return line;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::optional<std::string>> lines_;
  size_t given_ = 0, taken_ = 0;
  std::exception_ptr failure_;
};

int generate_many(Options& o, ThisJob& job) {
  if (o.prompt.has_prompt || o.prompt.has_ids || o.prompt.has_chat) bad_input("--prompt", "is given twice (one of --prompt, --prompt-ids, --chat, --prompts)");
  if (choices_made(o.choices) > 1) bad_input("--n", "is given with --prompts (one answer a prompt; write a prompt twice for two)");
  if (o.beams.beams > 1) check_beams(o);
  if (o.prompt_logprobs >= 0) bad_input("--prompt-logprobs", "is given with --prompts (one of them)");
  std::vector<PromptLine> prompts = read_prompts(o.prompts_file, o.prompt);
  o.deploy.plan.default_batch = static_cast<int>(std::min<size_t>(prompts.size(), kDefaultBatch));
  for (PromptLine& line : prompts) line.ask.return_prompt_ids = true;
  o.deploy.check = [&](const Deployment& deployment) {
    for (const PromptLine& line : prompts) {
      try {
        check_input(line.ask, deployment);
      } catch (const Error& error) {
        throw Error(error.code, o.prompts_file + ":" + std::to_string(line.number), error.what());
      }
    }
  };
  const auto deployment = Deployment::start(o.deploy, job);
  deployment->wait_ready();

  // Twice the batch, so that a place never stays empty; no more than the queue takes.
  const size_t batch = static_cast<size_t>(deployment->plan.workload.batch), queue = static_cast<size_t>(o.deploy.plan.size.max_queue);
  const size_t in_flight = std::min(prompts.size(), batch + std::min(batch, queue));
  InOrder answers(prompts.size());
  std::vector<std::jthread> askers;
  for (size_t i = 0; i < in_flight; ++i) {
    askers.emplace_back([&] {
      try {
        while (const std::optional<size_t> index = answers.next()) answers.put(*index, line_of(json_of(*deployment, ask_engine(*deployment, prompts[*index].ask, {}))));
      } catch (...) {
        answers.fail(std::current_exception());
      }
    });
  }
  Progress progress("prompts", 1, "answers");
  try {
    for (size_t i = 0; i < prompts.size(); ++i) {
      write_now(stdout, answers.take());
      progress.update(0, i + 1, prompts.size());
    }
  } catch (...) {
    answers.fail(std::current_exception());
    throw;
  }
  return 0;
}

}  // namespace

Command add_generate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "One answer on stdout, streamed as it is made; or many, from a file. Without a tokenizer: token ids");
  add_options(*command, options->deploy.model);
  add_options(*command, options->prompt);
  add_options(*command, options->choices);
  command->add_option("--beams", options->beams.beams, "beam search of this width instead of sampling")->type_name("N")->check(whole(1, kMaxLogprobs / 2))->group(kMore);
  command->add_option("--length-penalty", options->beams.length_penalty, "of beams: above 1 favours long answers (default 1)")->check(between(-10, 10))->group(kMore);
  command->add_option("--prompt-logprobs", options->prompt_logprobs, "log-probabilities of the prompt's tokens and the K best beside each, with --json")->type_name("K")->check(whole(0, kMaxLogprobs))->group(kMore);
  command->add_option("--prompts", options->prompts_file, "file of prompts, one a line (.jsonl: one object a line); answers as JSON lines");
  add_options(*command, options->deploy.plan.place);
  add_options(*command, options->deploy.plan.size);
  add_options(*command, options->deploy.plan.budget);
  add_trace_option(*command, options->deploy.trace);
  command->add_flag("--json", options->json, "the whole answer as JSON, with token ids and timings");
  command->footer("Example: tandem generate SmolLM2.gguf --system 'You are brief.' --prompt 'What is a GPU?' --max-tokens 64");
  return {command, [options] {
            return run_on_ranks([&](ThisJob& job) { return options->prompts_file.empty() ? generate_one(*options, job) : generate_many(*options, job); });
          }, true};
}

}  // namespace tandem
