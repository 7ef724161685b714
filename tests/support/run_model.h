// Runs a checkpoint as the commands do (plan, ranks as threads, engine), for tests: logits of a prompt and a greedy continuation.
#pragma once
#include <string>
#include <vector>

#include "launch/ask_engine.h"

namespace tandem::testing {

struct RunOptions {
  std::string format = "keep", compute = "fp32";
  int pp = 1, tp = 1, ep = 1, threads = 1;
  bool double_quant = false;
  int32_t chunk = 64, page = 16, context = 128, batch = 4;
};

inline std::unique_ptr<Deployment> deploy(const std::string& model, const RunOptions& o, bool all_logits) {
  DeployOptions options;
  options.model.model = model;
  options.model.format = o.format;
  options.model.double_quant = o.double_quant;
  options.model.compute = o.compute;
  options.plan.place.pp = o.pp;
  options.plan.place.tp = o.tp;
  options.plan.place.ep = o.ep;
  options.plan.place.ranks = o.pp * o.tp * o.ep;
  options.plan.place.threads = o.threads;
  options.plan.size.context = o.context;
  options.plan.size.max_batch = o.batch;
  options.plan.size.chunk = o.chunk;
  options.plan.size.page = o.page;
  options.plan.all_logits = all_logits;
  options.needs_text = false;
  options.check_digests = true;
  ThisJob none;
  auto deployment = Deployment::start(options, none);
  deployment->wait_ready();
  return deployment;
}

inline std::vector<float> logits_of(const std::string& model, const std::vector<int32_t>& prompt, const RunOptions& o = {}) {
  const auto deployment = deploy(model, o, true);
  std::vector<float> all;
  prompt_logits(*deployment, prompt, [&](const StepLogits& piece) { all.insert(all.end(), piece.values.begin(), piece.values.end()); });
  return all;
}

inline std::vector<int32_t> greedy(Deployment& deployment, const std::vector<int32_t>& prompt, int32_t tokens) {
  Ask ask;
  ask.input = prompt;
  ask.temperature = 0;
  ask.max_tokens = tokens;
  ask.ignore_eos = true;
  return ask_engine(deployment, ask, {}).all.token_ids;
}

inline std::vector<int32_t> greedy_of(const std::string& model, const std::vector<int32_t>& prompt, int32_t tokens, const RunOptions& o = {}) {
  const auto deployment = deploy(model, o, false);
  return greedy(*deployment, prompt, tokens);
}

}  // namespace tandem::testing
