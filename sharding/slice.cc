#include "sharding/slice.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/error.h"

namespace tandem {
namespace {

constexpr int kLargestDegree = 1024;

const char* things(Axis axis) {
  switch (axis) {
    case Axis::heads:
      return "heads";
    case Axis::kv_heads:
      return "KV heads";
    case Axis::experts:
      return "experts";
    case Axis::vocab:
      return "vocabulary rows";
    default:
      return "intermediate features";
  }
}

// Heads are indivisible and equal on every rank; the rest goes in whole grains, as evenly as they allow.
bool in_grains(Axis axis) { return axis == Axis::ffn || axis == Axis::expert_ffn || axis == Axis::vocab; }

// The fewest things of `unit` elements that are whole grains, and how many such pieces there are (the last may be partial).
int64_t piece_of(int64_t unit, int64_t grain) { return grain / std::gcd(grain, unit); }
int64_t pieces_of(int64_t count, int64_t piece) { return (count + piece - 1) / piece; }

std::string how_many(const Mesh& mesh, Axis axis) {
  const int parts = split_of(axis, mesh, {}).parts;
  if (axis == Axis::experts) return "--ep " + std::to_string(mesh.ep);
  if (axis == Axis::expert_ffn || mesh.ep == 1) return "--tp " + std::to_string(mesh.tp);
  if (mesh.tp == 1) return "--ep " + std::to_string(mesh.ep);
  return "--ep " + std::to_string(mesh.ep) + " x --tp " + std::to_string(mesh.tp) + " = " + std::to_string(parts);
}

}  // namespace

Slicer::Slicer(const WeightTable& table, std::span<const Format* const> formats, Mesh mesh)
    : table_(table), formats_(formats.begin(), formats.end()), mesh_(mesh) {
  if (static_cast<int>(formats_.size()) != table.size()) fail(Code::internal, "slicer", "one format a weight is needed");
  if (mesh.pp < 1 || mesh.ep < 1 || mesh.tp < 1) bad_input(mesh.pp < 1 ? "--pp" : mesh.ep < 1 ? "--ep" : "--tp", "must be 1 or more");
  const auto note = [this](const Dim& dim, WeightId id, int64_t grain, bool contracted) {
    if (split_of(dim.axis, Mesh{2, 2, 2}, {}).parts == 1) return;
    auto cut = std::find_if(cuts_.begin(), cuts_.end(),
                            [&dim](const Cut& c) { return c.axis == dim.axis && c.count == dim.count && c.unit == dim.unit; });
    if (cut == cuts_.end()) cut = cuts_.insert(cut, Cut{dim.axis, dim.count, dim.unit, 1, 0, kNoWeight, false});
    cut->grain = std::min(std::lcm(cut->grain, grain), std::max<int64_t>(1, dim.size()));  // a grain as large as all: no cut at all
    if (grain > cut->widest) cut->widest = grain, cut->weight = id;
    cut->contracted |= contracted;
  };
  for (WeightId id = 0; id < table.size(); ++id) {
    const WeightRow& row = table[id];
    if (row.expert >= 0) {
      experts_.resize(std::max<size_t>(experts_.size(), row.layer + 2));
      experts_[row.layer + 1] = std::max<int64_t>(experts_[row.layer + 1], row.expert + 1);
    }
    if (row.role == Role::router) continue;
    const Grain grain = formats_[id] ? formats_[id]->grain(row.rows.size(), row.cols.size()) : Grain{};
    note(row.rows, id, grain.rows, false);
    note(row.cols, id, grain.cols, true);
  }
  for (const int64_t count : experts_) {
    if (count > 0) note({Axis::experts, count, 1}, kNoWeight, 1, false);
  }

  bool experts = false;
  const std::string wrong = problem(mesh_, &experts);
  if (wrong.empty()) return;
  const bool tp = !experts && mesh_.tp > 1;
  const char* option = tp ? "--tp" : "--ep";
  std::string works;
  const auto look = [&](int from, int to, int step) {
    for (int degree = from; degree != to; degree += step) {
      Mesh other = mesh_;
      (tp ? other.tp : other.ep) = degree;
      bool unused = false;
      if (!problem(other, &unused).empty()) continue;
      works += (works.empty() ? "" : " or ") + std::string(option) + " " + std::to_string(degree);
      return;
    }
  };
  const int degree = tp ? mesh_.tp : mesh_.ep;
  look(degree - 1, 0, -1);
  look(degree + 1, kLargestDegree, 1);
  bad_input(option, wrong + " (" + (works.empty() ? "no other " + std::string(option) + " works here" : works + " would work") + ")");
}

std::string Slicer::problem(const Mesh& mesh, bool* expert_axis) const {
  for (const Cut& cut : cuts_) {
    const int64_t parts = split_of(cut.axis, mesh, {}).parts;
    if (parts == 1) continue;
    *expert_axis = cut.axis == Axis::experts;
    const std::string what =
        (cut.weight == kNoWeight ? "" : table_[cut.weight].name + ": ") + std::to_string(cut.count) + " " + things(cut.axis);
    const std::string degree = how_many(mesh, cut.axis);
    if (cut.axis == Axis::experts) {
      if (cut.count < parts) return what + " are fewer than " + degree;
      continue;
    }
    if (in_grains(cut.axis)) {
      if (pieces_of(cut.count, piece_of(cut.unit, cut.grain)) < parts) {
        return what + " in blocks of " + std::to_string(cut.grain) + " give fewer than " + degree + " parts";
      }
      continue;
    }
    const bool replicated = cut.axis == Axis::kv_heads && parts > cut.count && parts % cut.count == 0;
    if (cut.count % parts != 0 && !replicated) return what + " do not divide by " + degree;
    if (replicated && cut.contracted) return what + " are contracted and cannot be replicated over " + degree;
    const int64_t step = (replicated ? 1 : cut.count / parts) * cut.unit;  // elements between neighbouring cuts
    if (step < cut.count * cut.unit && step % cut.grain != 0) {
      return what + " x " + std::to_string(cut.unit) + " over " + degree + " would cut quantization blocks of " + std::to_string(cut.grain);
    }
  }
  return "";
}

Slicer::Cut Slicer::cut_of(Axis axis, int64_t count, int64_t unit) const {
  for (const Cut& cut : cuts_) {
    if (cut.axis == axis && cut.count == count && cut.unit == unit) return cut;
  }
  return Cut{axis, count, unit};
}

Split Slicer::split(const WeightRow& row, Axis axis, int member) const {
  if (row.role == Role::router) return {};  // every rank routes over all experts
  return split_of(axis, Mesh{1, mesh_.ep, mesh_.tp}, mesh_.at(member));
}

std::pair<int64_t, int64_t> Slicer::range(Axis axis, int64_t count, int64_t unit, int member) const {
  const Split split = split_of(axis, Mesh{1, mesh_.ep, mesh_.tp}, mesh_.at(member));
  if (split.parts == 1) return {0, count};
  if (axis == Axis::kv_heads && split.parts > count) {
    const int64_t head = split.index * count / split.parts;
    return {head, head + 1};
  }
  if (!in_grains(axis)) return {count * split.index / split.parts, count * (split.index + 1) / split.parts};
  const int64_t piece = piece_of(unit, cut_of(axis, count, unit).grain), pieces = pieces_of(count, piece);
  return {std::min(count, pieces * split.index / split.parts * piece), std::min(count, pieces * (split.index + 1) / split.parts * piece)};
}

bool Slicer::holds(WeightId id, int member) const {
  const WeightRow& row = table_[id];
  if (row.expert < 0) return true;
  const auto [begin, end] = range(Axis::experts, experts_[row.layer + 1], 1, member);
  return row.expert >= begin && row.expert < end;
}

Rectangle Slicer::part(WeightId id, int member) const {
  const WeightRow& row = table_[id];
  if (!holds(id, member)) return {};
  Rectangle part{0, row.rows.size(), 0, row.cols.size()};
  if (row.role == Role::router) return part;
  const auto rows = range(row.rows.axis, row.rows.count, row.rows.unit, member);
  const auto cols = range(row.cols.axis, row.cols.count, row.cols.unit, member);
  part.row_begin = rows.first * row.rows.unit, part.row_end = rows.second * row.rows.unit;
  part.col_begin = cols.first * row.cols.unit, part.col_end = cols.second * row.cols.unit;
  return part;
}

WeightSlice Slicer::slice(WeightId id, WeightId bias, int member) const {
  const WeightRow& row = table_[id];
  const Rectangle rectangle = part(id, member);
  if (bias != kNoWeight) {
    const Rectangle follows = part(bias, member);
    if (follows.row_begin != rectangle.row_begin || follows.row_end != rectangle.row_end) {
      fail(Code::internal, table_[bias].name, "is not cut like the rows of " + row.name);
    }
  }
  return {id,  rectangle.rows(), rectangle.cols(), split(row, row.rows.axis, member).parts > 1, split(row, row.cols.axis, member).parts > 1,
          bias};
}

std::vector<int64_t> Slicer::parts(WeightId id) const {
  std::vector<int64_t> rows(mesh_.group_size());
  for (int member = 0; member < mesh_.group_size(); ++member) rows[member] = part(id, member).rows();
  return rows;
}

}  // namespace tandem
