#include "runtime/model/models/mixtral.h"

namespace tandem {

Mixtral::Mixtral(const Config& config) : Llama(config, Declared{.mlp = false}) {
  experts_ = static_cast<int32_t>(config.integer("num_local_experts", 1, 4096));
  top_k_ = static_cast<int32_t>(config.integer("num_experts_per_tok", 1, experts_, 2));
  shape.experts = experts_;
  shape.experts_per_token = top_k_;
  const Dim hidden{Axis::model, shape.hidden, 1}, ffn{Axis::expert_ffn, config.integer("intermediate_size", 1, 1 << 24), 1};
  for (int layer = 0; layer < shape.layers; ++layer) {
    linear(layer, "block_sparse_moe.gate", {Axis::none, experts_, 1}, hidden, "ffn_gate_inp", false, RowOrder::as_is, Role::router);
    for (int expert = 0; expert < experts_; ++expert) {
      const auto declare = [&](const char* name, Dim rows, Dim cols, const char* gguf) {
        const std::string full = layer_name(layer, "block_sparse_moe.experts." + std::to_string(expert) + "." + name + ".weight");
        weights.add({.name = full, .layer = layer, .expert = expert, .rows = rows, .cols = cols, .huggingface = {full},
                     .gguf = {.tensor = "blk." + std::to_string(layer) + "." + gguf + ".weight", .stacked = expert}});
      };
      declare("w1", ffn, hidden, "ffn_gate_exps");
      declare("w3", ffn, hidden, "ffn_up_exps");
      declare("w2", hidden, ffn, "ffn_down_exps");
    }
  }
}

void Mixtral::mlp(int layer, Recorder& r) const {
  const auto [begin, end] = r.experts(experts_);
  std::vector<WeightSlice> gate, up, down;
  for (int64_t expert = begin; expert < end; ++expert) {
    const std::string name = "block_sparse_moe.experts." + std::to_string(expert);
    gate.push_back(r.weight(layer, name + ".w1"));
    up.push_back(r.weight(layer, name + ".w3"));
    down.push_back(r.weight(layer, name + ".w2"));
  }
  r.program().moe(r.weight(layer, "block_sparse_moe.gate"), std::move(gate), std::move(up), std::move(down), experts_, static_cast<int32_t>(begin), top_k_,
                  true, activation_);
}

}  // namespace tandem
