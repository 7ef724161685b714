// Every command, one file each. A command registers a subcommand with its options, help text and example, and what to do: the function
// returns the exit code, or throws Error (main prints it: exit 2 for bad input, else 1).
#pragma once
#include <CLI/CLI.hpp>
#include <functional>

namespace tandem {

using Action = std::function<int()>;
struct Command {
  CLI::App* app = nullptr;
  Action run;
  bool on_every_rank = false;  // under mpirun; else only rank 0 runs it
};

// THE list is in commands.cc.
Command add_plan(CLI::App& app);
Command add_probe(CLI::App& app);
Command add_generate(CLI::App& app);
Command add_serve(CLI::App& app);
Command add_worker(CLI::App& app);
Command add_client(CLI::App& app);
Command add_chat(CLI::App& app);
Command add_inspect(CLI::App& app);
Command add_tokenize(CLI::App& app);
Command add_logits(CLI::App& app);
Command add_perplexity(CLI::App& app);
Command add_bench(CLI::App& app);
Command add_quantize(CLI::App& app);

std::vector<Command> add_commands(CLI::App& app);

}  // namespace tandem
