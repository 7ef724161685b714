#include "runtime/model/output_plan.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/config.h"

namespace tandem {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kWeight = ".weight";

bool is_vector(const WeightRow& row) { return row.role == Role::norm || row.role == Role::bias; }
bool is_linear(const WeightRow& row) { return row.role == Role::linear || row.role == Role::router || row.role == Role::head; }

class Planner {
 public:
  explicit Planner(const Blueprint& blueprint)
      : b_(blueprint), model_(*blueprint.model), from_huggingface_(blueprint.checkpoint.dialect == Dialect::huggingface && !blueprint.synthetic) {}

  OutputPlan plan(uint64_t shard_bytes) {
    for (WeightId id = 0; id < model_.weights.size(); ++id) {
      if (model_.weights[id].tied_to == kNoWeight) add(id);
    }
    if (model_.weights[model_.head_weight].tied_to != kNoWeight) left_alone_.push_back(model_.modules.head);
    one_type_ = from_huggingface_ ? nullptr : one_float_type();
    for (OutputTensor& tensor : out_.tensors) finish(tensor);
    for (const auto& [from, count] : retyped_) {
      if (from != one_type_) out_.changed.push_back(std::to_string(count) + " tensors of " + std::string(from->name()) + " become " + std::string(one_type_->name()));
    }
    fill_shards(shard_bytes);
    write_config();
    out_.label = label();
    return std::move(out_);
  }

 private:
  void add(WeightId id) {
    const WeightRow& row = model_.weights[id];
    const TensorInfo* source = b_.formats.tensors[static_cast<size_t>(id)];
    const std::string& name = from_huggingface_ ? source->name : row.huggingface.tensor;
    const auto [at, fresh] = by_name_.emplace(name, out_.tensors.size());
    if (fresh) out_.tensors.push_back({.name = name});
    OutputTensor& tensor = out_.tensors[at->second];
    const Format* held = b_.formats.held[static_cast<size_t>(id)];
    if (!tensor.parts.empty() && tensor.format != held) {
      bad_input("--format", "gives parts of " + name + " two formats, " + std::string(tensor.format->name()) + " and " + std::string(held->name()) + " (the file holds them as one tensor)");
    }
    tensor.parts.push_back(id);
    tensor.format = held;
  }

  void finish(OutputTensor& tensor) {
    const WeightRow& row = model_.weights[tensor.parts[0]];
    const Format& stored = *b_.formats.stored[static_cast<size_t>(tensor.parts[0])];
    const TensorInfo* source = b_.formats.tensors[static_cast<size_t>(tensor.parts[0])];
    const bool vector = is_vector(row);
    for (const WeightId id : tensor.parts) tensor.rows += model_.weights[id].rows.size();
    tensor.cols = row.cols.size();
    tensor.transposed = row.huggingface.transposed;
    tensor.minus = row.huggingface.plus;
    if (from_huggingface_ && stored.is_dense() && (vector || &stored == tensor.format)) {
      tensor.copied = source;
      tensor.source_bytes = source->bytes;
      tensor.pieces = {{.name = tensor.name, .dtype = stored.dtype(), .shape = source->shape, .bytes = source->bytes}};
      count(tensor);
      if (is_linear(row)) left_alone(row);
      return;
    }
    for (const WeightId id : tensor.parts) tensor.source_bytes += stored_bytes(*b_.formats.stored[static_cast<size_t>(id)], model_.weights[id].rows.size(), tensor.cols);
    if (row.huggingface.stacked >= 0) bad_input(tensor.name, "is one of a stack of matrices (only matrices by themselves are written)");
    const QuantizedWriter* writer = tensor.format->is_dense() ? nullptr : find_writer(*tensor.format);
    const bool linear = is_linear(row) && tensor.name.ends_with(kWeight);
    if (one_type_ && (vector || tensor.format->is_dense()) && tensor.format != one_type_) {
      ++retyped_[&stored];
      tensor.format = one_type_;
    }
    if (!tensor.format->is_dense() && (writer == nullptr || !linear)) {
      const std::string kept = std::string(tensor.format->name());
      if (&stored != tensor.format) {
        bad_input("--format", "is " + kept + " for " + tensor.name + (writer ? ", which is no linear layer (these alone are quantized in files)"
                                                                             : ", which no library reads from safetensors (these are written: " + written_formats() + ")"));
      }
      if (linear) bad_input("--format", "keeps " + tensor.name + " in " + kept + ", which no library reads from safetensors (name a format: " + written_formats() + ")");
      tensor.format = one_type_ ? one_type_ : &config_format(b_.checkpoint.config);  // an embedding of a GGUF file
      out_.changed.push_back(tensor.name + ": " + kept + " becomes " + std::string(tensor.format->name()));
    }
    if (tensor.format->is_dense()) {
      std::vector<int64_t> shape = {tensor.rows, tensor.cols};
      if (tensor.transposed) std::swap(shape[0], shape[1]);
      if (vector) shape = {tensor.rows * tensor.cols};
      const uint64_t bytes = stored_bytes(*tensor.format, tensor.rows, tensor.cols);
      tensor.pieces = {{.name = tensor.name, .dtype = tensor.format->dtype(), .shape = shape, .bytes = bytes, .component = 0}};
      if (is_linear(row)) left_alone(row);
    } else {
      if (tensor.transposed) bad_input("--format", "is " + std::string(tensor.format->name()) + " for " + tensor.name + ", which is stored [in, out] (floating point is needed)");
      if (writer_ != nullptr && writer_ != writer) {
        bad_input("--format", "mixes " + std::string(first_->name()) + " (" + std::string(writer_->name) + ") and " + std::string(tensor.format->name()) + " (" + std::string(writer->name) +
                                  ") in one checkpoint (one library must read all of it)");
      }
      writer_ = writer;
      first_ = first_ ? first_ : tensor.format;
      const Format& type = one_type_ ? *one_type_ : stored.is_dense() ? stored : config_format(b_.checkpoint.config);
      modules_.push_back({tensor.name.substr(0, tensor.name.size() - kWeight.size()), tensor.format, tensor.rows, tensor.cols, type.dtype()});
      tensor.pieces = writer->pieces(modules_.back());
    }
    count(tensor);
  }

