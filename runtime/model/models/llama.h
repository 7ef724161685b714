// Llama 2 and 3.x (and what shares their block): grouped-query attention with rotary positions, RMS norms, a gated MLP.
#pragma once
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/models/model.h"

namespace tandem {

class Llama : public Model {
 public:
  explicit Llama(const Config& config);
  std::string_view family() const override { return "llama"; }
  void embed(Recorder& record) const override;
  void block(int layer, Recorder& record) const override;
  void head(Recorder& record) const override;

 protected:
  struct Declared { bool mlp = true; };
  Llama(const Config& config, Declared declared);  // for relatives that bring their own MLP
  virtual void mlp(int layer, Recorder& record) const;
  // Declares "model.layers.<layer>.<name>.weight" (and .bias); GGUF's name is "blk.<layer>.<gguf>.weight".
  void linear(int layer, const std::string& name, Dim rows, Dim cols, const std::string& gguf, bool bias = false, RowOrder order = RowOrder::as_is,
              Role role = Role::linear);
  void norm(int layer, const std::string& name, const std::string& gguf);

  float epsilon_ = 1e-5f;
  Rope rope_;
  Activation activation_ = Activation::silu;
};

Activation activation_of(const Config& config, std::string_view key, std::string_view fallback);

}  // namespace tandem
