// plan --solve: the largest context, the largest batch, the pairs of both, the fewest devices or the best format that fits. Every value
// is planned as `plan` would plan it: the answer fits, the next one does not. Reads the files that options name; any thread.
#pragma once
#include <string>
#include <vector>

#include "launch/options.h"
#include "launch/planning.h"
#include "launch/solution.h"

namespace tandem {

// "Fits" keeps the reserve. Where only what asks least (one page of context, a batch of one, the most devices, the smallest format) fits,
// and with less than the reserve, that is the answer: Verdict::tight. Nothing fits: Verdict::no, no answer, and the plan of what asks
// least says why. Errors: Code::invalid_argument: an unknown question, or an option that fixes what is asked; those of plan_for.
Solution solve(const std::string& question, const ModelOptions& model, const PlanRequest& request);

// The formats that can be made from floats, best first: by bits a weight, of equals in the order of the list of formats. Of the dense
// ones only bf16.
std::vector<std::string> formats_by_quality();

}  // namespace tandem
