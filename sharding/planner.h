// Places contiguous layers over devices by exact bytes. Pure: no device, no clock, no file.
#pragma once
#include "sharding/cluster.h"
#include "sharding/plan.h"
#include "sharding/profile.h"

namespace tandem {

struct Placement {  // what the user fixed; 0 = the planner's choice
  int pp = 0;       // stages
  std::vector<int> layers_per_stage;
};

// Verdict::no with a reason when it does not fit; never throws for that. Errors: Code::invalid_argument for requests that make no sense
// (more stages than layers, a batch of 0).
Plan plan(const Profile& profile, const Cluster& cluster, const Workload& workload, Objective objective, const Placement& placement);

}  // namespace tandem
