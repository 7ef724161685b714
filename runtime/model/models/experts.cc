#include "runtime/model/models/experts.h"

namespace tandem {

void Experts::declare(Model& model, int layer) const {
  const Dim hidden{Axis::model, model.shape.hidden, 1}, wide{Axis::expert_ffn, ffn, 1};
  const std::string block = "blk." + std::to_string(layer) + ".";
  model.shape.experts = count, model.shape.experts_per_token = top_k;
  model.declare({.name = layer_name(layer, router), .rows = {Axis::none, count, 1}, .cols = hidden, .layer = layer, .gguf = {block + "ffn_gate_inp"}, .role = Role::router});
  for (int expert = 0; expert < count; ++expert) {
    const auto add = [&](const std::string& name, Dim rows, Dim cols, const char* gguf) {
      model.declare({.name = layer_name(layer, experts + "." + std::to_string(expert) + "." + name), .rows = rows, .cols = cols, .layer = layer,
                     .gguf = {.tensor = block + gguf, .stacked = expert}, .expert = expert});
    };
    add(gate, wide, hidden, "ffn_gate_exps");
    add(up, wide, hidden, "ffn_up_exps");
    add(down, hidden, wide, "ffn_down_exps");
  }
}

void Experts::record(int layer, Recorder& r, Activation activation, SharedSlices shared) const {
  const auto [begin, end] = r.experts(count);
  std::vector<WeightSlice> gates, ups, downs;
  for (int64_t expert = begin; expert < end; ++expert) {
    const std::string name = experts + "." + std::to_string(expert) + ".";
    gates.push_back(r.weight(layer, name + gate));
    ups.push_back(r.weight(layer, name + up));
    downs.push_back(r.weight(layer, name + down));
  }
  r.program().moe(r.weight(layer, router), std::move(gates), std::move(ups), std::move(downs), count, static_cast<int32_t>(begin), top_k, normalize,
                  activation, shared);
}

Experts qwen_experts(const Config& config, int32_t usual_top_k) {
  Experts experts;
  // transformers 5 writes the second name.
  experts.count = static_cast<int32_t>(config.integer(config.has("num_experts") ? "num_experts" : "num_local_experts", 1, 4096));
  experts.top_k = static_cast<int32_t>(config.integer("num_experts_per_tok", 1, experts.count, usual_top_k));
  experts.normalize = config.boolean("norm_topk_prob", false);
  experts.ffn = config.integer("moe_intermediate_size", 1, 1 << 24);
  experts.router = "mlp.gate", experts.experts = "mlp.experts";
  experts.gate = "gate_proj", experts.up = "up_proj", experts.down = "down_proj";
  return experts;
}

std::vector<bool> sparse_layers(const Config& config) {
  const int64_t layers = config.integer("num_hidden_layers", 1, 1024), step = config.integer("decoder_sparse_step", 1, 1024, 1);
  std::vector<bool> sparse;
  for (int64_t layer = 0; layer < layers; ++layer) sparse.push_back((layer + 1) % step == 0);
  for (const int64_t dense : config.integers("mlp_only_layers", 0, layers - 1, 1024)) sparse[static_cast<size_t>(dense)] = false;
  return sparse;
}

}  // namespace tandem
