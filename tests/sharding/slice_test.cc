// Slices over many meshes: every element of every weight is held exactly once by the members of a stage, except what is replicated.
#include "sharding/slice.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "sharding/rules.h"

namespace tandem {
namespace {

// A format with nothing but a grain.
class Blocks : public Format {
 public:
  Blocks(int64_t rows, int64_t cols) : grain_{rows, cols} {}
  std::string_view name() const override { return "blocks"; }
  std::vector<Component> components(int64_t, int64_t) const override { return {}; }
  Grain grain(int64_t, int64_t) const override { return grain_; }
  std::vector<std::vector<ByteRange>> ranges(int64_t, int64_t, const Rectangle&) const override { return {}; }
  void quantize(const float*, int64_t, int64_t, std::span<std::byte* const>) const override {}
  void dequantize(const QuantizedView&, int64_t, int64_t, float*) const override {}

 private:
  Grain grain_;
};

const Blocks kDense(1, 1), kBlocks32(1, 32), kBlocks64(1, 64), kTiles(128, 128);

struct Shape {
  int64_t hidden = 256, heads = 8, kv_heads = 4, head_dim = 32, ffn = 704, vocab = 1003;
  int experts = 0;
  int64_t expert_ffn = 0;
};

struct Model {
  WeightTable table;
  std::vector<const Format*> formats;
  WeightId add(WeightRow row, const Format& format) {
    formats.push_back(&format);
    return table.add(std::move(row));
  }
};

Model make(const Shape& shape, const Format& linear, bool biases = false) {
  Model model;
  const Dim hidden{Axis::model, shape.hidden, 1}, one{Axis::none, 1, 1};
  const Dim heads{Axis::heads, shape.heads, shape.head_dim}, kv{Axis::kv_heads, shape.kv_heads, shape.head_dim};
  const Dim ffn{Axis::ffn, shape.ffn, 1}, vocab{Axis::vocab, shape.vocab, 1};
  const auto add = [&](std::string name, Role role, Dim rows, Dim cols, const Format& format, int expert = -1) {
    const WeightRow row{name + ".weight", role, role == Role::embedding || role == Role::head ? -1 : 0, expert, rows, cols};
    model.add(row, format);
    if (biases && role == Role::linear && expert < 0) model.add({name + ".bias", Role::bias, 0, -1, rows, one}, kDense);
  };
  add("embed_tokens", Role::embedding, vocab, hidden, kDense);
  add("norm", Role::norm, one, {Axis::none, shape.hidden, 1}, kDense);
  add("q_proj", Role::linear, heads, hidden, linear);
  add("k_proj", Role::linear, kv, hidden, linear);
  add("v_proj", Role::linear, kv, hidden, linear);
  add("o_proj", Role::linear, hidden, heads, linear);
  if (shape.experts == 0) {
    add("gate_proj", Role::linear, ffn, hidden, linear);
    add("up_proj", Role::linear, ffn, hidden, linear);
    add("down_proj", Role::linear, hidden, ffn, linear);
  } else {
    add("gate", Role::router, {Axis::experts, shape.experts, 1}, hidden, linear);
    for (int e = 0; e < shape.experts; ++e) {
      const Dim inner{Axis::expert_ffn, shape.expert_ffn, 1};
      add("experts." + std::to_string(e) + ".w1", Role::linear, inner, hidden, linear, e);
      add("experts." + std::to_string(e) + ".w2", Role::linear, hidden, inner, linear, e);
    }
  }
  add("lm_head", Role::head, vocab, hidden, kDense);
  return model;
}

// How many members hold each element; rectangles must be cuts of whole rows or whole columns.
void check_tiling(const Model& model, const Mesh& mesh) {
  const Slicer slicer(model.table, model.formats, mesh);
  for (WeightId id = 0; id < model.table.size(); ++id) {
    const WeightRow& row = model.table[id];
    SCOPED_TRACE(row.name + " over " + mesh.text());
    const Grain grain = model.formats[id]->grain(row.rows.size(), row.cols.size());
    const bool split = split_of(row.rows.axis, mesh, {}).parts > 1 || split_of(row.cols.axis, mesh, {}).parts > 1;
    const bool whole = row.role == Role::router || !split;
    const int64_t parts =
        whole ? 1 : split_of(row.rows.axis == Axis::model || row.rows.axis == Axis::none ? row.cols.axis : row.rows.axis, mesh, {}).parts;
    const int64_t copies_of_part = row.rows.axis == Axis::kv_heads && parts > row.rows.count ? parts / row.rows.count : 1;
    // Members with the same coordinate on the splitting factors hold the same part.
    const int holders = row.expert >= 0 ? 1 : mesh.group_size() / static_cast<int>(parts) * static_cast<int>(copies_of_part);
    std::vector<int> seen(row.rows.size() * row.cols.size());
    for (int member = 0; member < mesh.group_size(); ++member) {
      const Rectangle part = slicer.part(id, member);
      EXPECT_EQ(slicer.parts(id)[member], part.rows());
      if (!slicer.holds(id, member)) {
        EXPECT_EQ(part.rows() * part.cols(), 0);
        continue;
      }
      EXPECT_GT(part.rows() * part.cols(), 0);
      for (const int64_t edge : {part.row_begin, part.row_end}) EXPECT_TRUE(edge == row.rows.size() || edge % grain.rows == 0) << edge;
      for (const int64_t edge : {part.col_begin, part.col_end}) EXPECT_TRUE(edge == row.cols.size() || edge % grain.cols == 0) << edge;
      for (int64_t r = part.row_begin; r < part.row_end; ++r) {
        for (int64_t c = part.col_begin; c < part.col_end; ++c) ++seen[r * row.cols.size() + c];
      }
      const WeightSlice slice = slicer.slice(id, kNoWeight, member);
      EXPECT_EQ(slice.out, part.rows());
      EXPECT_EQ(slice.in, part.cols());
      EXPECT_EQ(slice.out_split || slice.in_split, !whole);
    }
    EXPECT_EQ(std::count(seen.begin(), seen.end(), holders), std::ssize(seen));
  }
}

TEST(Slice, DenseTilesOverManyMeshes) {
  for (const Format* format : {static_cast<const Format*>(&kDense), static_cast<const Format*>(&kBlocks32)}) {
    const Model model = make({}, *format, true);
    for (const Mesh mesh :
         {Mesh{1, 1, 1}, Mesh{1, 1, 2}, Mesh{2, 1, 2}, Mesh{1, 1, 4}, Mesh{1, 2, 2}, Mesh{1, 1, 8}, Mesh{3, 2, 4}, Mesh{1, 4, 1}}) {
      check_tiling(model, mesh);
    }
  }
}

TEST(Slice, ExpertsTileOverManyMeshes) {
  Shape shape;
  shape.experts = 5, shape.expert_ffn = 192;  // five experts: uneven over ep
  for (const Format* format : {static_cast<const Format*>(&kDense), static_cast<const Format*>(&kBlocks32)}) {
    const Model model = make(shape, *format);
    for (const Mesh mesh : {Mesh{1, 1, 1}, Mesh{1, 2, 1}, Mesh{1, 4, 1}, Mesh{1, 2, 2}, Mesh{2, 2, 4}, Mesh{1, 1, 4}, Mesh{1, 4, 2}}) {
      check_tiling(model, mesh);
    }
  }
}

TEST(Slice, KeyHeadsAreThoseOfTheQueryHeads) {
  const Model model = make({.heads = 12, .kv_heads = 3}, kDense);
  for (const int tp : {1, 3, 6, 12}) {
    const Slicer slicer(model.table, model.formats, {1, 1, tp});
    for (int member = 0; member < tp; ++member) {
      const auto q = slicer.range(Axis::heads, 12, 32, member), kv = slicer.range(Axis::kv_heads, 3, 32, member);
      EXPECT_EQ(kv.first, q.first / 4);
      EXPECT_EQ(kv.second, (q.second - 1) / 4 + 1);
    }
  }
}

TEST(Slice, CutsOfTheMiddleFollowTheCoarsestWeight) {
  // down_proj in blocks of 64 limits gate and up, which alone could be cut anywhere: 704 = 11 blocks over 4.
  Model model = make({}, kBlocks64);
  const Slicer slicer(model.table, model.formats, {1, 1, 4});
  EXPECT_EQ(slicer.parts(model.table.find("gate_proj.weight")), (std::vector<int64_t>{128, 192, 192, 192}));
  // The vocabulary has no blocks: 1003 over 4.
  EXPECT_EQ(slicer.parts(model.table.find("lm_head.weight")), (std::vector<int64_t>{250, 251, 251, 251}));
}

TEST(Slice, BiasesFollowTheirRows) {
  const Model model = make({}, kBlocks64, true);
  const Slicer slicer(model.table, model.formats, {1, 1, 4});
  for (const char* name : {"q_proj", "k_proj", "o_proj", "up_proj", "down_proj"}) {
    const WeightId weight = model.table.find(std::string(name) + ".weight"), bias = model.table.find(std::string(name) + ".bias");
    for (int member = 0; member < 4; ++member) {
      const WeightSlice slice = slicer.slice(weight, bias, member);
      EXPECT_EQ(slice.bias, bias);
      EXPECT_EQ(slicer.part(bias, member).rows(), slice.out);
      EXPECT_EQ(slicer.part(bias, member).cols(), 1);
    }
  }
  EXPECT_THROW(slicer.slice(model.table.find("q_proj.weight"), model.table.find("k_proj.bias"), 0), Error);
}

std::string refusal(const Model& model, const Mesh& mesh) {
  try {
    Slicer slicer(model.table, model.formats, mesh);
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    return error.what();
  }
  return "";
}

TEST(Slice, RefusalsNameOptionWeightSizesAndWhatWorks) {
  EXPECT_EQ(refusal(make({}, kDense), {1, 1, 3}), "--tp: q_proj.weight: 8 heads do not divide by --tp 3 (--tp 2 or --tp 4 would work)");
  EXPECT_EQ(refusal(make({}, kDense), {1, 16, 1}), "--ep: q_proj.weight: 8 heads do not divide by --ep 16 (--ep 8 would work)");
  EXPECT_EQ(refusal(make({}, kDense), {1, 2, 3}),
            "--tp: q_proj.weight: 8 heads do not divide by --ep 2 x --tp 3 = 6 (--tp 2 or --tp 4 would work)");
  EXPECT_EQ(refusal(make({.heads = 12, .kv_heads = 6}, kDense), {1, 1, 4}),
            "--tp: k_proj.weight: 6 KV heads do not divide by --tp 4 (--tp 3 or --tp 6 would work)");
  EXPECT_EQ(refusal(make({.ffn = 128}, kBlocks64), {1, 1, 4}),
            "--tp: down_proj.weight: 128 intermediate features in blocks of 64 give fewer than --tp 4 parts (--tp 2 would work)");
  EXPECT_EQ(refusal(make({.heads = 8, .head_dim = 16}, kBlocks64), {1, 1, 8}),
            "--tp: o_proj.weight: 8 heads x 16 over --tp 8 would cut quantization blocks of 64 (--tp 2 would work)");
  Shape moe;
  moe.experts = 4, moe.expert_ffn = 256;
  EXPECT_EQ(refusal(make(moe, kDense), {1, 8, 1}), "--ep: 4 experts are fewer than --ep 8 (--ep 4 would work)");
  EXPECT_EQ(refusal(make(moe, kTiles), {1, 1, 4}),
            "--tp: q_proj.weight: 8 heads x 32 over --tp 4 would cut quantization blocks of 128 (--tp 1 would work)");
}

TEST(WeightTable, FindsByNameAndRefusesASecondRow) {
  WeightTable table;
  EXPECT_EQ(table.add({"a"}), 0);
  EXPECT_EQ(table.add({"b"}), 1);
  EXPECT_EQ(table.find("b"), 1);
  EXPECT_EQ(table.find("c"), kNoWeight);
  EXPECT_THROW(table.add({"a"}), Error);
}

TEST(Rules, SplitByTheMeshFactors) {
  const Mesh mesh{2, 3, 4};
  const MeshCoordinates at = mesh.at(mesh.size() - 5);  // pp 1, ep 1, tp 3
  EXPECT_EQ(at.pp, 1);
  EXPECT_EQ(at.ep, 1);
  EXPECT_EQ(at.tp, 3);
  EXPECT_EQ(split_of(Axis::heads, mesh, at).parts, 12);
  EXPECT_EQ(split_of(Axis::heads, mesh, at).index, 7);
  EXPECT_EQ(split_of(Axis::experts, mesh, at).parts, 3);
  EXPECT_EQ(split_of(Axis::expert_ffn, mesh, at).index, 3);
  EXPECT_EQ(split_of(Axis::layer, mesh, at).index, 1);
  EXPECT_EQ(split_of(Axis::model, mesh, at).parts, 1);
  EXPECT_EQ(mesh.stage_ranks(1), (std::vector<int>{12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}));
  EXPECT_EQ(mesh.text(), "pp2 x ep3 x tp4");
}

}  // namespace
}  // namespace tandem
