// The answer to a question about capacity (plan --solve): which value is the most that fits, and what keeps the next one from fitting.
// Schema "tandem.solve/1". Values only.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "sharding/plan.h"

namespace tandem {

struct SolutionRow {      // one value that was planned
  int32_t context = 0, batch = 0;
  std::string format;     // as --format takes it for the question `format`, else the plan's label
  std::string gpus;       // as --gpus takes it; "": devices were named in another way
  int devices = 0;        // that the plan uses
  Verdict verdict = Verdict::no;
  uint64_t device_bytes = 0, used_bytes = 0;  // weights and scales; everything; both over all devices
  double decode_tokens_per_second = 0;        // 0: unknown
  std::string binding;    // what does not fit of this value, or, where it fits, of the next larger one; "": neither
};

struct Solution {
  std::string question;             // "context", "batch", "frontier", "devices", "format"
  std::string headline;             // the answer in a sentence
  Verdict verdict = Verdict::no;
  std::optional<SolutionRow> answer, next;  // no answer: nothing fits, or the rows are it; no next: there is no larger value
  std::string binding;              // what stops the next
  std::vector<SolutionRow> rows;    // all that was compared
  std::optional<Plan> plan;         // of the answer; when nothing fits, of what asks least
};

// {"schema", "solve", "verdict", "answer", "next", "binding", "rows": [row], "plan": a tandem.plan/1}, where a row is {"context", "batch",
// "format", "gpus", "devices", "verdict", "device_bytes", "used_bytes", "decode_tokens_per_second", "binding"}; what is not there is null.
nlohmann::ordered_json to_json(const Solution& solution);
std::string table(const Solution& solution, int columns);  // for people: the answer, what was compared, what binds

}  // namespace tandem
