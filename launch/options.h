// The command line's options, as plain structs with a default and a sentence a field; commands take the groups that they need. Names,
// defaults and help are said once, in options.cc. Values only.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rpc/ask.h"
#include "runtime/model/blueprint.h"
#include "sharding/plan.h"

namespace tandem {

struct ModelOptions {           // what to run and in which numbers
  std::string model;
  std::string format = "keep";
  bool double_quant = false;
  std::string compute = "auto", kv_dtype = "auto";
  std::string weights;          // "": from the files; "synthetic", "synthetic:SEED"
};
struct PlaceOptions {           // where
  std::string device = "auto";
  int ranks = 0, pp = 0, tp = 0, ep = 0, threads = 0;  // 0: chosen
  std::string plan_file;        // --plan: run exactly that
};
struct SizeOptions {
  int32_t context = 0;          // 0: min(the model's, 4096)
  int32_t max_batch = 0;        // 0: the command's default
  int32_t chunk = 0;            // 0: what suits the device
  int32_t page = 64, max_queue = 256;
};
struct BudgetOptions {
  std::string max_memory, gpus, cluster, reserve, objective = "latency";
};
struct PromptOptions {          // prompt and sampling, as generate and client take them
  std::string prompt, prompt_ids, chat_file, system;
  bool has_prompt = false, has_ids = false, has_chat = false;  // given, be it empty
  Ask ask;                      // sampling and stopping fields filled by the parser
};
constexpr int32_t kMostChoices = 64;
struct ChoiceOptions {          // several answers to one prompt
  int32_t n = 1, best_of = 0;   // best_of 0: n
};
struct OutputOptions { bool json = false; };

void add_options(CLI::App& app, ModelOptions& options);
void add_format_options(CLI::App& app, ModelOptions& options);  // of those, what says which weights in which format
void add_options(CLI::App& app, PlaceOptions& options);
void add_options(CLI::App& app, SizeOptions& options);
void add_options(CLI::App& app, BudgetOptions& options);
void add_options(CLI::App& app, PromptOptions& options);
void add_options(CLI::App& app, ChoiceOptions& options);
void add_trace_option(CLI::App& app, std::string& file);  // --trace, of every command that runs a model
void add_sampling_options(CLI::App& app, Ask& ask);  // sampling and stopping alone; PromptOptions has them

// Errors: Code::invalid_argument naming the option.
Arithmetic arithmetic_of(const ModelOptions& options, bool on_gpu);
std::optional<uint64_t> synthetic_seed(const ModelOptions& options);  // --weights; nothing: the files' own
Blueprint make_blueprint(const ModelOptions& options, bool on_gpu);   // of what the options name
Ask ask_of(const PromptOptions& options);                       // reads --chat's file, parses --prompt-ids
std::vector<int32_t> parse_ids(const std::string& text, const std::string& option);
TokenBias parse_bias(const std::string& text);                   // "ID=VALUE"
CLI::Validator whole(int64_t least, int64_t most);
// For an option's value that is a number, infinities and NaN refused.
CLI::Validator between(double least, double most);
Objective parse_objective(const std::string& text);

}  // namespace tandem
