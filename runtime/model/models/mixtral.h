// Mixtral: Llama's attention, and per layer a router that sends every token to the best few of many gated MLPs.
#pragma once
#include "runtime/model/models/llama.h"

namespace tandem {

class Mixtral : public Llama {
 public:
  explicit Mixtral(const Config& config);
  std::string_view family() const override { return "mixtral"; }

 protected:
  void mlp(int layer, Recorder& record) const override;

 private:
  int32_t experts_ = 0, top_k_ = 0;
};

}  // namespace tandem
