// tandem client: sends one prompt to a server, prints the answer as it comes.
#include <cstdio>
#include <memory>

#include "launch/answer_json.h"
#include "launch/choices.h"
#include "launch/commands/commands.h"
#include "launch/options.h"
#include "launch/remote.h"
#include "launch/signals.h"
#include "launch/terminal.h"
#include "rpc/client.h"

namespace tandem {
namespace {

struct Options {
  RemoteOptions remote;
  PromptOptions prompt;
  ChoiceOptions choices;
  bool json = false;
};

void append(AnswerDelta& all, const AnswerDelta& delta) {
  all.text += delta.text;
  all.token_ids.insert(all.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
  all.logprobs.insert(all.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
}

std::string json_line(const LocalAnswer& answer) {
  AnswerTimes times{.ttft_seconds = answer.end.timings.ttft_seconds};
  const int32_t later = answer.end.completion_tokens - 1;  // the first token is the prompt's work
  if (later > 0 && answer.end.timings.decode_seconds > 0) times.decode_tokens_per_second = later / answer.end.timings.decode_seconds;
  return answer_json(answer.all, answer.end, times).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

int client(const Options& o) {
  check_address(o.remote);
  Ask ask = ask_of(o.prompt);
  ask.return_prompt_ids = o.json;
  auto call = std::make_shared<Client::Call>();
  on_interrupt_signal([call] { call->cancel(); });
  return report_status([&] {
    Client client(o.remote.address, {.connect_seconds = o.remote.connect_seconds});
    const bool streamed = !o.json && choices_made(o.choices) == 1;
    const std::vector<LocalAnswer> answers = ask_choices(ask, o.choices, 1, [&](const Ask& mine) {
      LocalAnswer answer;
      const auto take = [&](const AnswerDelta& delta) {
        append(answer.all, delta);
        if (streamed) show_now(stdout, delta.text);
      };
      answer.end = client.generate(mine, take, o.remote.deadline_seconds, call.get());
      return answer;
    });
    for (const LocalAnswer& answer : answers) write_now(stdout, o.json ? json_line(answer) : (streamed ? "" : answer.all.text) + "\n");
    return 0;
  });
}

}  // namespace

Command add_client(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("client", "Asks a server one thing, prints the answer as it comes");
  add_options(*command, options->remote);
  add_options(*command, options->prompt);
  add_options(*command, options->choices);
  command->add_flag("--json", options->json, "the whole answer as JSON, with token ids and timings");
  command->footer("Example: tandem client 127.0.0.1:8001 --prompt 'The capital of France is' --max-tokens 16");
  return {command, [options] { return client(*options); }};
}

}  // namespace tandem
