// A plan as a picture: one self-contained HTML page with inline SVG, no script. Stages as columns with their layers, devices as bars with
// a segment for each use of memory. Pure.
#pragma once
#include <string>

#include "launch/solution.h"
#include "sharding/plan.h"

namespace tandem {

std::string plan_html(const Plan& plan);
std::string frontier_html(const Solution& frontier);  // context against batch, both doubling

}  // namespace tandem
