// tandem plan: where every layer would go, and whether it fits, before anything is touched.
#include <cstdio>
#include <functional>
#include <optional>

#include "kernels/base/error.h"
#include "launch/commands/commands.h"
#include "launch/devices.h"
#include "launch/help.h"
#include "launch/output_file.h"
#include "launch/plan_html.h"
#include "launch/planning.h"
#include "launch/solve.h"
#include "launch/terminal.h"
#include "launch/topology.h"

namespace tandem {
namespace {

struct Options {
  ModelOptions model;
  PlanRequest request;
  std::string output, html, solve;
  bool json = false, list_presets = false;
};

int list_presets() {
  std::string text = "Models (preset:NAME):\n";
  for (const std::string& name : preset_names()) text += "  " + name + "\n";
  text += "GPUs (--gpus 2xNAME,1xNAME):\n";
  for (const std::string& name : gpu_names()) text += "  " + name + "  " + human_bytes(cluster_from_gpus(name).devices[0].total_bytes) + "\n";
  write_now(stdout, text);
  return 0;
}

int exit_code(Verdict verdict) {
  switch (verdict) {
    case Verdict::fits: return 0;
    case Verdict::tight: return 3;
    case Verdict::no: return 4;
  }
  return 4;
}

constexpr const char* kGpuProvenance = "exact: weights, scales, KV cache, workspace; from a table: overhead\n";
constexpr const char* kCpuProvenance = "exact: weights, scales, KV cache, workspace\n";

// Both files are opened before either is written. `draw` is called when a picture is asked for.
void write_files(const Options& o, const std::string& json, const std::function<std::string()>& draw) {
  std::optional<OutputFile> output, html;
  if (!o.output.empty()) output.emplace("-o", o.output);
  if (!o.html.empty()) html.emplace("--html", o.html);
  if (output) output->write(json), output->finish();
  if (html) html->write(draw()), html->finish();
}

int run_solve(const Options& o) {
  if (o.solve == "frontier" && !o.output.empty()) bad_input("-o", "is given together with --solve frontier, which finds many plans (--solve context or batch finds one)");
  const Solution solution = solve(o.solve, o.model, o.request);
  write_files(o, solution.plan ? to_json(*solution.plan).dump(2) + "\n" : "", [&] { return solution.plan ? plan_html(*solution.plan) : frontier_html(solution); });
  write_now(stdout, o.json ? to_json(solution).dump(2) + "\n" : table(solution, columns(stdout)) + (plans_for_gpus(o.request) ? kGpuProvenance : kCpuProvenance));
  return exit_code(solution.verdict);
}

int run(const Options& o) {
  if (o.list_presets) return list_presets();
  if (o.model.model.empty()) bad_input("MODEL", "is missing (a directory, .gguf file, config.json or preset:NAME)");
  if (!o.solve.empty()) return run_solve(o);
  const bool on_gpu = plans_for_gpus(o.request);
  const Blueprint blueprint = make_blueprint(o.model, on_gpu);
  const auto backend = make_sizes(on_gpu, on_gpu ? 1 : threads_for(o.request.place.threads, cpu_ranks(o.request)));
  const Plan plan = plan_for(blueprint, o.request, *backend);
  const std::string json = to_json(plan).dump(2) + "\n";
  write_files(o, json, [&] { return plan_html(plan); });
  if (o.json) {
    write_now(stdout, json);
  } else {
    write_now(stdout, table(plan, columns(stdout)) + (on_gpu ? kGpuProvenance : kCpuProvenance));
  }
  return exit_code(plan.verdict);
}

}  // namespace

Command add_plan(CLI::App& app) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* command = app.add_subcommand("plan", "Where every layer would go and whether it fits; no GPU, no weights read");
  add_options(*command, o.model);
  command->get_option("MODEL")->description("Hugging Face directory, .gguf file, config.json or preset:NAME");
  command->get_option("MODEL")->required(false);
  add_options(*command, o.request.budget);
  add_options(*command, o.request.size);
  add_options(*command, o.request.place);
  const std::string group = command->get_option("--context")->get_group();
  for (const char* name : {"--max-memory", "--gpus", "--cluster", "--reserve", "--objective", "--chunk", "--page", "--double-quant"}) {
    command->get_option(name)->group(group);
  }
  command->add_option("--solve", o.solve, "the most that fits: context, batch, frontier (both), devices (fewest), format")->type_name("WHAT");
  command->add_flag("--json", o.json, "the plan as JSON, nothing else");
  command->add_option("-o,--output", o.output, "write the plan as JSON");
  command->add_option("--html", o.html, "draw the plan into this file");
  command->add_flag("--list-presets", o.list_presets, "models and GPUs known by name");
  command->footer("Exit code: 0 fits, 3 with less than the reserve, 4 does not fit, 2 wrong input.\n"
                  "Examples: tandem plan preset:llama-3.1-8b --format nf4 --ranks 2\n"
                  "          tandem plan preset:mixtral-8x7b --format nf4 --gpus 1xrtx3090,1xa4000 --context 8192\n"
                  "          tandem plan preset:llama-3.1-70b --format nf4 --gpus 2xrtx3090 --solve context");
  return {command, [options] { return run(*options); }};
}

}  // namespace tandem
