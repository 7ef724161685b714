// Where everything goes: the planner's answer, the runtime's order. `contract` names of JSON schema "tandem.plan/1". Values only.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "sharding/cluster.h"
#include "sharding/mesh.h"
#include "sharding/profile.h"

namespace tandem {

enum class Verdict : uint8_t { fits, tight, no };

struct PlanStage {
  std::vector<std::string> devices;  // one a member
  int first_layer = 0, last_layer = -1;  // inclusive; last < first: no layer
  bool embedding = false, head = false;
  double decode_seconds = 0;
};
struct PlanDevice {
  std::string id, node, kind;
  uint64_t free_bytes = 0, weights_bytes = 0, scales_bytes = 0, kv_bytes = 0, workspace_bytes = 0, communication_bytes = 0,
           overhead_bytes = 0, reserve_bytes = 0;
  uint64_t used_bytes() const { return weights_bytes + scales_bytes + kv_bytes + workspace_bytes + communication_bytes + overhead_bytes; }
};
// enough: with this change alone it fits.
struct Remedy { std::string change; uint64_t gains_bytes = 0; bool enough = false; };

struct Plan {
  Verdict verdict = Verdict::no;
  std::string reason;  // what does not fit first, when it does not
  std::string model_name, digest, format, kv_dtype, objective, binding;
  uint64_t parameters = 0, footprint_bytes = 0;
  int layers = 0;
  Workload workload;
  Mesh mesh;
  std::vector<PlanStage> stages;
  std::vector<PlanDevice> devices;  // used ones, in rank order
  std::vector<std::pair<std::string, std::string>> device_map;
  int32_t max_context = 0, max_batch = 0;
  double decode_low = 0, decode_mid = 0, decode_high = 0;  // tokens/s, 0: unknown
  std::vector<Remedy> remedies;
  double objective_value = 0, objective_bound = 0;  // what was minimised (maximised for capacity), and what no placement can beat
  std::vector<int32_t> kv_pages;    // per KV group: pages every rank that owns its layers allocates
};

std::string_view name(Verdict verdict);       // "fits", "tight", "no"
std::string_view name(Objective objective);   // "latency", "throughput", "capacity"

// Besides the contract's fields: "reason", "mesh" {"pp","ep","tp"}, "kv_pages", and "enough" of a remedy.
nlohmann::ordered_json to_json(const Plan& plan);
Plan plan_from_json(const nlohmann::json& json, const std::string& where);  // Errors: Code::invalid_argument naming the field
std::string table(const Plan& plan, int columns);  // for people: a memory bar per device, limits, advice

}  // namespace tandem
