// tandem perplexity: exp(mean negative log-likelihood) of a text.
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "launch/ask_engine.h"
#include "launch/commands/commands.h"
#include "launch/progress.h"
#include "launch/terminal.h"
#include "launch/text_file.h"

namespace tandem {
namespace {

struct Options {
  DeployOptions deploy;
  std::string file;
  int32_t window = 512;
  bool json = false;
};

// -log softmax(row)[target], in double.
double negative_log_likelihood(const float* row, int64_t vocab, int32_t target) {
  float most = row[0];
  for (int64_t i = 1; i < vocab; ++i) most = std::max(most, row[i]);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(row[i]) - static_cast<double>(most));
  return std::log(sum) + static_cast<double>(most) - static_cast<double>(row[target]);
}

int perplexity(Options& o, ThisJob& job) {
  constexpr size_t kMostBytes = 1 << 30;
  const std::string text = read_text_file(o.file, kMostBytes);
  if (o.window < 2) bad_input("--context", "is " + std::to_string(o.window) + " (must be at least 2)");
  o.deploy.plan.all_logits = true;
  o.deploy.plan.size.context = o.window;
  std::vector<int32_t> ids;
  o.deploy.check = [&](const Deployment& deployment) {
    const Tokenizer* tokenizer = deployment.text->side.tokenizer;
    if (!tokenizer) bad_input(o.deploy.model.model, "has no tokenizer (a directory with tokenizer.json or tokenizer.model, or a .gguf file, is needed)");
    ids = tokenizer->encode(text, true);
    if (ids.size() < 2) bad_input(o.file, "is too short (at least two tokens)");
  };
  const auto deployment = Deployment::start(o.deploy, job);
  deployment->wait_ready();
  const int64_t vocab = deployment->blueprint.model->shape.vocab;
  double total = 0;
  int64_t counted = 0;
  Progress progress("perplexity", 1, "tokens");
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(o.window)) {
    const size_t end = std::min(ids.size(), begin + static_cast<size_t>(o.window));
    if (end - begin < 2) break;  // every id but the first of its window counts
    const std::vector<int32_t> window(ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(end));
    prompt_logits(*deployment, window, [&](const StepLogits& piece) {
      for (int32_t row = 0; row < piece.rows; ++row) {
        const auto target = static_cast<size_t>(piece.first + row) + 1;
        if (target >= window.size()) continue;
        total += negative_log_likelihood(piece.values.data() + static_cast<int64_t>(row) * vocab, vocab, window[target]);
        ++counted;
      }
    });
    progress.update(0, end, ids.size());
  }
  progress.finish();
  const double mean = total / static_cast<double>(counted);
  if (o.json) {
    std::printf("%s\n", nlohmann::ordered_json{{"tokens", counted}, {"mean_nll", mean}, {"perplexity", std::exp(mean)}}.dump().c_str());
  } else {
    std::printf("perplexity %.4f over %lld tokens (compute %s, windows of %d)\n", std::exp(mean), static_cast<long long>(counted), deployment->compute.c_str(), o.window);
  }
  return 0;
}

}  // namespace

Command add_perplexity(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->deploy.plan.size.chunk = 64;
  CLI::App* command = app.add_subcommand("perplexity", "exp(mean negative log-likelihood) of a text, windows of --context tokens");
  add_options(*command, options->deploy.model);
  command->add_option("FILE", options->file, "UTF-8 text")->required();
  command->add_option("--context", options->window, "tokens a window; all but its first count")->capture_default_str();
  command->add_option("--chunk", options->deploy.plan.size.chunk, "tokens a step")->capture_default_str();
  add_options(*command, options->deploy.plan.place);
  add_options(*command, options->deploy.plan.budget);
  add_trace_option(*command, options->deploy.trace);
  command->add_flag("--json", options->json, "machine-readable");
  command->footer("Example: tandem perplexity SmolLM2.gguf README.md --context 512");
  return {command, [options] { return run_on_ranks([&](ThisJob& job) { return perplexity(*options, job); }); }, true};
}

}  // namespace tandem
