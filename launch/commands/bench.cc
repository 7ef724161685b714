// tandem bench: speed of this model on these devices, beside a ceiling that is measured in the same run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "kernels/base/error.h"
#include "launch/ask_engine.h"
#include "launch/bandwidth.h"
#include "launch/ceiling.h"
#include "launch/commands/commands.h"
#include "launch/devices.h"
#include "launch/topology.h"
#include "sharding/cluster.h"

namespace tandem {
namespace {

struct Options {
  DeployOptions deploy;
  std::string cases;
  int32_t batch = 1, prompt_tokens = 0, tokens = 128, repeat = 3;
  bool json = false;
};

struct Figure {
  std::string name, unit;
  std::vector<double> values;
  Ceiling ceiling;
};

std::vector<int32_t> some_ids(int32_t count, int64_t vocab, uint32_t seed) {
  std::vector<int32_t> ids;
  uint32_t state = seed * 2654435761u + 12345;
  for (int32_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    ids.push_back(static_cast<int32_t>((state >> 8) % static_cast<uint64_t>(std::min<int64_t>(vocab, 10000))));
  }
  return ids;
}

Ask ask_for(std::vector<int32_t> ids, int32_t tokens) {
  Ask ask;
  ask.input = std::move(ids);
  ask.temperature = 0;
  ask.max_tokens = tokens;
  ask.ignore_eos = true;
  return ask;
}

// Of a device of the preset table, as its maker says; 0 for what is not there.
double known_flops(const std::string& kind) {
  const std::vector<std::string> names = gpu_names();
  return std::find(names.begin(), names.end(), kind) == names.end() ? 0 : cluster_from_gpus(kind).devices[0].flops;
}

// Numbers after the letters of "decode/b8/c128".
int32_t number_after(const std::string& part, const std::string& prefix, const std::string& whole) {
  size_t used = 0;
  int value = 0;
  try {
    value = std::stoi(part.substr(prefix.size()), &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (!part.starts_with(prefix) || used == 0 || used != part.size() - prefix.size() || value < 1) {
    bad_input("--cases", "holds " + whole + " (known: load, ttft, prefill/512, decode/b1/c128)");
  }
  return value;
}

class Bench {
 public:
  Bench(Deployment& deployment, const Options& options) : d_(deployment), o_(options) {}

  // Tokens a second while all sequences decode: from the last one's first token to the first one's last.
  Figure decode(const std::string& name, int32_t batch, int32_t context) {
    using Clock = std::chrono::steady_clock;
    Figure figure{name, "tok/s", {}, {}};
    for (int32_t run = 0; run < o_.repeat + 1; ++run) {
      std::mutex mutex;
      std::exception_ptr failure;
      std::vector<std::vector<Clock::time_point>> arrived(static_cast<size_t>(batch));  // of each sequence's tokens
      std::vector<std::thread> askers;
      for (std::vector<Clock::time_point>& times : arrived) {
        times.reserve(static_cast<size_t>(o_.tokens));
        askers.emplace_back([&] {
          try {
            const Ask ask = ask_for(some_ids(context, vocab(), next_seed()), o_.tokens);
            ask_engine(d_, ask, [&](const AnswerDelta& delta) { times.insert(times.end(), delta.token_ids.size(), Clock::now()); });
          } catch (...) {
            std::lock_guard lock(mutex);
            failure = std::current_exception();
          }
        });
      }
      for (std::thread& asker : askers) asker.join();
      if (failure) std::rethrow_exception(failure);
      if (run == 0) continue;  // it warms up
      Clock::time_point begin = Clock::time_point::min(), end = Clock::time_point::max();
      for (const auto& times : arrived) begin = std::max(begin, times.front()), end = std::min(end, times.back());
      if (end <= begin) {
        bad_input("--tokens", "is " + std::to_string(o_.tokens) + ", too few for " + name + ": the first sequence has ended before the last begins to decode");
      }
      int64_t tokens = 0;
      for (const auto& times : arrived) tokens += std::upper_bound(times.begin(), times.end(), end) - std::upper_bound(times.begin(), times.end(), begin);
      figure.values.push_back(static_cast<double>(tokens) / std::chrono::duration<double>(end - begin).count());
    }
    return figure;
  }

  Figure prefill(const std::string& name, int32_t tokens) {
    Figure figure{name, "tok/s", {}, {}};
    for (int32_t run = 0; run < o_.repeat + 1; ++run) {
      const LocalAnswer answer = ask_engine(d_, ask_for(some_ids(tokens, vocab(), next_seed()), 1), {});
      if (run > 0) figure.values.push_back(static_cast<double>(tokens) / answer.ttft_seconds);
    }
    return figure;
  }

  Figure ttft() {
    Figure figure{"ttft", "s", {}, {}};
    for (int32_t run = 0; run < o_.repeat + 1; ++run) {
      const LocalAnswer answer = ask_engine(d_, ask_for(some_ids(20, vocab(), next_seed()), 1), {});
      if (run > 0) figure.values.push_back(answer.ttft_seconds);
    }
    return figure;
  }

 private:
  int64_t vocab() const { return d_.blueprint.model->shape.vocab; }
  uint32_t next_seed() { return ++seed_; }
  Deployment& d_;
  const Options& o_;
  std::atomic<uint32_t> seed_{0};
};

int bench(Options& o, ThisJob& job) {
  if (o.cases.empty()) {
    o.cases = "load,ttft,prefill/" + std::to_string(o.prompt_tokens > 0 ? o.prompt_tokens : 512) + ",decode/b" + std::to_string(o.batch) + "/c" +
              std::to_string(o.prompt_tokens > 0 ? o.prompt_tokens : 128);
  }
  int32_t context = 0, batch = 1;
  std::vector<std::string> cases;
  std::stringstream list(o.cases);
  for (std::string name; std::getline(list, name, ',');) {
    cases.push_back(name);
    if (name.starts_with("decode/")) {
      const size_t slash = name.find('/', 7);
      if (slash == std::string::npos) number_after(name, "decode/b1/c", name);
      batch = std::max(batch, number_after(name.substr(7, slash - 7), "b", name));
      context = std::max(context, number_after(name.substr(slash + 1), "c", name) + o.tokens);
    } else if (name.starts_with("prefill/")) {
      context = std::max(context, number_after(name.substr(8), "", name) + 1);
    } else if (name == "load" || name == "ttft") {
      context = std::max(context, 64);
    } else {
      number_after(name, "?", name);
    }
  }
  if (const int32_t given = o.deploy.plan.size.context; given > 0 && given < context) {
    bad_input("--context", "is " + std::to_string(given) + " (--cases " + o.cases + " with --tokens " + std::to_string(o.tokens) + " needs " + std::to_string(context) + ")");
  }
  if (const int32_t given = o.deploy.plan.size.max_batch; given > 0 && given < batch) {
    bad_input("--max-batch", "is " + std::to_string(given) + " (--cases " + o.cases + " needs " + std::to_string(batch) + ")");
  }
  if (o.deploy.plan.size.context == 0) o.deploy.plan.size.context = context;
  if (o.deploy.plan.size.max_batch == 0) o.deploy.plan.size.max_batch = batch;
  o.deploy.needs_text = false;
  o.deploy.prefix_cache = false;
  const auto deployment = Deployment::start(o.deploy, job);
  deployment->wait_ready();
  const int ranks = deployment->plan.mesh.size();
  const int threads = threads_for(o.deploy.plan.place.threads, ranks) * ranks;
  const double bandwidth = read_bandwidth(deployment->plan.devices[0].id, std::min(threads, 64));
  const ModelWork work = model_work(deployment->blueprint, deployment->plan.workload, *deployment->backend);
  const double flops = known_flops(deployment->plan.devices[0].kind);

  Bench runner(*deployment, o);
  OtherLoad others;
  std::vector<Figure> figures;
  for (const std::string& name : cases) {
    if (name == "load") figures.push_back({"load", "s", {deployment->load_seconds}, {}});
    if (name == "ttft") figures.push_back(runner.ttft());
    if (name.starts_with("prefill/")) {
      const int32_t tokens = number_after(name.substr(8), "", name);
      figures.push_back(runner.prefill(name, tokens));
      figures.back().ceiling = prefill_ceiling(work, deployment->plan.mesh, flops, tokens);
    }
    if (name.starts_with("decode/")) {
      const size_t slash = name.find('/', 7);
      const int32_t sequences = number_after(name.substr(7, slash - 7), "b", name), prompt = number_after(name.substr(slash + 1), "c", name);
      figures.push_back(runner.decode(name, sequences, prompt));
      figures.back().ceiling = decode_ceiling(work, deployment->plan.mesh, bandwidth, sequences, prompt + o.tokens / 2.0);
    }
  }
  const double busy = others.cores();
  if (!o.json) {
    std::printf("%s  %s  compute %s  kv %s  %d rank%s  %d thread%s  memory reads %.1f GB/s  %.1f MB a token  others used %.2f cores\n", deployment->blueprint.checkpoint.name.c_str(),
                deployment->blueprint.formats.label.c_str(), deployment->compute.c_str(), std::string(name(deployment->blueprint.arithmetic.kv)).c_str(), ranks,
                ranks == 1 ? "" : "s", threads, threads == 1 ? "" : "s", bandwidth / 1e9, decode_ceiling(work, {1, 1, 1}, bandwidth, 1, 0).per_token / 1e6, busy);
    std::printf("%-18s %10s %10s %10s  %-6s %s\n", "case", "median", "min", "max", "unit", "of the ceiling");
  }
  for (Figure& figure : figures) {
    if (figure.values.empty()) continue;
    std::sort(figure.values.begin(), figure.values.end());
    const double median = figure.values[figure.values.size() / 2];
    const Ceiling& ceiling = figure.ceiling;
    const bool known = ceiling.tokens_per_second > 0;
    const double fraction = known ? median / ceiling.tokens_per_second : 0;
    if (o.json) {
      std::printf("%s\n", nlohmann::ordered_json{{"case", figure.name}, {"value", median}, {"unit", figure.unit}, {"min", figure.values.front()}, {"max", figure.values.back()},
                                                 {"ceiling", ceiling.tokens_per_second}, {"ceiling_of", known ? ceiling.of : ""}, {"fraction", fraction}, {"threads", threads}, {"compute", deployment->compute},
                                                 {"format", deployment->blueprint.formats.label}, {"read_gb_per_second", bandwidth / 1e9}, {"other_cores", busy}}.dump().c_str());
    } else {
      std::printf("%-18s %10.3f %10.3f %10.3f  %-6s", figure.name.c_str(), median, figure.values.front(), figure.values.back(), figure.unit.c_str());
      if (known) {
        const bool bytes = ceiling.of == "memory reads";
        std::printf(" %.0f %% of %.0f, %s (%.1f %s)", 100 * fraction, ceiling.tokens_per_second, std::string(ceiling.of).c_str(),
                    median * ceiling.per_token / (bytes ? 1e9 : 1e12), bytes ? "GB/s" : "Tflop/s");
      }
      std::printf("\n");
    }
  }
  return 0;
}

}  // namespace

Command add_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("bench", "Speed of a model on these devices, beside what their memory (measured in the same run) or their arithmetic allows");
  add_options(*command, options->deploy.model);
  command->add_option("--cases", options->cases, "load, ttft, prefill/TOKENS, decode/bBATCH/cCONTEXT; default: load,ttft,prefill/512,decode/b1/c128");
  CLI::Option* cases = command->get_option("--cases");
  command->add_option("--batch", options->batch, "of the default cases: sequences at once")->check(CLI::Range(1, 4096))->excludes(cases);
  command->add_option("--prompt-tokens", options->prompt_tokens, "of the default cases: tokens of a prompt")->check(CLI::Range(1, 1000000))->excludes(cases);
  command->add_option("--tokens", options->tokens, "tokens to decode")->capture_default_str()->check(CLI::Range(2, 100000));
  command->add_option("--repeat", options->repeat, "runs of each case, after one to warm up")->capture_default_str()->check(CLI::Range(1, 1000));
  add_options(*command, options->deploy.plan.place);
  add_options(*command, options->deploy.plan.size);
  add_options(*command, options->deploy.plan.budget);
  add_trace_option(*command, options->deploy.trace);
  command->add_flag("--json", options->json, "one object a line");
  command->footer("Example: tandem bench SmolLM2.gguf --threads 1 --cases prefill/512,decode/b1/c128");
  return {command, [options] { return run_on_ranks([&](ThisJob& job) { return bench(*options, job); }); }, true};
}

}  // namespace tandem
