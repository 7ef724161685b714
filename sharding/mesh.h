// How ranks map to pipeline, expert and tensor parallel coordinates: rank = (pp index * ep + ep index) * tp + tp index. Values only.
#pragma once
#include <string>
#include <vector>

namespace tandem {

struct MeshCoordinates { int pp = 0, ep = 0, tp = 0; };

struct Mesh {
  int pp = 1, ep = 1, tp = 1;
  int size() const { return pp * ep * tp; }
  int group_size() const { return ep * tp; }              // ranks of one stage
  MeshCoordinates at(int rank) const { return {rank / (ep * tp), rank / tp % ep, rank % tp}; }
  int stage(int rank) const { return rank / group_size(); }
  int member(int rank) const { return rank % group_size(); }  // index inside the stage's peer group
  std::vector<int> stage_ranks(int stage) const;
  std::string text() const;  // "pp2 x ep1 x tp2"
};

}  // namespace tandem
