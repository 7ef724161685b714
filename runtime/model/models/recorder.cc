#include "kernels/base/error.h"
#include "runtime/model/models/model.h"

namespace tandem {

std::string layer_name(int layer, std::string_view name) { return "model.layers." + std::to_string(layer) + "." + std::string(name); }

Recorder::Recorder(Program& program, const Model& model, const Slicer& slicer, int member, int first_layer, int last_layer, bool embeds,
                   int64_t context)
    : program_(program), model_(model), slicer_(slicer), member_(member), first_layer_(first_layer), last_layer_(last_layer), embeds_(embeds), context_(context) {}

WeightSlice Recorder::weight(const std::string& name) const {
  const WeightId id = model_.weights.find(name + ".weight");
  if (id == kNoWeight) fail(Code::internal, name, "is not declared by " + std::string(model_.family()));
  return slicer_.slice(id, model_.weights.find(name + ".bias"), member_);
}
WeightSlice Recorder::weight(int layer, const std::string& name) const { return weight(layer_name(layer, name)); }

Norm Recorder::norm(const std::string& name, float epsilon, NormKind kind) const {
  const WeightId id = model_.weights.find(name + ".weight");
  if (id == kNoWeight) fail(Code::internal, name, "is not declared by " + std::string(model_.family()));
  return {id, model_.weights.find(name + ".bias"), epsilon, kind};
}
Norm Recorder::norm(int layer, const std::string& name, float epsilon, NormKind kind) const {
  return norm(layer_name(layer, name), epsilon, kind);
}

KvLayer Recorder::kv(int layer) const {
  for (size_t group = 0; group < model_.kv_groups.size(); ++group) {
    int32_t index = 0;
    for (int member_layer : model_.kv_groups[group].layers) {
      if (member_layer == layer) return {static_cast<int32_t>(group), index};
      if (member_layer >= first_layer_ && member_layer <= last_layer_) ++index;
    }
  }
  fail(Code::internal, layer_name(layer, "self_attn"), "is in no KV group");
}

HeadShape Recorder::heads() const {
  const ModelShape& shape = model_.shape;
  const auto [q0, q1] = slicer_.range(Axis::heads, shape.heads, shape.head_dim, member_);
  const auto [kv0, kv1] = slicer_.range(Axis::kv_heads, shape.kv_heads, shape.head_dim, member_);
  return {q1 - q0, kv1 - kv0, shape.head_dim};
}

std::pair<int64_t, int64_t> Recorder::experts(int64_t count) const { return slicer_.range(Axis::experts, count, 1, member_); }

int64_t Recorder::window(int layer) const { return model_.kv_groups[static_cast<size_t>(kv(layer).group)].window; }

void Recorder::embed(const Embedding& how) {
  WeightSlice table = slicer_.slice(model_.embedding, kNoWeight, member_);
  const Rectangle part = slicer_.part(model_.embedding, member_);
  Positions positions;
  if (!how.positions.empty()) {
    const WeightSlice learned = weight(how.positions);
    positions = {learned.id, learned.out, how.position_offset};
  }
  program_.embed(table, part.row_begin, part.row_end, how.scale, positions, how.projection.empty() ? WeightSlice{} : weight(how.projection));
}

void Recorder::head(Norm norm, float soft_cap, const std::string& projection) {
  // A head tied to an embedding that this stage holds anyway reads the same bytes.
  const WeightId tied = model_.weights[model_.head_weight].tied_to;
  const WeightId id = tied != kNoWeight && embeds_ ? tied : model_.head_weight;
  const WeightSlice slice = slicer_.slice(id, model_.weights.find("lm_head.bias"), member_);
  program_.head(norm, slice, model_.shape.vocab, slice.out_split ? slicer_.parts(id) : std::vector<int64_t>{}, 1, soft_cap,
                projection.empty() ? WeightSlice{} : weight(projection));
}

}  // namespace tandem
