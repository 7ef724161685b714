#include <algorithm>

#include "runtime/model/models/model.h"

namespace tandem {
namespace {

Origin with(Origin origin, const std::string& fallback, const char* suffix) {
  origin.tensor = (origin.tensor.empty() ? fallback : origin.tensor) + suffix;
  return origin;
}

}  // namespace

void Model::declare(const LinearRow& row) {
  weights.add({.name = row.name + ".weight", .role = row.role, .layer = row.layer, .expert = row.expert, .rows = row.rows, .cols = row.cols,
               .huggingface = with(row.huggingface, row.name, ".weight"), .gguf = with(row.gguf, row.name, ".weight"), .embeds = row.embeds});
  if (!row.bias) return;
  Origin huggingface = with(row.huggingface, row.name, ".bias"), gguf = with(row.gguf, row.name, ".bias");
  huggingface.transposed = gguf.transposed = false;
  weights.add({.name = row.name + ".bias", .role = Role::bias, .layer = row.layer, .rows = row.rows, .cols = {}, .huggingface = huggingface,
               .gguf = gguf, .embeds = row.embeds});
}

void Model::declare_fused(std::span<const FusedPart> parts, const LinearRow& whole) {
  int64_t rows = 0, offset = 0;
  for (const FusedPart& part : parts) rows += part.rows.size();
  for (const FusedPart& part : parts) {
    LinearRow row = whole;
    row.name = part.name, row.rows = part.rows;
    for (Origin* origin : {&row.huggingface, &row.gguf}) origin->row_offset = offset, origin->fused_rows = rows;
    declare(row);
    offset += part.rows.size();
  }
}

void Model::declare_norm(const std::string& name, int64_t width, int layer, Origin huggingface, Origin gguf, bool bias) {
  const Dim cols{Axis::none, width, 1};
  weights.add({.name = name + ".weight", .role = Role::norm, .layer = layer, .cols = cols, .huggingface = with(huggingface, name, ".weight"),
               .gguf = with(gguf, name, ".weight")});
  if (!bias) return;
  weights.add({.name = name + ".bias", .role = Role::norm, .layer = layer, .cols = cols, .huggingface = with(huggingface, name, ".bias"),
               .gguf = with(gguf, name, ".bias")});
}

void Model::declare_embedding(int64_t width, const std::string& huggingface) {
  embedding = weights.add({.name = "model.embed_tokens.weight", .role = Role::embedding, .rows = {Axis::vocab, shape.vocab, 1},
                           .cols = {Axis::model, width, 1}, .huggingface = {huggingface + ".weight"}, .gguf = {"token_embd.weight"}, .embeds = true});
}

void Model::declare_head(int64_t width, bool tied, const std::string& huggingface) {
  WeightRow row{.name = "lm_head.weight", .role = Role::head, .rows = {Axis::vocab, shape.vocab, 1}, .cols = {Axis::model, width, 1},
                .huggingface = {huggingface + ".weight"}, .gguf = {"output.weight"}};
  if (tied) row.huggingface = weights[embedding].huggingface, row.gguf = weights[embedding].gguf, row.tied_to = embedding;
  head_weight = weights.add(std::move(row));
}

void Model::group_layers(std::span<const int64_t> windows) {
  for (int layer = 0; layer < shape.layers; ++layer) {
    const int64_t window = windows.empty() ? 0 : windows[static_cast<size_t>(layer)];
    auto group = std::ranges::find(kv_groups, window, &KvGroup::window);
    if (group == kv_groups.end()) group = kv_groups.insert(group, {{}, shape.kv_heads, shape.head_dim, window});
    group->layers.push_back(layer);
  }
}

}  // namespace tandem
