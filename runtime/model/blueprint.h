// Everything that is decided about a model before a byte of weights is read; the same on every rank, planner and runtime alike.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "kernels/program/backend.h"
#include "runtime/model/checkpoint/source.h"
#include "runtime/model/format_choice.h"
#include "runtime/model/models/model.h"
#include "sharding/plan.h"
#include "sharding/profile.h"

namespace tandem {

struct Blueprint {
  Checkpoint checkpoint;
  std::unique_ptr<Model> model;
  WeightFormats formats;
  Arithmetic arithmetic;
  bool synthetic = false;  // checkpoint.tensors is made up: a tensor a weight row, under the row's own name and in the held format
};

// MODEL as the command line takes it: directory, .gguf, config.json or preset:NAME. With a seed the weights come from it instead of
// files (checkpoint/synthetic.h), stored in the formats that they are held in; the digest stays that of the model.
// Errors: Code::invalid_argument, Code::not_found with file and key.
Blueprint make_blueprint(const std::string& model, const FormatOptions& formats, Arithmetic arithmetic,
                         std::optional<uint64_t> synthetic_seed = std::nullopt);

struct StageRange { int first_layer = 0, last_layer = -1; bool embedding = false, head = false; };
struct HeldWeight { WeightId id = kNoWeight; Use use = Use::product; };

// The weights that one member of a stage's group holds, in loading order. A head tied to an embedding of the same stage is not listed:
// it is the embedding.
std::vector<HeldWeight> held_weights(const Model& model, const Slicer& slicer, const StageRange& range, int member);
Program record_stage(const Model& model, const Slicer& slicer, const StageRange& range, int member, int64_t context);
std::vector<KvShape> kv_shapes(const Model& model, const Slicer& slicer, const StageRange& range, int member);

// What one weight occupies in the rank's block: the layout padded to 64 bytes.
Bytes held_bytes(const WeightLayout& layout);

// The largest step of a workload: decoding sequences and one chunk. all_logits: every row of a chunk may ask for its logits.
Bucket bucket_for(const Workload& workload, bool all_logits);

// What the planner reads; `group` gives ep and tp. Errors: those of Slicer.
Profile make_profile(const Blueprint& blueprint, const Mesh& group, const Workload& workload, bool all_logits, const Backend& backend);

// Footprint as transformers prints it (parameters and buffers, NF4 as packed bytes without statistics), parameters.
uint64_t footprint_bytes(const Blueprint& blueprint);
uint64_t parameters(const Model& model);

}  // namespace tandem
