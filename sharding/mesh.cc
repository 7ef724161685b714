#include "sharding/mesh.h"

namespace tandem {

std::vector<int> Mesh::stage_ranks(int stage) const {
  std::vector<int> ranks(group_size());
  for (int member = 0; member < group_size(); ++member) ranks[member] = stage * group_size() + member;
  return ranks;
}

std::string Mesh::text() const { return "pp" + std::to_string(pp) + " x ep" + std::to_string(ep) + " x tp" + std::to_string(tp); }

}  // namespace tandem
