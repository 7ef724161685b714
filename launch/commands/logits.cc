// tandem logits: the model's output for given ids, as a NumPy file.
#include <optional>

#include "kernels/base/error.h"
#include "launch/ask_engine.h"
#include "launch/commands/commands.h"
#include "launch/npy.h"

namespace tandem {
namespace {

struct Options {
  DeployOptions deploy;
  std::string ids, output;
};

int logits(Options& o, ThisJob& job) {
  const std::vector<int32_t> ids = parse_ids(o.ids, "--prompt-ids");
  o.deploy.plan.all_logits = true;
  o.deploy.needs_text = false;
  std::optional<NpyWriter> file;
  o.deploy.check = [&](const Deployment& deployment) {
    const int64_t vocab = deployment.blueprint.model->shape.vocab;
    for (const int32_t id : ids) {
      if (id >= vocab) bad_input("--prompt-ids", "holds " + std::to_string(id) + " (must be ids of the vocabulary, 0 to " + std::to_string(vocab - 1) + ")");
    }
    if (const int32_t context = deployment.plan.workload.context; ids.size() > static_cast<size_t>(context)) {
      bad_input("--prompt-ids", "are " + std::to_string(ids.size()) + " tokens (at most the context, " + std::to_string(context) + ")");
    }
    file.emplace(o.output, static_cast<int64_t>(ids.size()), vocab);
  };
  const auto deployment = Deployment::start(o.deploy, job);
  deployment->wait_ready();
  int64_t next = 0;
  prompt_logits(*deployment, ids, [&](const StepLogits& piece) {
    if (piece.first != next) fail(Code::internal, "logits", "came out of order");
    next += piece.rows;
    file->write(piece.values);
  });
  file->finish();
  return 0;
}

}  // namespace

Command add_logits(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->deploy.plan.size.chunk = 64;
  CLI::App* command = app.add_subcommand("logits", "The model's output for given token ids, float32 [tokens, vocab]");
  add_options(*command, options->deploy.model);
  command->add_option("--prompt-ids", options->ids, "token ids: 1,2,3")->required();
  command->add_option("-o,--output", options->output, "NumPy file to write")->required();
  add_options(*command, options->deploy.plan.place);
  add_options(*command, options->deploy.plan.size);
  add_options(*command, options->deploy.plan.budget);
  add_trace_option(*command, options->deploy.trace);
  command->footer("Example: tandem logits SmolLM2.gguf --compute fp32 --prompt-ids 1,2,3 -o logits.npy");
  return {command, [options] { return run_on_ranks([&](ThisJob& job) { return logits(*options, job); }); }, true};
}

}  // namespace tandem
