// tandem perplexity: exp(mean negative log-likelihood) of a text.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "launch/ask_engine.h"
#include "launch/commands/commands.h"
#include "launch/logit_scores.h"
#include "launch/progress.h"
#include "launch/terminal.h"
#include "launch/text_file.h"
#include "launch/weight_survey.h"
#include "sharding/cluster.h"

namespace tandem {
namespace {

struct Options {
  DeployOptions deploy;
  std::string file, compare;
  int32_t window = 512;
  bool json = false;
};

struct Side {  // one format
  std::string format;
  std::unique_ptr<Deployment> deployment;
  double nll = 0, divergence = 0;  // sums over the tokens that count; of the first format's distribution from this one's
  int64_t agreed = 0;
};

// Logits of all rows but the last of a window, [rows, vocab]: those that are asked for the next id.
std::vector<float> window_logits(Deployment& deployment, const std::vector<int32_t>& window, int64_t vocab) {
  std::vector<float> rows((window.size() - 1) * static_cast<size_t>(vocab));
  prompt_logits(deployment, window, [&](const StepLogits& piece) {
    const auto begin = static_cast<size_t>(piece.first) * static_cast<size_t>(vocab);
    if (begin >= rows.size()) return;
    const size_t count = std::min(static_cast<size_t>(piece.rows) * static_cast<size_t>(vocab), rows.size() - begin);
    std::copy_n(piece.values.begin(), count, rows.begin() + static_cast<int64_t>(begin));
  });
  return rows;
}

void print(const Options& o, const std::vector<Side>& sides, int64_t counted) {
  const auto n = static_cast<double>(counted);
  if (o.compare.empty()) {
    const Side& side = sides[0];
    const double mean = side.nll / n;
    if (o.json) {
      std::printf("%s\n", nlohmann::ordered_json{{"tokens", counted}, {"mean_nll", mean}, {"perplexity", std::exp(mean)}}.dump().c_str());
    } else {
      std::printf("perplexity %.4f over %lld tokens (compute %s, windows of %d)\n", std::exp(mean), static_cast<long long>(counted), side.deployment->compute.c_str(), o.window);
    }
    return;
  }
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  if (!o.json) {
    std::printf("%lld tokens, windows of %d; KL and agreement against %s\n\n%-24s %-8s %12s %12s %12s %10s %8s\n", static_cast<long long>(counted), o.window, sides[0].format.c_str(), "format", "compute", "footprint",
                "perplexity", "mean KL", "top-1", "change");
  }
  for (const Side& side : sides) {
    const double mean = side.nll / n, agreement = static_cast<double>(side.agreed) / n;
    const uint64_t footprint = footprint_bytes(side.deployment->blueprint);
    list.push_back({{"format", side.format}, {"compute", side.deployment->compute}, {"footprint_bytes", footprint}, {"mean_nll", mean}, {"perplexity", std::exp(mean)}, {"mean_kl", side.divergence / n}, {"top1_agreement", agreement}});
    if (!o.json) {
      std::printf("%-24s %-8s %12s %12.4f %12.6f %8.2f %% %+6.2f %%\n", side.format.c_str(), side.deployment->compute.c_str(), human_bytes(footprint).c_str(), std::exp(mean), side.divergence / n, 100 * agreement,
                  100 * (std::exp(mean - sides[0].nll / n) - 1));
    }
  }
  if (o.json) std::printf("%s\n", nlohmann::ordered_json{{"tokens", counted}, {"context", o.window}, {"formats", list}}.dump().c_str());
}

int perplexity(Options& o, ThisJob& job) {
  constexpr size_t kMostBytes = 1 << 30;
  const std::string text = read_text_file(o.file, kMostBytes);
  if (o.window < 2) bad_input("--context", "is " + std::to_string(o.window) + " (must be at least 2)");
  const bool comparing = !o.compare.empty();
  if (comparing && o.deploy.model.format != "keep") bad_input("--compare", "is given together with --format (it names the formats itself)");
  if (comparing && under_mpirun()) bad_input("--compare", "is given under mpirun (use --ranks N, or --format one after the other)");
  if (comparing && !o.deploy.trace.empty()) bad_input("--trace", "is given together with --compare (trace one --format)");
  o.deploy.plan.all_logits = true;
  o.deploy.plan.size.context = o.window;
  std::vector<int32_t> ids;
  o.deploy.check = [&](const Deployment& deployment) {
    const Tokenizer* tokenizer = deployment.text->side.tokenizer;
    if (!tokenizer) bad_input(o.deploy.model.model, "has no tokenizer (a directory with tokenizer.json or tokenizer.model, or a .gguf file, is needed)");
    ids = tokenizer->encode(text, true);
    if (ids.size() < 2) bad_input(o.file, "is too short (at least two tokens)");
  };
  std::vector<Side> sides;
  const std::vector<std::string> formats = comparing ? split_formats(o.compare, "--compare") : std::vector{o.deploy.model.format};
  if (comparing && o.deploy.model.weights.empty()) {  // what is wrong with the last is said before the first is loaded
    for (const std::string& format : formats) make_blueprint(o.deploy.model.model, {format, o.deploy.model.double_quant}, {});
  }
  for (const std::string& format : formats) {
    o.deploy.model.format = format;
    sides.push_back({format, Deployment::start(o.deploy, job)});
    sides.back().deployment->wait_ready();
  }
  const int64_t vocab = sides[0].deployment->blueprint.model->shape.vocab;
  int64_t counted = 0;
  Progress progress("perplexity", 1, "tokens");
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(o.window)) {
    const size_t end = std::min(ids.size(), begin + static_cast<size_t>(o.window));
    if (end - begin < 2) break;  // every id but the first of its window counts
    const std::vector<int32_t> window(ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(end));
    std::vector<float> first;
    for (Side& side : sides) {
      const std::vector<float> logits = window_logits(*side.deployment, window, vocab);
      const bool is_first = &side == &sides[0];
      for (size_t row = 0; row + 1 < window.size(); ++row) {
        const std::span<const float> mine(logits.data() + row * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
        side.nll += negative_log_likelihood(mine, window[row + 1]);
        if (is_first) continue;
        const std::span<const float> theirs(first.data() + row * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
        side.divergence += divergence(theirs, mine);
        side.agreed += same_best(theirs, mine);
      }
      if (is_first) {
        side.agreed += static_cast<int64_t>(window.size()) - 1;
        if (comparing) first = logits;
      }
      progress.update(0, begin * sides.size() + (end - begin) * static_cast<size_t>(&side - sides.data() + 1), ids.size() * sides.size());
    }
    counted += static_cast<int64_t>(window.size()) - 1;
  }
  progress.finish();
  print(o, sides, counted);
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
  command->add_option("--compare", options->compare, "formats side by side, as fp32,int8,nf4; all are held at once");
  command->add_flag("--json", options->json, "machine-readable");
  command->footer("The text is tokenized once and cut into windows; exp of the mean -log p(id | ids before it in its window),\n"
                  "as transformers' loss on the same windows. --compare adds the mean KL(first || format) in nats a token\n"
                  "and how often both would choose the same next id.\n\n"
                  "Example: tandem perplexity SmolLM2-135M README.md --context 512 --compare fp32,int8,nf4");
  return {command, [options] { return run_on_ranks([&](ThisJob& job) { return perplexity(*options, job); }); }, true};
}

}  // namespace tandem
