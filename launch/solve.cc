#include "launch/solve.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>

#include "kernels/base/error.h"
#include "kernels/formats/quantized_copy.h"
#include "launch/devices.h"
#include "launch/topology.h"
#include "sharding/cluster.h"

namespace tandem {
namespace {

constexpr int kMostBatch = 4096, kMostDevices = 64;  // 4096 is what --max-batch takes
constexpr int32_t kFirstContext = 512;               // of the frontier

struct Wanted {  // one value, as the user would ask for it
  ModelOptions model;
  PlanRequest request;
};

// Plans one value after another; what they share is made once. Memory that is free now is looked up once too.
class Desk {
 public:
  explicit Desk(const Wanted& asked) : on_gpu_(plans_for_gpus(asked.request)) {
    const int threads = on_gpu_ ? 1 : threads_for(asked.request.place.threads, cpu_ranks(asked.request));
    backend_ = make_sizes(on_gpu_, threads);
    open(asked);
  }

  Plan plan(const Wanted& ask) {
    open(ask);
    return plan_on(cluster_, *blueprint_, ask.request, *backend_);
  }
  const Blueprint& blueprint() const { return *blueprint_; }

  // What does not fit of a value that does not keep the reserve, in the planner's words: planned as if the reserve was taken.
  std::string stopped_by(const Wanted& ask) {
    open(ask);
    Cluster cluster = cluster_;
    for (Device& device : cluster.devices) {
      device.free_bytes -= std::min(device.free_bytes, device.reserve_bytes);
      device.reserve_bytes = 0;
    }
    return plan_on(cluster, *blueprint_, ask.request, *backend_).reason;
  }

 private:
  void open(const Wanted& ask) {
    if (!blueprint_ || ask.model.format != format_) {
      blueprint_ = make_blueprint(ask.model, on_gpu_);
      format_ = ask.model.format;
    }
    if (cluster_.devices.empty() || ask.request.budget.gpus != gpus_) {
      cluster_ = cluster_for(ask.request);
      gpus_ = ask.request.budget.gpus;
    }
  }

