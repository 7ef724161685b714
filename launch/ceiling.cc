#include "launch/ceiling.h"

#include <algorithm>
#include <cmath>

namespace tandem {

ModelWork model_work(const Blueprint& blueprint, const Workload& workload, const Backend& backend) {
  const Model& model = *blueprint.model;
  const Profile profile = make_profile(blueprint, {1, 1, 1}, workload, false, backend);
  ModelWork work;
  if (model.shape.experts > 0) work.experts = model.shape.experts, work.experts_per_token = model.shape.experts_per_token;
  const double chosen = work.experts_per_token / work.experts;
  for (const Piece& layer : profile.layers) {
    const auto all = static_cast<double>(layer.resident[0].sum()), read = static_cast<double>(layer.read_bytes);
    // A profile counts of the experts what one token goes through.
    const double experts = chosen < 1 ? (all - read) / (1 - chosen) : 0;
    work.expert_bytes += experts;
    work.dense_bytes += all - experts;
    for (const uint64_t page : layer.kv_page_bytes) work.kv_bytes += static_cast<double>(page) / workload.page_tokens;
  }
  work.dense_bytes += static_cast<double>(profile.tied ? profile.head.resident[0].sum() : profile.head.read_bytes);
  for (const WeightRow& row : model.weights.rows()) {
    if (row.role != Role::linear && row.role != Role::router) continue;
    work.token_flops += 2.0 * static_cast<double>(row.elements()) * (row.expert >= 0 ? chosen : 1);
  }
  work.attention_flops = 4.0 * static_cast<double>(model.shape.heads * model.shape.head_dim) * model.shape.layers;
  return work;
}

Ceiling decode_ceiling(const ModelWork& work, const Mesh& mesh, double bandwidth, int32_t batch, double context) {
  const double in_step = batch / std::min<double>(batch, mesh.pp);  // sequences that share a step
  const double missed = std::pow(1 - work.experts_per_token / work.experts, in_step);
  const double bytes = (work.dense_bytes + work.expert_bytes * (1 - missed)) / in_step + work.kv_bytes * context;
  // A step passes the stages one after another, each with the bandwidth of its group; the steps on the way at once make up for it.
  const double at_once = batch / in_step;
  return {bandwidth * mesh.group_size() * at_once / bytes, "memory reads", bytes};
}

Ceiling prefill_ceiling(const ModelWork& work, const Mesh& mesh, double flops, int32_t tokens) {
  const double each = work.token_flops + work.attention_flops * (tokens + 1) / 2;
  return {flops * mesh.size() / each, "arithmetic", each};
}

}  // namespace tandem
