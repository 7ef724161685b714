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
#include "launch/weight_survey.h"
#include "sharding/cluster.h"

namespace tandem {
namespace {

struct Options {
  DeployOptions deploy;
  std::string cases, compare;
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

// What one model in one format did.
struct Measured {
  std::string model, format, compute, kv;
  int ranks = 1, threads = 1;
  double bandwidth = 0, bytes_a_token = 0, other_cores = 0;
  uint64_t footprint = 0, device_bytes = 0;
  std::vector<Figure> figures;  // values ascending, none empty
};

double median(const Figure& figure) { return figure.values[figure.values.size() / 2]; }

// Checks --cases and what they need of the other options, which are set where they were not given.
std::vector<std::string> settle_cases(Options& o) {
  const std::string prompt = std::to_string(o.prompt_tokens > 0 ? o.prompt_tokens : 128);
  if (!o.compare.empty()) {
    o.cases = "load,decode/b1/c" + prompt + ",decode/b20/c" + prompt;
  } else if (o.cases.empty()) {
    o.cases = "load,ttft,prefill/" + std::to_string(o.prompt_tokens > 0 ? o.prompt_tokens : 512) + ",decode/b" + std::to_string(o.batch) + "/c" + prompt;
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
  return cases;
}

Measured measure(const Options& o, const std::vector<std::string>& cases, ThisJob& job) {
  const auto deployment = Deployment::start(o.deploy, job);
  deployment->wait_ready();
  Measured m;
  m.model = deployment->blueprint.checkpoint.name;
  m.format = deployment->blueprint.formats.label;
  m.compute = deployment->compute;
  m.kv = std::string(name(deployment->blueprint.arithmetic.kv));
  m.ranks = deployment->plan.mesh.size();
  m.threads = threads_for(o.deploy.plan.place.threads, m.ranks) * m.ranks;
  m.bandwidth = read_bandwidth(deployment->plan.devices[0].id, std::min(m.threads, 64));
  m.footprint = footprint_bytes(deployment->blueprint);
  for (const PlanDevice& device : deployment->plan.devices) m.device_bytes += device.weights_bytes + device.scales_bytes;
  const ModelWork work = model_work(deployment->blueprint, deployment->plan.workload, *deployment->backend);
  m.bytes_a_token = decode_ceiling(work, {1, 1, 1}, m.bandwidth, 1, 0).per_token;
  const double flops = known_flops(deployment->plan.devices[0].kind);

  Bench runner(*deployment, o);
  OtherLoad others;
  for (const std::string& name : cases) {
    if (name == "load") m.figures.push_back({"load", "s", {deployment->load_seconds}, {}});
    if (name == "ttft") m.figures.push_back(runner.ttft());
    if (name.starts_with("prefill/")) {
      const int32_t tokens = number_after(name.substr(8), "", name);
      m.figures.push_back(runner.prefill(name, tokens));
      m.figures.back().ceiling = prefill_ceiling(work, deployment->plan.mesh, flops, tokens);
    }
    if (name.starts_with("decode/")) {
      const size_t slash = name.find('/', 7);
      const int32_t sequences = number_after(name.substr(7, slash - 7), "b", name), prompt = number_after(name.substr(slash + 1), "c", name);
      m.figures.push_back(runner.decode(name, sequences, prompt));
      m.figures.back().ceiling = decode_ceiling(work, deployment->plan.mesh, m.bandwidth, sequences, prompt + o.tokens / 2.0);
    }
  }
  m.other_cores = others.cores();
  std::erase_if(m.figures, [](const Figure& figure) { return figure.values.empty(); });
  for (Figure& figure : m.figures) std::sort(figure.values.begin(), figure.values.end());
  return m;
}

void print_json(const Measured& m) {
  for (const Figure& figure : m.figures) {
    const bool known = figure.ceiling.tokens_per_second > 0;
    std::printf("%s\n", nlohmann::ordered_json{{"case", figure.name}, {"value", median(figure)}, {"unit", figure.unit}, {"min", figure.values.front()}, {"max", figure.values.back()},
                                               {"ceiling", figure.ceiling.tokens_per_second}, {"ceiling_of", known ? figure.ceiling.of : ""}, {"fraction", known ? median(figure) / figure.ceiling.tokens_per_second : 0},
                                               {"threads", m.threads}, {"compute", m.compute}, {"format", m.format}, {"read_gb_per_second", m.bandwidth / 1e9}, {"other_cores", m.other_cores},
                                               {"footprint_bytes", m.footprint}, {"device_bytes", m.device_bytes}}.dump().c_str());
  }
}

void print_head(const Measured& m, const std::string& format) {
  std::printf("%s  %s  kv %s  %d rank%s  %d thread%s  memory reads %.1f GB/s", m.model.c_str(), format.c_str(), m.kv.c_str(), m.ranks, m.ranks == 1 ? "" : "s", m.threads, m.threads == 1 ? "" : "s", m.bandwidth / 1e9);
}

void print_cases(const Measured& m) {
  print_head(m, m.format + "  compute " + m.compute);
  std::printf("  %.1f MB a token  others used %.2f cores\n%-18s %10s %10s %10s  %-6s %s\n", m.bytes_a_token / 1e6, m.other_cores, "case", "median", "min", "max", "unit", "of the ceiling");
  for (const Figure& figure : m.figures) {
    const Ceiling& ceiling = figure.ceiling;
    std::printf("%-18s %10.3f %10.3f %10.3f  %-6s", figure.name.c_str(), median(figure), figure.values.front(), figure.values.back(), figure.unit.c_str());
    if (ceiling.tokens_per_second > 0) {
      const bool bytes = ceiling.of == "memory reads";
      std::printf(" %.0f %% of %.0f, %s (%.1f %s)", 100 * median(figure) / ceiling.tokens_per_second, ceiling.tokens_per_second, std::string(ceiling.of).c_str(),
                  median(figure) * ceiling.per_token / (bytes ? 1e9 : 1e12), bytes ? "GB/s" : "Tflop/s");
    }
    std::printf("\n");
  }
}

// A line a format as soon as it is measured.
int compare(Options& o, ThisJob& job) {
  if (o.deploy.model.format != "keep") bad_input("--compare", "is given together with --format (it names the formats itself)");
  if (under_mpirun()) bad_input("--compare", "is given under mpirun (use --ranks N, or --format one after the other)");
  if (!o.deploy.trace.empty()) bad_input("--trace", "is given together with --compare (trace one --format)");
  const std::vector<std::string> formats = split_formats(o.compare, "--compare");
  const auto seed = synthetic_seed(o.deploy.model);
  for (const std::string& format : formats) make_blueprint(o.deploy.model.model, {format, o.deploy.model.double_quant}, {}, seed);  // what is wrong is said at once
  const std::vector<std::string> cases = settle_cases(o);
  for (const std::string& format : formats) {
    o.deploy.model.format = format;
    const Measured m = measure(o, cases, job);
    if (o.json) {
      print_json(m);
    } else {
      if (format == formats[0]) {
        print_head(m, "prompts of " + std::to_string(o.prompt_tokens > 0 ? o.prompt_tokens : 128) + ", " + std::to_string(o.tokens) + " tokens");
        std::printf("\n%-24s %-8s %8s %12s %12s %14s %14s\n", "format", "compute", "load s", "footprint", "on device", "batch 1 tok/s", "batch 20 tok/s");
      }
      std::printf("%-24s %-8s %8.2f %12s %12s %14.1f %14.1f\n", format.c_str(), m.compute.c_str(), median(m.figures[0]), human_bytes(m.footprint).c_str(), human_bytes(m.device_bytes).c_str(), median(m.figures[1]), median(m.figures[2]));
    }
    std::fflush(stdout);
  }
  return 0;
}

int bench(Options& o, ThisJob& job) {
  if (!o.compare.empty()) return compare(o, job);
  const std::vector<std::string> cases = settle_cases(o);
  const Measured m = measure(o, cases, job);
  if (o.json) {
    print_json(m);
  } else {
    print_cases(m);
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
  command->add_option("--compare", options->compare, "formats, as bf16,int8,nf4: load time, footprint and speed at batch 1 and 20, one table")->excludes(cases);
  command->add_option("--tokens", options->tokens, "tokens to decode")->capture_default_str()->check(CLI::Range(2, 100000));
  command->add_option("--repeat", options->repeat, "runs of each case, after one to warm up")->capture_default_str()->check(CLI::Range(1, 1000));
  add_options(*command, options->deploy.plan.place);
  add_options(*command, options->deploy.plan.size);
  add_options(*command, options->deploy.plan.budget);
  add_trace_option(*command, options->deploy.trace);
  command->add_flag("--json", options->json, "one object a line");
  command->footer("Examples: tandem bench SmolLM2.gguf --threads 1 --cases prefill/512,decode/b1/c128\n"
                  "          tandem bench SmolLM2-135M --compare bf16,int8,nf4 --tokens 64");
  return {command, [options] { return run_on_ranks([&](ThisJob& job) { return bench(*options, job); }); }, true};
}

}  // namespace tandem
