#include "launch/commands/commands.h"

#include <set>

#include "launch/help.h"

namespace tandem {

namespace {

// An empty value is a script's unset variable, not a wish for the default. Texts may be empty.
void refuse_empty_values(CLI::App& app) {
  const std::set<std::string> texts = {"--prompt", "--system", "--stop"};
  for (CLI::Option* option : app.get_options()) {
    if (option->get_type_size() == 0 || texts.contains(option->get_name())) continue;
    option->check(CLI::Validator([](const std::string& value) -> std::string { return value.empty() ? "is empty (leave it out, or give a value)" : ""; }, ""));
  }
}

}  // namespace

std::vector<Command> add_commands(CLI::App& app) {
  use_one_screen_help(app);
  std::vector<Command> commands = {add_plan(app),    add_probe(app),    add_generate(app), add_serve(app),  add_client(app),     add_chat(app),  add_inspect(app),
          add_tokenize(app), add_logits(app),  add_perplexity(app), add_bench(app), add_quantize(app), add_worker(app)};
  for (const Command& command : commands) {
    refuse_empty_values(*command.app);
    command.app->fallthrough();  // --log-level, --version
  }
  return commands;
}

}  // namespace tandem
