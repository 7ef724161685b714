#include "launch/planning.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "launch/devices.h"
#include "runtime/model/checkpoint/config.h"
#include "sharding/planner.h"

namespace tandem {
namespace {

constexpr uint64_t kPlanLimit = 64 << 20;
constexpr int kMostRanks = 4096;

void check_range(std::string_view option, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    bad_input(std::string(option), "is " + std::to_string(value) + " (must be " + std::to_string(least) + " to " + std::to_string(most) + ")");
  }
}

// --max-memory alone may name the devices to plan for; what it says about "cpu" leaves this machine's CPUs in place.
bool names_other_devices(const std::string& max_memory) {
  size_t begin = 0;
  while (begin < max_memory.size()) {
    const size_t end = std::min(max_memory.find(',', begin), max_memory.size());
    if (!std::string_view(max_memory).substr(begin, end - begin).starts_with("cpu")) return true;
    begin = end + 1;
  }
  return false;
}

bool plans_given_devices(const PlanRequest& request) {
  return !request.budget.gpus.empty() || !request.budget.cluster.empty() || names_other_devices(request.budget.max_memory);
}

bool on_gpu(const Cluster& cluster) {
  return std::any_of(cluster.devices.begin(), cluster.devices.end(), [](const Device& device) { return !device.is_cpu; });
}

// Prompt tokens of a step: enough to fill the device's arithmetic.
constexpr int32_t kCpuChunk = 512, kGpuChunk = 2048;

Workload workload_for(const PlanRequest& request, const ModelShape& shape, bool gpus) {
  const SizeOptions& size = request.size;
  Workload workload;
  // Longer than the model was made for is the user's choice, unless its positions are not defined there.
  check_range("--context", size.context, 0, shape.context_is_hard ? shape.context : 1 << 24);
  check_range("--max-batch", size.max_batch, 0, 4096);
  check_range("--chunk", size.chunk, 0, 65536);
  check_range("--page", size.page, 1, 4096);
  check_range("--max-queue", size.max_queue, 0, 100000);
  workload.context = size.context > 0 ? size.context : std::min(shape.context, 4096);
  workload.batch = size.max_batch > 0 ? size.max_batch : request.default_batch;
  const int64_t all = int64_t{workload.context} * workload.batch;  // a step takes prompts of many sequences on GPUs
  workload.chunk = size.chunk > 0 ? size.chunk : gpus ? static_cast<int32_t>(std::clamp<int64_t>(all, 1, kGpuChunk)) : std::min(kCpuChunk, std::max(workload.context, 1));
  workload.page_tokens = size.page;
  return workload;
}

Plan plan_from_file(const Blueprint& blueprint, const PlanRequest& request) {
  const std::string& file = request.place.plan_file;
  Plan plan = plan_from_json(read_json_object(file, kPlanLimit), file);
  const auto same = [&file](const std::string& field, const std::string& planned, const std::string& asked, const std::string& advice) {
    if (planned != asked) bad_input(file + ": " + field, "is " + planned + ", but " + asked + " is asked for (" + advice + ")");
  };
  if (plan.digest != blueprint.checkpoint.digest) {
    bad_input(file + ": model.digest", "is of another model (" + blueprint.checkpoint.path + " is not what was planned: plan it again)");
  }
  same("model.format", plan.format, blueprint.formats.label, "give the --format that was planned, or plan again");
  same("workload.kv_dtype", plan.kv_dtype, std::string(name(blueprint.arithmetic.kv)), "give the --kv-dtype that was planned, or plan again");
  const auto same_number = [&same](const char* field, const char* option, int64_t planned, int64_t asked) {
    if (asked > 0) same(field, std::to_string(planned), std::to_string(asked), std::string("leave ") + option + " to the plan, or plan again");
  };
  same_number("workload.context", "--context", plan.workload.context, request.size.context);
  same_number("workload.batch", "--max-batch", plan.workload.batch, request.size.max_batch);
  same_number("stages", "--pp", plan.mesh.pp, request.place.pp);
  same_number("stages", "--tp", plan.mesh.tp, request.place.tp);
  same_number("stages", "--ep", plan.mesh.ep, request.place.ep);
  same_number("devices", "--ranks", plan.mesh.size(), request.place.ranks);
  const std::vector<KvGroup>& groups = blueprint.model->kv_groups;
  const int64_t whole = (plan.workload.context + plan.workload.page_tokens - 1) / plan.workload.page_tokens * int64_t{plan.workload.batch};
  for (size_t group = 0; group < std::max(groups.size(), plan.kv_pages.size()); ++group) {
    const bool windowed = group < groups.size() && groups[group].window > 0;
    const bool there = group < groups.size() && group < plan.kv_pages.size();
    if (there && (plan.kv_pages[group] == whole || (windowed && plan.kv_pages[group] < whole))) continue;
    bad_input(file + ": kv_pages", "is " + nlohmann::json(plan.kv_pages).dump() + " (must be " + std::to_string(whole) + " for each of " +
                                       std::to_string(groups.size()) + " groups of layers: batch x pages of the context)");
  }
  return plan;
}

}  // namespace

