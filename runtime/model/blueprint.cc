#include "runtime/model/blueprint.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/synthetic.h"

namespace tandem {
namespace {

// llama.cpp keeps rope factors in small tensors instead of the metadata; the family wants them in its config.
void read_rope_factors(Checkpoint& checkpoint) {
  auto scaling = checkpoint.config.find("rope_scaling");
  if (scaling == checkpoint.config.end() || !scaling->is_object()) return;
  struct Row { const char *type, *tensor, *factors; };
  constexpr Row kRows[] = {{"gguf_factors", "tensor", "factors"}, {"gguf_longrope", "short_tensor", "short_factor"}, {"gguf_longrope", "long_tensor", "long_factor"}};
  for (const Row& row : kRows) {
    if (scaling->value("rope_type", "") != row.type) continue;
    const std::string name = scaling->value(row.tensor, "");
    const TensorInfo* tensor = checkpoint.tensors ? checkpoint.tensors->find(name) : nullptr;
    if (tensor == nullptr || tensor->type != "fp32" || tensor->bytes > 64 * 1024) bad_input(checkpoint.path + ": " + name, "is not a small fp32 tensor (rope factors)");
    std::vector<float> factors(tensor->bytes / 4);
    checkpoint.tensors->read(*tensor, {0, tensor->bytes}, factors.data());
    (*scaling)[row.factors] = factors;
  }
}

Use use_of(const Model& model, WeightId id) {
  const WeightRow& row = model.weights[id];
  if (row.role == Role::norm || row.role == Role::bias) return Use::vector;
  const bool tied = model.weights[model.head_weight].tied_to != kNoWeight;
  if (row.role == Role::router) return Use::router;
  if (row.role == Role::embedding) return tied && id == model.embedding ? Use::product_and_table : Use::table;
  if (row.role == Role::head && tied) return Use::product_and_table;
  return Use::product;
}

WeightLayout layout_of(const Model& model, const Slicer& slicer, const WeightFormats& formats, const HeldWeight& held, int member,
                       const Arithmetic& arithmetic, const Backend& backend) {
  const Rectangle part = slicer.part(held.id, member);
  (void)model;
  return backend.layout(*formats.held[held.id], part.rows(), part.cols(), held.use, arithmetic);
}

// A GPU's own choice of activations goes by what is multiplied: floats of one type are computed in it, all else in bf16.
void settle_compute(Blueprint& blueprint) {
  Arithmetic& arithmetic = blueprint.arithmetic;
  if (!arithmetic.automatic || arithmetic.compute != Compute::bf16) return;
  arithmetic.automatic = false;
  bool fp32 = true, fp16 = true;
  for (WeightId id = 0; id < blueprint.model->weights.size(); ++id) {
    const Role role = blueprint.model->weights[id].role;
    if (role != Role::linear && role != Role::head) continue;
    const Format& format = *blueprint.formats.held[static_cast<size_t>(id)];
    fp32 &= format.is_dense() && format.dtype() == DType::f32;
    fp16 &= format.is_dense() && format.dtype() == DType::f16;
  }
  if (fp32) arithmetic.compute = Compute::fp32;
  if (fp16) arithmetic.compute = Compute::fp16;
}

// In place of what the checkpoint holds, if anything: every weight as if it had been stored in the format that it is held in.
void make_weights(Blueprint& blueprint, uint64_t seed) {
  const WeightTable& weights = blueprint.model->weights;
  WeightFormats& formats = blueprint.formats;
  std::vector<SyntheticTensor> tensors;
  for (WeightId id = 0; id < weights.size(); ++id) {
    const WeightRow& row = weights[id];
    if (row.tied_to != kNoWeight) continue;
    const bool vector = row.role == Role::norm || row.role == Role::bias;
    tensors.push_back({row.name, vector ? 1 : row.rows.size(), vector ? row.elements() : row.cols.size(), vector, row.role == Role::norm,
                       formats.held[static_cast<size_t>(id)]});
  }
  blueprint.checkpoint.tensors = make_synthetic_source(seed, tensors);
  blueprint.synthetic = true;
  formats.stored = formats.held;
  for (WeightId id = 0; id < weights.size(); ++id) {
    const WeightId origin = weights[id].tied_to == kNoWeight ? id : weights[id].tied_to;
    formats.tensors[static_cast<size_t>(id)] = blueprint.checkpoint.tensors->find(weights[origin].name);
  }
}

}  // namespace

Blueprint make_blueprint(const std::string& model, const FormatOptions& formats, Arithmetic arithmetic, std::optional<uint64_t> synthetic_seed) {
  Blueprint blueprint;
  blueprint.arithmetic = arithmetic;
  constexpr std::string_view kPreset = "preset:";
  if (model.starts_with(kPreset)) {
    blueprint.checkpoint.path = model;
    blueprint.checkpoint.name = model.substr(kPreset.size());
    blueprint.checkpoint.config = preset_config(blueprint.checkpoint.name);
    blueprint.checkpoint.digest = checkpoint_digest(blueprint.checkpoint.config, nullptr);
  } else {
    blueprint.checkpoint = open_checkpoint(model);
    read_rope_factors(blueprint.checkpoint);
  }
  const std::string& file = blueprint.checkpoint.config_file;
  blueprint.model = make_model(blueprint.checkpoint.config, file.empty() ? model : file);
  blueprint.formats = choose_formats(*blueprint.model, blueprint.checkpoint, formats);
  if (synthetic_seed) make_weights(blueprint, *synthetic_seed);
  settle_compute(blueprint);
  return blueprint;
}

std::vector<HeldWeight> held_weights(const Model& model, const Slicer& slicer, const StageRange& range, int member) {
  std::vector<HeldWeight> held;
  const bool tied = model.weights[model.head_weight].tied_to != kNoWeight;
  for (WeightId id = 0; id < model.weights.size(); ++id) {
    const WeightRow& row = model.weights[id];
    bool mine;
    if (row.layer >= 0) {
      mine = row.layer >= range.first_layer && row.layer <= range.last_layer;
    } else if (row.embeds) {
      mine = range.embedding;
    } else if (id == model.head_weight) {
      mine = range.head && !(tied && range.embedding);
    } else {
      mine = range.head;  // the final norm, the head's bias
    }
    if (mine && slicer.holds(id, member)) held.push_back({id, use_of(model, id)});
  }
  return held;
}

Program record_stage(const Model& model, const Slicer& slicer, const StageRange& range, int member, int64_t context) {
  Program program;
  Recorder recorder(program, model, slicer, member, range.first_layer, range.last_layer, range.embedding, context);
  if (range.embedding) {
    model.embed(recorder);
  } else {
    program.receive(model.shape.hidden);
  }
  for (int layer = range.first_layer; layer <= range.last_layer; ++layer) model.block(layer, recorder);
  if (range.head) {
    model.head(recorder);
    program.sample();
  } else {
    program.leave();
  }
  return program;
}

std::vector<KvShape> kv_shapes(const Model& model, const Slicer& slicer, const StageRange& range, int member) {
  std::vector<KvShape> shapes;
  for (const KvGroup& group : model.kv_groups) {
    const auto [begin, end] = slicer.range(Axis::kv_heads, group.kv_heads, group.head_dim, member);
    KvShape shape{0, end - begin, group.head_dim, group.window};
    for (int layer : group.layers) shape.layers += layer >= range.first_layer && layer <= range.last_layer;
    shapes.push_back(shape);
  }
  return shapes;
}

Bytes held_bytes(const WeightLayout& layout) {
  const uint64_t padded = (layout.bytes() + 63) / 64 * 64;
  return {padded - layout.scales_bytes, layout.scales_bytes};
}

Bucket bucket_for(const Workload& workload, bool all_logits) {
  Bucket bucket;
  bucket.rows = workload.chunk + workload.batch;
  bucket.heads = all_logits ? bucket.rows : workload.batch;
  bucket.sequences = workload.batch;
  bucket.page_tokens = workload.page_tokens;
  bucket.context = workload.context;
  return bucket;
}

Profile make_profile(const Blueprint& blueprint, const Mesh& group, const Workload& workload, bool all_logits, const Backend& backend) {
  const Model& model = *blueprint.model;
  Mesh mesh = group;
  mesh.pp = 1;
  const Slicer slicer(model.weights, blueprint.formats.held, mesh);
  const int last = model.shape.layers - 1;
  Profile profile;
  profile.name = blueprint.checkpoint.name;
  profile.digest = blueprint.checkpoint.digest;
  profile.format = blueprint.formats.label;
  profile.parameters = parameters(model);
  profile.footprint_bytes = footprint_bytes(blueprint);
  profile.hidden = model.shape.hidden;
  profile.context_limit = model.shape.context;
  profile.group = mesh;
  profile.arithmetic = blueprint.arithmetic;
  profile.tied = model.weights[model.head_weight].tied_to != kNoWeight;
  profile.embedding_name = model.modules.embedding;
  profile.head_name = model.modules.head;
  profile.layer_prefix = model.modules.layers;
  profile.first_modules = model.modules.first;
  profile.last_modules = model.modules.last;
  profile.kv_types = {KvType::fp32, KvType::bf16, KvType::fp16};
  profile.formats.clear();
  constexpr int64_t kSide = 4096;
  for (const Format* format : formats()) {  // what this backend widens saves nothing here
    const uint64_t held = backend.layout(*format, kSide, kSide, Use::product, blueprint.arithmetic).bytes();
    if (held < stored_bytes(*format, kSide, kSide) * 5 / 4) profile.formats.emplace_back(format->name());
  }
  for (const KvGroup& kv : model.kv_groups) profile.kv_windows.push_back(kv.window);

  const auto piece_of = [&](const StageRange& range) {
    Piece piece;
    for (int member = 0; member < mesh.group_size(); ++member) {
      Bytes bytes;
      for (const HeldWeight& held : held_weights(model, slicer, range, member)) {
        const WeightLayout layout = layout_of(model, slicer, blueprint.formats, held, member, blueprint.arithmetic, backend);
        const Bytes one = held_bytes(layout);
        bytes.weights += one.weights;
        bytes.scales += one.scales;
        const WeightRow& row = model.weights[held.id];
        if (row.role != Role::embedding) {
          // A token goes through some of the experts only.
          const bool expert = row.expert >= 0 && model.shape.experts > 0;
          piece.read_bytes += expert ? one.sum() * static_cast<uint64_t>(model.shape.experts_per_token) / static_cast<uint64_t>(model.shape.experts) : one.sum();
          piece.flops += 2.0 * static_cast<double>(layout.rows) * static_cast<double>(layout.cols);
        }
      }
      piece.resident.push_back(bytes);
    }
    return piece;
  };
  for (int layer = 0; layer <= last; ++layer) {
    Piece piece = piece_of({layer, layer, false, false});
    for (const KvShape& shape : kv_shapes(model, slicer, {layer, layer, false, false}, 0)) {
      piece.kv_page_bytes.push_back(page_bytes(shape, workload.page_tokens, blueprint.arithmetic.kv));
    }
    profile.layers.push_back(std::move(piece));
  }
  profile.embedding = piece_of({0, -1, true, false});
  profile.head = piece_of({0, -1, false, true});
  const Bucket bucket = bucket_for(workload, all_logits);
  for (int embeds = 0; embeds < 2; ++embeds) {
    for (int head = 0; head < 2; ++head) {
      for (int member = 0; member < mesh.group_size(); ++member) {
        // Every layer is recorded, so that the number holds for any stage; buffers are shared between layers.
        const StageRange range{0, last, embeds == 1, head == 1};
        const Program program = record_stage(model, slicer, range, member, workload.context);
        const std::vector<KvShape> kv = kv_shapes(model, slicer, range, member);
        uint64_t bytes = 0;
        for (const SizeRow& row : backend.workspace(program, kv, bucket, blueprint.arithmetic)) bytes += row.bytes;
        profile.workspace[embeds][head] = std::max(profile.workspace[embeds][head], bytes);
      }
    }
  }
  profile.communication_bytes = 2ull * static_cast<uint64_t>(bucket.rows) * static_cast<uint64_t>(model.shape.hidden) * sizeof(float);
  return profile;
}

uint64_t parameters(const Model& model) {
  uint64_t count = 0;
  for (const WeightRow& row : model.weights.rows()) {
    if (row.tied_to == kNoWeight) count += static_cast<uint64_t>(row.elements());
  }
  return count;
}

uint64_t footprint_bytes(const Blueprint& blueprint) {
  const Model& model = *blueprint.model;
  uint64_t bytes = model.buffer_bytes;
  for (WeightId id = 0; id < model.weights.size(); ++id) {
    const WeightRow& row = model.weights[id];
    if (row.tied_to != kNoWeight) continue;
    const bool vector = row.role == Role::norm || row.role == Role::bias;
    const Format& format = *(vector ? blueprint.formats.stored : blueprint.formats.held)[id];  // vectors are fp32 only where they are used
    const std::vector<Component> components = format.components(row.rows.size(), row.cols.size());
    bytes += components[0].bytes;  // the codes; transformers does not count quantization statistics
  }
  return bytes;
}

}  // namespace tandem
