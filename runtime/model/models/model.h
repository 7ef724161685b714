// A model family as data: constructing one declares every weight, every KV group and how a stage's program is recorded. The same
// object serves the planner (no device, no bytes) and the stages. No rank, device or format is mentioned in a family. Immutable after
// construction.
#pragma once
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/program/program.h"
#include "runtime/model/checkpoint/config.h"
#include "sharding/slice.h"
#include "sharding/weight_table.h"

namespace tandem {

struct KvGroup {              // layers whose pages are granted together
  std::vector<int> layers;    // model layer numbers, ascending
  int64_t kv_heads = 0, head_dim = 0;  // of the whole model
  int64_t window = 0;         // 0: everything is kept
};

struct ModelShape {
  int layers = 0;
  int64_t hidden = 0, vocab = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int32_t context = 0;        // longest sequence the model was made for
  bool context_is_hard = false;  // positions past it are not defined
  int32_t experts = 0, experts_per_token = 0;  // 0: no mixture
};

// What device_map calls the parts of a model.
struct ModuleNames {
  std::string embedding = "model.embed_tokens", head = "lm_head", layers = "model.layers.";
  std::vector<std::string> first = {"model.rotary_emb"}, last = {"model.norm"};  // beside the embedding, before the head
};

// A product's weight "<name>.weight" and, with `bias`, "<name>.bias", as WeightRows. Origins without ".weight"; Hugging Face's tensor is
// called like the weight when it has no name.
struct LinearRow {
  std::string name;
  Dim rows, cols;
  int layer = -1;
  Origin huggingface = {}, gguf = {};
  bool bias = false;
  Role role = Role::linear;
  int expert = -1;
  bool embeds = false;
};
// Parts of one fused tensor, one below the other.
struct FusedPart { std::string name; Dim rows; };

class Recorder;

class Model {
 public:
  virtual ~Model() = default;
  virtual std::string_view family() const = 0;
  virtual bool runs() const { return true; }  // false: can be planned, not run
  virtual void embed(Recorder& record) const = 0;
  virtual void block(int layer, Recorder& record) const = 0;
  virtual void head(Recorder& record) const = 0;

  ModelShape shape;
  WeightTable weights;
  std::vector<KvGroup> kv_groups;
  WeightId embedding = kNoWeight, head_weight = kNoWeight;
  ModuleNames modules;
  uint64_t buffer_bytes = 0;  // what Hugging Face counts into the footprint beside the parameters

  // For constructors of families.
  void declare(const LinearRow& row);
  void declare_fused(std::span<const FusedPart> parts, const LinearRow& whole);  // whole.rows: not looked at
  void declare_norm(const std::string& name, int64_t width, int layer, Origin huggingface, Origin gguf, bool bias = false);
  void declare_embedding(int64_t width, const std::string& huggingface);
  void declare_head(int64_t width, bool tied, const std::string& huggingface = "lm_head");  // after declare_embedding
  void group_layers(std::span<const int64_t> windows);  // kv_groups, by what each layer looks back on; kv_heads and head_dim are the shape's
};

// Records one stage of one rank: turns names and global shapes into this rank's slices.
class Recorder {
 public:
  Recorder(Program& program, const Model& model, const Slicer& slicer, int member, int first_layer, int last_layer, bool embeds,
           int64_t context);

  Program& program() { return program_; }
  WeightSlice weight(const std::string& name) const;        // "<name>.weight" with "<name>.bias" when the model declares one
  WeightSlice weight(int layer, const std::string& name) const;
  Norm norm(const std::string& name, float epsilon, NormKind kind = NormKind::rms) const;
  Norm norm(int layer, const std::string& name, float epsilon, NormKind kind = NormKind::rms) const;
  KvLayer kv(int layer) const;                              // index among this stage's layers of its group
  int64_t window(int layer) const;                          // tokens that its attention looks back on, 0: all
  int64_t context() const { return context_; }              // longest sequence that will be run
  HeadShape heads() const;                                  // this rank's
  std::pair<int64_t, int64_t> experts(int64_t count) const;  // this rank's
  struct Embedding { float scale = 1; std::string positions; int64_t position_offset = 0; std::string projection; };  // names, or none
  void embed(const Embedding& how);
  void head(Norm norm, float soft_cap = 0, const std::string& projection = "");

 private:
  Program& program_;
  const Model& model_;
  const Slicer& slicer_;
  int member_, first_layer_, last_layer_;
  bool embeds_;
  int64_t context_;
};

std::string layer_name(int layer, std::string_view name);   // "model.layers.<layer>.<name>"

// THE list (models.cc). `config` is config.json in Hugging Face's keys. Errors: Code::invalid_argument naming `where` and the key;
// an unknown model_type lists the known ones.
struct Family {
  std::string_view model_type;  // config.json's
  std::unique_ptr<Model> (*make)(const Config& config);
};
std::span<const Family> families();
std::unique_ptr<Model> make_model(const nlohmann::json& config, const std::string& where);

// Shapes by name, embedded in the binary (presets/*.json): config.json of `preset:NAME`. Errors: Code::not_found with near names.
nlohmann::json preset_config(const std::string& name);
std::vector<std::string> preset_names();

}  // namespace tandem