  void left_alone(const WeightRow& row) { left_alone_.push_back(row.name.substr(0, row.name.size() - kWeight.size())); }

  void count(const OutputTensor& tensor) {
    for (const FilePiece& piece : tensor.pieces) out_.bytes += piece.bytes;
    out_.source_bytes += tensor.source_bytes;
  }

  // Most bytes first, vectors left out.
  std::string label() const {
    std::map<std::string_view, uint64_t> bytes;
    for (const OutputTensor& tensor : out_.tensors) {
      if (is_vector(model_.weights[tensor.parts[0]])) continue;
      for (const FilePiece& piece : tensor.pieces) bytes[tensor.format->name()] += piece.bytes;
    }
    std::vector<std::pair<uint64_t, std::string_view>> order;
    for (const auto& [name, count] : bytes) order.push_back({count, name});
    std::sort(order.rbegin(), order.rend());
    std::string text;
    for (const auto& [count, name] : order) text += (text.empty() ? "" : " + ") + std::string(name);
    return text;
  }

  void fill_shards(uint64_t shard_bytes) {
    uint64_t filled = 0;
    for (size_t i = 0; i < out_.tensors.size(); ++i) {
      uint64_t bytes = 0;
      for (const FilePiece& piece : out_.tensors[i].pieces) bytes += piece.bytes;
      if (out_.shards.empty() || filled + bytes > shard_bytes) out_.shards.emplace_back(), filled = 0;
      out_.shards.back().push_back(i);
      filled += bytes;
    }
  }

  void write_config() {
    ordered_json config;
    for (const auto& [key, value] : b_.checkpoint.config.items()) {
      if (key != "quantization_config") config[key] = value;
    }
    if (writer_ != nullptr) {
      std::sort(left_alone_.begin(), left_alone_.end());
      left_alone_.erase(std::unique(left_alone_.begin(), left_alone_.end()), left_alone_.end());
      config["quantization_config"] = writer_->config(modules_, left_alone_);
    }
    const Format* all = one_type_ ? one_type_ : dense_linear_format();
    if (all) config[config.contains("torch_dtype") ? "torch_dtype" : "dtype"] = torch_name(all->dtype());
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
      if (!config.contains(key) || !config[key].is_object()) continue;
      const std::string type = config[key].value("rope_type", "");
      if (type.starts_with("gguf_")) bad_input(b_.checkpoint.config_file, "keeps its rotary factors in a tensor, which config.json cannot say (give the Hugging Face checkpoint that the file was made from)");
    }
    out_.config = std::move(config);
  }

  // GGUF files keep norms in fp32 beside whatever else; transformers wants what is not quantized in one type.
  const Format* one_float_type() const {
    if (const Format* all = dense_linear_format()) return all;
    return &config_format(b_.checkpoint.config);
  }

  // The one float type of all linear layers; null when they have none, or several.
  const Format* dense_linear_format() const {
    const Format* all = nullptr;
    for (const OutputTensor& tensor : out_.tensors) {
      if (!is_linear(model_.weights[tensor.parts[0]]) || model_.weights[tensor.parts[0]].role == Role::head) continue;
      if (!tensor.format->is_dense() || (all && all != tensor.format)) return nullptr;
      all = tensor.format;
    }
    return all;
  }

  const Blueprint& b_;
  const Model& model_;
  const bool from_huggingface_;
  OutputPlan out_;
  std::map<std::string, size_t> by_name_;
  std::vector<WrittenModule> modules_;
  std::vector<std::string> left_alone_;
  const QuantizedWriter* writer_ = nullptr;
  const Format* first_ = nullptr;  // that made it the one
  std::map<const Format*, int> retyped_;
  const Format* one_type_ = nullptr;  // of all that is not quantized; null: each has its own
};

}  // namespace

OutputPlan plan_output(const Blueprint& blueprint, uint64_t shard_bytes) {
  if (!blueprint.checkpoint.tensors) bad_input(blueprint.checkpoint.path, "holds no weights (a directory with safetensors or a .gguf file has some)");
  return Planner(blueprint).plan(shard_bytes);
}

std::string shard_name(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

}  // namespace tandem
