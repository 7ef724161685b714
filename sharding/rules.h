// The list of parallel modes: which mesh factors split an axis. Heads, KvHeads, Ffn, Vocab -> (ep, tp); Experts -> ep;
// ExpertFfn -> tp; Layer -> pp; everything else stays whole.
#pragma once
#include "sharding/axis.h"
#include "sharding/mesh.h"

namespace tandem {

struct Split { int parts = 1, index = 0; };  // this rank holds part `index` of `parts`
Split split_of(Axis axis, const Mesh& mesh, const MeshCoordinates& at);

}  // namespace tandem
