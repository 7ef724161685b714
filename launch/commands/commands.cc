#include "launch/commands/commands.h"

#include "launch/help.h"

namespace tandem {

std::vector<Command> add_commands(CLI::App& app) {
  use_one_screen_help(app);
  return {add_plan(app),    add_generate(app), add_serve(app),  add_client(app),     add_chat(app),  add_inspect(app),
          add_tokenize(app), add_logits(app),  add_perplexity(app), add_bench(app), add_worker(app)};
}

}  // namespace tandem
