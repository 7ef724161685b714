// From options to a plan: resolves what the user left open (degrees, cluster, reserve, context), profiles the model and places it. The
// one place for it, so that `plan` shows what the other commands run. Reads the files that options name; any thread.
#pragma once
#include "launch/options.h"
#include "runtime/model/blueprint.h"
#include "sharding/cluster.h"
#include "sharding/plan.h"

namespace tandem {

struct PlanRequest {
  PlaceOptions place;
  SizeOptions size;
  BudgetOptions budget;
  int default_batch = 1;    // where --max-batch is not given
  bool all_logits = false;  // every row of a chunk may ask for its logits
};

// With --plan: that file, checked against the model (digest, format, types) and against what else was asked.
// `backend` tells sizes: make_sizes(plans_for_gpus(request), ...).
// Errors: Code::invalid_argument naming the option or the file. A model that does not fit is no error: Verdict::no.
Plan plan_for(const Blueprint& blueprint, const PlanRequest& request, const Backend& backend);

// Its two halves, for a caller that plans many times over the same devices. cluster_for reads how much memory is free now; plan_on knows
// nothing of --plan. Errors: plan_for's.
Cluster cluster_for(const PlanRequest& request);
Plan plan_on(const Cluster& cluster, const Blueprint& blueprint, const PlanRequest& request, const Backend& backend);

struct Degrees { int ranks = 0, pp = 0, tp = 1, ep = 1; };  // ranks and pp 0: the planner's choice
Degrees resolve_degrees(const PlaceOptions& place, bool on_cpu);  // Errors: plan_for's

// Whether any device of the request is no CPU: then the arithmetic's `auto` means a GPU's. Errors: as plan_for's about devices.
bool plans_for_gpus(const PlanRequest& request);

// How many ranks a request for CPUs means. Errors: as plan_for's about degrees and --plan.
int cpu_ranks(const PlanRequest& request);

// Errors: Code::invalid_argument with the first thing that does not fit. A tight plan passes.
void require_fits(const Plan& plan);

}  // namespace tandem