  bool on_gpu_;
  std::unique_ptr<Backend> backend_;
  std::optional<Blueprint> blueprint_;
  Cluster cluster_;
  std::string format_, gpus_;  // that the two were made for
};

// The values of one question, rung 0 asks least.
struct Ladder {
  int64_t rungs = 0;
  std::function<Wanted(int64_t)> ask;
  std::function<int64_t(const Plan&)> guess;  // from a plan of one rung: the last that fits
};

// fits or tight: rung `at` is the answer and `plan` its plan; no: rung 0 does not fit. `next`: the first that does not fit, if there is one.
struct Climb {
  int64_t at = 0;
  Plan plan;
  std::optional<Plan> next;
};

// Doubling steps from a guess, then halving what is left.
Climb climb(Desk& desk, const Ladder& ladder) {
  Climb found{0, desk.plan(ladder.ask(0)), std::nullopt};
  if (found.plan.verdict == Verdict::no) return found;
  if (found.plan.verdict == Verdict::tight) {
    if (ladder.rungs > 1) found.next = desk.plan(ladder.ask(1));
    return found;
  }
  int64_t high = ladder.rungs, guess = ladder.guess(found.plan);
  const auto fits_at = [&](int64_t rung) {
    Plan plan = desk.plan(ladder.ask(rung));
    guess = ladder.guess(plan);
    const bool fits = plan.verdict == Verdict::fits;
    if (fits) {
      found.at = rung, found.plan = std::move(plan);
    } else {
      high = rung, found.next = std::move(plan);
    }
    return fits;
  };
  bool up = true;
  // The second guess is made from a plan of about the right size, workspace and all.
  for (int guesses = 0; guesses < 2 && high - found.at > 1; ++guesses) up = fits_at(std::clamp(guess, found.at + 1, high - 1));
  bool doubling = true;
  for (int64_t step = 1; high - found.at > 1; step *= 2) {
    int64_t rung = up ? found.at + step : high - step;
    doubling = doubling && rung > found.at && rung < high;
    if (!doubling) rung = found.at + (high - found.at) / 2;
    doubling &= fits_at(rung) == up;
  }
  return found;
}

SolutionRow row_of(const Wanted& ask, const Plan& plan) {
  SolutionRow row;
  row.context = plan.workload.context, row.batch = plan.workload.batch;
  row.format = plan.format;
  row.gpus = ask.request.budget.gpus;
  row.devices = static_cast<int>(plan.devices.size());
  row.verdict = plan.verdict;
  for (const PlanDevice& device : plan.devices) {
    row.device_bytes += device.weights_bytes + device.scales_bytes;
    row.used_bytes += device.used_bytes();
  }
  row.decode_tokens_per_second = plan.decode_mid;
  return row;
}

// `top`: what stops at the last rung.
Solution solution_of(Desk& desk, const Ladder& ladder, Climb found, const std::string& top) {
  Solution solution;
  solution.verdict = found.plan.verdict;
  const Wanted at = ladder.ask(found.at);
  SolutionRow row = row_of(at, found.plan);
  if (solution.verdict == Verdict::no) {
    solution.binding = row.binding = found.plan.reason;
    solution.next = row;
    solution.rows = {row};
  } else {
    solution.binding = top;
    if (found.next) {
      const Wanted ask = ladder.ask(found.at + 1);
      solution.next = row_of(ask, *found.next);
      solution.binding = solution.next->binding = desk.stopped_by(ask);
    }
    row.binding = solution.binding;
    solution.answer = row;
    solution.rows = {row};
    if (solution.next) solution.rows.push_back(*solution.next);
  }
  solution.plan = std::move(found.plan);
  return solution;
}

std::string nothing_fits(const Plan& plan) { return "nothing fits: " + plan.reason; }

// `value` is the answer, `claim` what it is; `words`: of what.
std::string headline(Verdict verdict, const std::string& value, const std::string& claim, const std::string& words) {
  if (verdict == Verdict::fits) return value + ": " + claim + " (" + words + ")";
  return "nothing keeps the reserve; " + value + " asks least, and fits with less of it (" + words + ")";
}

std::string size_words(const Plan& plan) { return "context " + std::to_string(plan.workload.context) + ", batch " + std::to_string(plan.workload.batch); }
std::string model_words(const Plan& plan) { return plan.model_name + ", " + plan.format + ", KV " + plan.kv_dtype; }

Ladder contexts(const Wanted& asked, int32_t most) {
  const int32_t page = asked.request.size.page;
  Ladder ladder;
  ladder.rungs = std::max(1, most / std::max(page, 1));
  ladder.ask = [asked, page, most](int64_t rung) {
    Wanted ask = asked;
    ask.request.size.context = static_cast<int32_t>(std::min<int64_t>((rung + 1) * page, most));
    return ask;
  };
  ladder.guess = [page](const Plan& plan) { return plan.max_context / page - 1; };
  return ladder;
}

Ladder batches(const Wanted& asked) {
  Ladder ladder;
  ladder.rungs = kMostBatch;
  ladder.ask = [asked](int64_t rung) {
    Wanted ask = asked;
    ask.request.size.max_batch = static_cast<int32_t>(rung + 1);
    return ask;
  };
  ladder.guess = [](const Plan& plan) { return plan.max_batch - 1; };
  return ladder;
}

std::string own_context(int32_t most) { return "the model's own context, " + std::to_string(most) + " tokens"; }

Solution solve_context(const Wanted& asked) {
  Desk desk(asked);
  const int32_t most = desk.blueprint().model->shape.context;
  const Ladder ladder = contexts(asked, most);
  Solution solution = solution_of(desk, ladder, climb(desk, ladder), own_context(most));
  const Plan& plan = *solution.plan;
  const std::string value = "context " + std::to_string(plan.workload.context) + " tokens", claim = "the longest that fits with batch " + std::to_string(plan.workload.batch);
  solution.headline = solution.answer ? headline(solution.verdict, value, claim, model_words(plan)) : nothing_fits(plan);
  return solution;
}

Solution solve_batch(const Wanted& asked) {
  Desk desk(asked);
  const Ladder ladder = batches(asked);
  Solution solution = solution_of(desk, ladder, climb(desk, ladder), "--max-batch, which is at most " + std::to_string(kMostBatch));
  const Plan& plan = *solution.plan;
  const std::string value = "batch " + std::to_string(plan.workload.batch), claim = "the most sequences that fit with context " + std::to_string(plan.workload.context);
  solution.headline = solution.answer ? headline(solution.verdict, value, claim, model_words(plan)) : nothing_fits(plan);
  return solution;
}

Solution solve_frontier(const Wanted& asked) {
  Desk desk(asked);
  const int32_t most = desk.blueprint().model->shape.context;
  Solution solution;
  solution.question = "frontier";
  const auto add = [&](const Wanted& ask) {  // false: not even one sequence fits
    const Ladder ladder = batches(ask);
    Climb found = climb(desk, ladder);
    Solution one = solution_of(desk, ladder, std::move(found), "--max-batch, which is at most " + std::to_string(kMostBatch));
    if (solution.rows.empty()) solution.verdict = one.verdict, solution.plan = std::move(one.plan), solution.binding = one.binding;
    if (!one.answer || (one.verdict == Verdict::tight && !solution.rows.empty())) return false;
    solution.rows.push_back(*one.answer);
    return one.verdict == Verdict::fits;
  };
  Wanted ask = asked;
  bool longer = true;
  for (int64_t context = std::min(kFirstContext, most); longer; context = std::min<int64_t>(context * 2, most)) {
    ask.request.size.context = static_cast<int32_t>(context);
    longer = add(ask) && context < most;
  }
  if (solution.verdict == Verdict::fits && solution.rows.back().context < most) {  // what one sequence may have
    ask.request.size.max_batch = 1;
    const Ladder ladder = contexts(ask, most);
    const Climb found = climb(desk, ladder);
    ask = ladder.ask(found.at);
    if (ask.request.size.context > solution.rows.back().context) {
      ask.request.size.max_batch = 0;
      add(ask);
    }
  }
  // A pair that another one exceeds in both is no choice.
  std::vector<SolutionRow> best;
  for (auto row = solution.rows.rbegin(); row != solution.rows.rend(); ++row) {
    if (best.empty() || row->batch > best.back().batch) best.push_back(*row);
  }
  solution.rows.assign(best.rbegin(), best.rend());
  if (solution.rows.empty()) {
    solution.headline = nothing_fits(*solution.plan);
    SolutionRow row = row_of(ask, *solution.plan);
    row.binding = solution.binding;
    solution.next = row;
    solution.rows = {row};
    return solution;
  }
  solution.headline = headline(solution.verdict, solution.verdict == Verdict::fits ? "context x batch" : size_words(*solution.plan),
                               "the most sequences at once for each context", model_words(*solution.plan));
  solution.plan.reset();
  solution.binding.clear();
  return solution;
}

Solution solve_devices(const Wanted& asked) {
  std::vector<std::string> kinds;
  for (const Device& device : cluster_from_gpus(asked.request.budget.gpus).devices) {
    if (std::find(kinds.begin(), kinds.end(), device.kind) == kinds.end()) kinds.push_back(device.kind);
  }
  Desk desk(asked);
  const Degrees degrees = resolve_degrees(asked.request.place, false);
  const int group = degrees.tp * degrees.ep;
  const int most_stages = std::min(std::max(1, kMostDevices / group), desk.blueprint().model->shape.layers);
  const int first = degrees.pp > 0 ? degrees.pp : 1, last = degrees.pp > 0 ? degrees.pp : most_stages;
  Solution best;
  std::vector<SolutionRow> rows;
  for (const std::string& kind : kinds) {
    Ladder ladder;
    ladder.rungs = last - first + 1;
    ladder.ask = [&asked, &kind, group, last](int64_t rung) {
      Wanted ask = asked;
      ask.request.budget.gpus = std::to_string((last - rung) * group) + "x" + kind;
      return ask;
    };
    // As if everything could be cut anywhere.
    ladder.guess = [group, last](const Plan& plan) {
      uint64_t used = 0, each = 0;
      for (const PlanDevice& d : plan.devices) {
        const uint64_t fixed = d.reserve_bytes + d.overhead_bytes + d.workspace_bytes + d.communication_bytes;
        used += d.weights_bytes + d.scales_bytes + d.kv_bytes;
        each = d.free_bytes - std::min(d.free_bytes, fixed);
      }
      const uint64_t stages = each > 0 ? (used / each + 1 + static_cast<uint64_t>(group) - 1) / static_cast<uint64_t>(group) : UINT32_MAX;
      return last - static_cast<int64_t>(std::min<uint64_t>(stages, UINT32_MAX));
    };
    const std::string least = degrees.pp > 0 || group > 1 ? "pp x ep x tp asks for " + std::to_string(first * group) + " devices" : "one device is the least";
    Solution one = solution_of(desk, ladder, climb(desk, ladder), least);
    rows.push_back(one.rows[0]);
    const auto rank = [](const Solution& s) { return std::pair(s.verdict, s.answer ? s.answer->devices : 0); };
    if (rows.size() == 1 || rank(one) < rank(best)) best = std::move(one);
  }
  const Plan& plan = *best.plan;
  best.headline = best.answer ? headline(best.verdict, best.answer->gpus, "the fewest devices that fit " + size_words(plan), model_words(plan))
                              : nothing_fits(plan);
  if (kinds.size() > 1) best.rows = rows;
  return best;
}

bool can_be_made(const Format& format) {
  const std::vector<float> zeros(static_cast<size_t>(format.block()));
  try {
    quantized_copy(format, zeros.data(), 1, format.block());
  } catch (const Error& error) {
    if (error.code != Code::failed_precondition) throw;
    return false;
  }
  return true;
}

// Errors: --format names a format for the whole model.
std::string exceptions_of(const std::string& format) {
  if (format == "keep") return "";
  for (size_t begin = 0; begin <= format.size();) {
    const size_t end = std::min(format.find(',', begin), format.size());
    if (format.substr(begin, end - begin).find('=') == std::string::npos) {
      bad_input("--format", "is " + format + " together with --solve format (MODULE=FORMAT alone may be given)");
    }
    begin = end + 1;
  }
  return "," + format;
}

Solution solve_format(const Wanted& asked) {
  const std::string exceptions = exceptions_of(asked.model.format);
  Desk desk(asked);
  const Blueprint& blueprint = desk.blueprint();
  for (WeightId id = 0; id < blueprint.model->weights.size(); ++id) {
    const Format& stored = *blueprint.formats.stored[static_cast<size_t>(id)];
    if (blueprint.model->weights[id].role == Role::linear && !stored.is_dense()) {
      bad_input("--solve", "is format, but the model is stored in " + std::string(stored.name()) + " (the unquantized checkpoint can be held in any format)");
    }
  }
  Solution solution;
  std::optional<Plan> last;
  std::vector<Wanted> asks;
  for (const std::string& format : formats_by_quality()) {
    Wanted ask = asked;
    ask.model.format = format + exceptions;
    std::string reason;
    std::optional<Plan> plan;
    try {
      plan = desk.plan(ask);
      reason = plan->reason;
    } catch (const Error& error) {  // a shape that this format cannot hold or cut; nothing else can be wrong after the first
      if (error.code != Code::invalid_argument || asks.empty()) throw;
      reason = error.what();
    }
    asks.push_back(ask);
    SolutionRow row = plan ? row_of(ask, *plan) : SolutionRow{};
    row.format = ask.model.format;
    if (!plan) row.context = solution.rows[0].context, row.batch = solution.rows[0].batch, row.gpus = solution.rows[0].gpus;
    row.binding = reason;
    solution.rows.push_back(row);
    if (row.verdict == Verdict::fits && !solution.answer) solution.answer = row, solution.plan = plan;
    if (plan) last = std::move(plan);
  }
  if (!solution.answer) {
    solution.plan = std::move(last);
    if (solution.plan->verdict == Verdict::tight) solution.answer = solution.rows.back();
  }
  solution.verdict = solution.answer ? solution.answer->verdict : Verdict::no;
  if (!solution.answer) {
    solution.next = solution.rows.back();
    solution.binding = solution.plan->reason;
    solution.headline = nothing_fits(*solution.plan);
    return solution;
  }
  const auto at = std::find_if(solution.rows.begin(), solution.rows.end(), [&](const SolutionRow& row) { return row.format == solution.answer->format; });
  if (at != solution.rows.begin()) {
    const auto index = static_cast<size_t>(at - solution.rows.begin()) - 1;
    SolutionRow& better = solution.rows[index];
    if (better.devices > 0) better.binding = desk.stopped_by(asks[index]);
    solution.next = better;
    solution.binding = better.binding;
  } else {
    solution.binding = "no better format is made on load";
  }
  solution.answer->binding = at->binding = solution.binding;
  solution.headline = headline(solution.verdict, "--format " + solution.answer->format, "the best format that fits " + size_words(*solution.plan),
                               solution.plan->model_name + ", KV " + solution.plan->kv_dtype);
  return solution;
}

struct Option {
  std::string_view name;
  bool (*given)(const Wanted&);
};
constexpr Option kContext{"--context", [](const Wanted& w) { return w.request.size.context != 0; }};
constexpr Option kBatch{"--max-batch", [](const Wanted& w) { return w.request.size.max_batch != 0; }};
constexpr Option kMaxMemory{"--max-memory", [](const Wanted& w) { return !w.request.budget.max_memory.empty(); }};
constexpr Option kCluster{"--cluster", [](const Wanted& w) { return !w.request.budget.cluster.empty(); }};
constexpr Option kDoubleQuant{"--double-quant", [](const Wanted& w) { return w.model.double_quant; }};
constexpr Option kPlan{"--plan", [](const Wanted& w) { return !w.request.place.plan_file.empty(); }};

struct Question {
  std::string_view name;
  Solution (*answer)(const Wanted&);
  std::vector<Option> fixed_by;  // options that say already what is asked
  bool needs_gpus = false;       // --gpus names the kinds
};
const std::vector<Question>& questions() {
  static const std::vector<Question> list = {{"context", solve_context, {kPlan, kContext}},
                                             {"batch", solve_batch, {kPlan, kBatch}},
                                             {"frontier", solve_frontier, {kPlan, kContext, kBatch}},
                                             {"devices", solve_devices, {kPlan, kMaxMemory, kCluster}, true},
                                             {"format", solve_format, {kPlan, kDoubleQuant}}};
  return list;
}

}  // namespace

std::vector<std::string> formats_by_quality() {
  constexpr int64_t kSide = 4096;  // of a matrix that tells bits a weight
  std::vector<const Format*> order;
  for (const Format* format : formats()) {
    if (format->is_dense() ? format->dtype() == DType::bf16 : can_be_made(*format)) order.push_back(format);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const Format* a, const Format* b) { return stored_bytes(*a, kSide, kSide) > stored_bytes(*b, kSide, kSide); });
  std::vector<std::string> names;
  for (const Format* format : order) names.emplace_back(format->name());
  return names;
}

Solution solve(const std::string& question, const ModelOptions& model, const PlanRequest& request) {
  const Wanted asked{model, request};
  for (const Question& known : questions()) {
    if (known.name != question) continue;
    for (const Option& option : known.fixed_by) {
      if (!option.given(asked)) continue;
      bad_input("--solve", "is " + question + " together with " + std::string(option.name) + ", which fixes it (leave out one of them)");
    }
    if (known.needs_gpus && request.budget.gpus.empty()) {
      bad_input("--solve", "is " + question + " without --gpus (which names the kinds: --gpus rtx3090,a4000)");
    }
    Solution solution = known.answer(asked);
    solution.question = question;
    return solution;
  }
  bad_input("--solve", "is " + question + " (must be context, batch, frontier, devices or format)");
}

}  // namespace tandem