Degrees resolve_degrees(const PlaceOptions& place, bool on_cpu) {
  for (const auto& [option, value] : {std::pair{"--ranks", place.ranks}, {"--pp", place.pp}, {"--tp", place.tp}, {"--ep", place.ep}}) {
    check_range(option, value, 0, kMostRanks);
  }
  check_range("--threads", place.threads, 0, 64);
  Degrees degrees{place.ranks, place.pp, std::max(place.tp, 1), std::max(place.ep, 1)};
  const int group = degrees.tp * degrees.ep;
  if (degrees.ranks == 0 && degrees.pp == 0 && on_cpu) degrees.pp = 1;
  if (degrees.ranks == 0) degrees.ranks = degrees.pp * group;  // 0 stays 0
  if (degrees.pp == 0 && degrees.ranks > 0) {
    if (degrees.ranks % group != 0) {
      bad_input("--ranks", "is " + std::to_string(degrees.ranks) + " (must be a multiple of tp x ep, " + std::to_string(group) + ")");
    }
    degrees.pp = degrees.ranks / group;
  }
  if (degrees.ranks != degrees.pp * group) {
    bad_input("--ranks", "is " + std::to_string(degrees.ranks) + " (pp x ep x tp is " + std::to_string(degrees.pp) + " x " + std::to_string(degrees.ep) +
                             " x " + std::to_string(degrees.tp) + " = " + std::to_string(degrees.pp * group) + ")");
  }
  return degrees;
}

Cluster cluster_for(const PlanRequest& request) {
  const BudgetOptions& budget = request.budget;
  Cluster cluster;
  if (!budget.gpus.empty() && !budget.cluster.empty()) bad_input("--gpus", "is given together with --cluster (one of them says which devices there are)");
  if (!budget.cluster.empty()) {
    cluster = cluster_from_json(read_json_object(budget.cluster), budget.cluster);
  } else if (!budget.gpus.empty()) {
    cluster = cluster_from_gpus(budget.gpus);
  } else if (!plans_given_devices(request)) {
    cluster = wants_gpus(request.place.device) ? local_gpus(request.place.device)
                                               : local_cpus(resolve_degrees(request.place, true).ranks, request.place.threads);
  }
  if (!budget.max_memory.empty()) apply_max_memory(cluster, budget.max_memory);
  for (Device& device : cluster.devices) {
    if (!budget.reserve.empty()) device.reserve_bytes = parse_bytes(budget.reserve, "--reserve");
  }
  return cluster;
}

Plan plan_for(const Blueprint& blueprint, const PlanRequest& request, const Backend& backend) {
  if (!request.place.plan_file.empty()) return plan_from_file(blueprint, request);
  return plan_on(cluster_for(request), blueprint, request, backend);
}

Plan plan_on(const Cluster& cluster, const Blueprint& blueprint, const PlanRequest& request, const Backend& backend) {
  const bool gpus = on_gpu(cluster);
  const Degrees degrees = resolve_degrees(request.place, !gpus && !plans_given_devices(request));
  const Workload workload = workload_for(request, blueprint.model->shape, gpus);
  const Mesh group{.pp = 1, .ep = degrees.ep, .tp = degrees.tp};
  const Profile profile = make_profile(blueprint, group, workload, request.all_logits, backend);
  return plan(profile, cluster, workload, parse_objective(request.budget.objective), Placement{.pp = degrees.pp});
}

int cpu_ranks(const PlanRequest& request) {
  const std::string& file = request.place.plan_file;
  if (!file.empty()) return plan_from_json(read_json_object(file, kPlanLimit), file).mesh.size();
  return std::max(1, resolve_degrees(request.place, true).ranks);
}

bool plans_for_gpus(const PlanRequest& request) {
  const std::string& file = request.place.plan_file;
  if (file.empty()) return on_gpu(cluster_for(request));
  const Plan plan = plan_from_json(read_json_object(file, kPlanLimit), file);
  return std::any_of(plan.devices.begin(), plan.devices.end(), [](const PlanDevice& device) { return is_gpu(device.id); });
}

void require_fits(const Plan& plan) {
  if (plan.verdict != Verdict::no) return;
  bad_input(plan.model_name, "does not fit: " + (plan.reason.empty() ? "no device has room for it" : plan.reason) + " (tandem plan says what would help)");
}

}  // namespace tandem
