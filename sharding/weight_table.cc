#include "sharding/weight_table.h"

#include "kernels/base/error.h"

namespace tandem {

WeightId WeightTable::add(WeightRow row) {
  const WeightId id = size();
  if (!index_.emplace(row.name, id).second) fail(Code::internal, row.name, "declared twice (one row a weight)");
  rows_.push_back(std::move(row));
  return id;
}

WeightId WeightTable::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? kNoWeight : found->second;
}

}  // namespace tandem
