// Which rectangle of every weight a rank holds. Cuts fall between heads, experts and quantization blocks; a size that does not divide
// where it must is refused, naming the weight and what would work. KV heads are replicated when there are fewer than parts. Ffn and
// Vocab may divide unevenly (in whole grains). Pure.
#pragma once
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/formats/format.h"
#include "kernels/program/program.h"
#include "sharding/mesh.h"
#include "sharding/rules.h"
#include "sharding/weight_table.h"

namespace tandem {

class Slicer {
 public:
  // formats[id]: the format in which row id is held (its grain limits the cuts). Errors: Code::invalid_argument naming option
  // --tp / --ep, the weight and the nearest degrees that work.
  Slicer(const WeightTable& table, std::span<const Format* const> formats, Mesh mesh);

  const Mesh& mesh() const { return mesh_; }
  const WeightTable& table() const { return table_; }
  bool holds(WeightId id, int member) const;                                                    // false for another member's experts
  Rectangle part(WeightId id, int member) const;                                                // elements of the whole matrix
  WeightSlice slice(WeightId id, WeightId bias, int member) const;                              // as Program takes it
  std::pair<int64_t, int64_t> range(Axis axis, int64_t count, int64_t unit, int member) const;  // things [begin, end) of an axis
  std::vector<int64_t> parts(WeightId id) const;  // rows held by each member of the stage group

 private:
  struct Cut {  // one splittable dimension: all weights that have it are cut alike
    Axis axis = Axis::none;
    int64_t count = 0, unit = 1;
    int64_t grain = 1;   // elements; cuts fall on multiples
    int64_t widest = 1;  // the largest grain of one weight, and whose it is
    WeightId weight = kNoWeight;
    bool contracted = false;  // some weight has it as its columns
  };
  Cut cut_of(Axis axis, int64_t count, int64_t unit) const;
  Split split(const WeightRow& row, Axis axis, int member) const;
  std::string problem(const Mesh& mesh, bool* expert_axis) const;  // empty: every cut works

  const WeightTable& table_;
  std::vector<const Format*> formats_;
  Mesh mesh_;
  std::vector<Cut> cuts_;
  std::vector<int64_t> experts_;  // of layer [layer + 1]
};

}  // namespace tandem
