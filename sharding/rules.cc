#include "sharding/rules.h"

namespace tandem {
namespace {

struct Rule {
  Axis axis;
  bool pp, ep, tp;  // the mesh factors that split it, the outer one first
};

// THE list of parallel modes. An axis that is not here stays whole on every rank.
constexpr Rule kRules[] = {
    {Axis::layer, true, false, false}, {Axis::heads, false, true, true},    {Axis::kv_heads, false, true, true},
    {Axis::ffn, false, true, true},    {Axis::experts, false, true, false}, {Axis::expert_ffn, false, false, true},
    {Axis::vocab, false, true, true},
};

}  // namespace

Split split_of(Axis axis, const Mesh& mesh, const MeshCoordinates& at) {
  Split split;
  const auto factor = [&split](bool splits, int degree, int index) {
    if (!splits) return;
    split.parts *= degree;
    split.index = split.index * degree + index;
  };
  for (const Rule& rule : kRules) {
    if (rule.axis != axis) continue;
    factor(rule.pp, mesh.pp, at.pp);
    factor(rule.ep, mesh.ep, at.ep);
    factor(rule.tp, mesh.tp, at.tp);
  }
  return split;
}

}  // namespace tandem
