// A mixture of experts as the MLP of some layers: its weights and its record, by the names that a family gives. Values only.
#pragma once
#include <string>
#include <vector>

#include "runtime/model/models/model.h"

namespace tandem {

struct Experts {
  int32_t count = 0, top_k = 0;
  bool normalize = true;            // weights of the chosen ones sum to one
  int64_t ffn = 0;
  std::string router, experts;      // "mlp.gate", "mlp.experts": within a layer
  std::string gate, up, down;       // within an expert

  void declare(Model& model, int layer) const;
  void record(int layer, Recorder& record, Activation activation, SharedSlices shared = {}) const;
};

// Qwen's experts, and its choice of layers that have them: decoder_sparse_step and mlp_only_layers.
Experts qwen_experts(const Config& config, int32_t usual_top_k);
std::vector<bool> sparse_layers(const Config& config);

}  // namespace tandem
