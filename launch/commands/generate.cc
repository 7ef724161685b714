// tandem generate: one answer on stdout, streamed.
#include <cstdio>

#include "launch/answer_json.h"
#include "launch/ask_engine.h"
#include "launch/commands/commands.h"

namespace tandem {
namespace {

struct Options {
  DeployOptions deploy;
  PromptOptions prompt;
  bool json = false;
};

int generate(Options& o, ThisJob& job) {
  Ask ask = ask_of(o.prompt);
  ask.return_prompt_ids = o.json;
  const auto deployment = Deployment::start(o.deploy, job);
  deployment->wait_ready();
  const LocalAnswer answer = ask_engine(*deployment, ask, [&](const AnswerDelta& delta) {
    if (o.json) return;
    std::fwrite(delta.text.data(), 1, delta.text.size(), stdout);
    std::fflush(stdout);
  });
  if (!o.json) {
    std::fputc('\n', stdout);
    return 0;
  }
  AnswerTimes times{deployment->load_seconds, answer.ttft_seconds, 0};
  if (answer.decode_seconds > 0) times.decode_tokens_per_second = static_cast<double>(answer.all.token_ids.size() - 1) / answer.decode_seconds;
  std::printf("%s\n", answer_json(answer.all, answer.end, times).dump().c_str());
  return 0;
}

}  // namespace

Command add_generate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "One answer on stdout, streamed as it is made");
  add_options(*command, options->deploy.model);
  add_options(*command, options->prompt);
  add_options(*command, options->deploy.plan.place);
  add_options(*command, options->deploy.plan.size);
  add_options(*command, options->deploy.plan.budget);
  command->add_flag("--json", options->json, "the whole answer as JSON, with token ids and timings");
  command->footer("Example: tandem generate SmolLM2.gguf --system 'You are brief.' --prompt 'What is a GPU?' --max-tokens 64");
  return {command, [options] { return run_on_ranks([&](ThisJob& job) { return generate(*options, job); }); }};
}

}  // namespace tandem
