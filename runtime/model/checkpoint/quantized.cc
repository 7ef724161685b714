#include "runtime/model/checkpoint/quantized.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/quantized_method.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {
namespace {

constexpr const QuantizedMethod* kMethods[] = {&kBitsandbytes, &kGptq, &kAwq, &kFp8, &kFbgemmFp8, &kCompressedTensors};

std::string shown(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return text + "]";
}

// Empty when there is none.
std::optional<Config> quantization_of(const nlohmann::json& config, const std::string& file) {
  const Config whole(config, file);
  return whole.has("quantization_config") ? std::optional(whole.object("quantization_config")) : std::nullopt;
}

const QuantizedMethod& method_of(const Config& config) {
  const bool older = !config.has("quant_method") && (config.has("load_in_4bit") || config.has("load_in_8bit"));
  const std::string name = older ? "bitsandbytes" : config.text("quant_method");
  std::string known;
  for (const QuantizedMethod* method : kMethods) {
    if (method->name == name) return *method;
    known += (known.empty() ? "" : ", ") + std::string(method->name);
  }
  config.bad("quant_method", "is " + in_quotes(name) + ", which cannot be read (known: " + known +
                                 "; or give the unquantized checkpoint and --format, or a GGUF file)");
}

class QuantizedTensors final : public TensorSource {
 public:
  QuantizedTensors(std::unique_ptr<TensorSource> files, QuantizedModules& modules) : files_(std::move(files)), made_(modules.take_made()) {
    for (const TensorInfo& tensor : files_->tensors()) {
      if (!modules.used(tensor.name)) all_.push_back(tensor);
    }
    plain_ = all_.size();
    for (const MadeTensor& made : made_) all_.push_back(made.info);
    for (size_t i = 0; i < all_.size(); ++i) {
      if (!by_name_.emplace(all_[i].name, i).second)
        bad_input(file_name(all_[i]), "has tensor " + in_quotes(all_[i].name) + " quantized and not quantized (once is right)");
    }
  }
  const std::vector<TensorInfo>& tensors() const override { return all_; }
  const TensorInfo* find(std::string_view name) const override {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &all_[found->second];
  }
  void read(const TensorInfo& tensor, ByteRange range, void* destination) const override {
    const auto found = by_name_.find(tensor.name);
    if (found == by_name_.end() || range.begin > range.end || range.end > all_[found->second].bytes) {
      fail(Code::internal, file_name(tensor),
           "has no bytes " + std::to_string(range.begin) + " to " + std::to_string(range.end) + " of " + in_quotes(tensor.name));
    }
    if (found->second < plain_) return files_->read(tensor, range, destination);
    made_[found->second - plain_].read(range, static_cast<std::byte*>(destination));
  }
  std::string file_name(const TensorInfo& tensor) const override { return files_->file_name(tensor); }

 private:
  std::unique_ptr<TensorSource> files_;
  std::vector<MadeTensor> made_;
  std::vector<TensorInfo> all_;  // those of the files that are left, then made_
  size_t plain_ = 0;
  std::unordered_map<std::string_view, size_t> by_name_;  // views into all_
};

}  // namespace

void QuantizedModules::bad(const TensorInfo& tensor, const std::string& message) const {
  bad_input(files_.file_name(tensor) + ": " + tensor.name, message);
}

const TensorInfo& QuantizedModules::take(const std::string& name, const TensorInfo& beside, std::string_view type,
                                         const std::vector<int64_t>& shape) {
  const TensorInfo* tensor = files_.find(name);
  if (tensor == nullptr) bad(beside, "has no " + name + " beside it (a quantized weight cannot be read without)");
  if (tensor->type != type) bad(*tensor, "is of type " + tensor->type + " (must be " + std::string(type) + ")");
  const bool fits = std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end(),
                               [](int64_t wanted, int64_t found) { return wanted < 0 || wanted == found; });
  if (!fits) bad(*tensor, "has shape " + shown(tensor->shape) + " (must be " + shown(shape) + ")");
  use(*tensor);
  return *tensor;
}

const TensorInfo& QuantizedModules::take_floats(const std::string& name, const TensorInfo& beside, const std::vector<int64_t>& shape) {
  const TensorInfo* tensor = files_.find(name);
  const Format* dense = tensor ? find_format(tensor->type) : nullptr;
  if (tensor && !(dense && dense->is_dense())) bad(*tensor, "is of type " + tensor->type + " (must be fp32, fp16 or bf16)");
  return take(name, beside, tensor ? tensor->type : "fp32", shape);
}

void QuantizedModules::begin(const std::string& module, const Format& format, int64_t rows, int64_t cols, const TensorInfo& from) {
  try {
    components_ = format.components(rows, cols);
  } catch (const Error& error) {
    bad(from, "cannot be read: " + std::string(error.what()));
  }
  next_ = 0;
  weight_ = TensorInfo{
      .name = module + ".weight", .type = std::string(format.name()), .shape = {rows, cols}, .file = from.file, .offset = from.offset};
}

void QuantizedModules::add(decltype(MadeTensor::read) read) {
  const Component& component = components_.at(next_);
  TensorInfo info = weight_;
  info.bytes = component.bytes;
  if (next_++ > 0) {
    info.name += component.suffix;
    info.type = name(component.dtype);
    std::transform(info.type.begin(), info.type.end(), info.type.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    info.shape = {static_cast<int64_t>(component.bytes / size(component.dtype))};
  }
  made_.push_back({std::move(info), std::move(read)});
}

void QuantizedModules::same(const TensorInfo& tensor) {
  const uint64_t needed = components_.at(next_).bytes;
  if (tensor.bytes < needed) {
    bad(tensor, "has " + std::to_string(tensor.bytes) + " bytes (" + weight_.type + " of shape " + shown(weight_.shape) + " needs " +
                    std::to_string(needed) + ")");
  }
  use(tensor);
  add([&files = files_, &tensor](ByteRange range, std::byte* out) { files.read(tensor, range, out); });
}

void QuantizedModules::constant(std::vector<std::byte> bytes) {
  if (bytes.size() != components_.at(next_).bytes) fail(Code::internal, weight_.name, "a constant of another size");
  add([bytes = std::move(bytes)](ByteRange range, std::byte* out) { std::memcpy(out, bytes.data() + range.begin, range.size()); });
}

void QuantizedModules::floats(const TensorInfo& tensor) {
  const DType type = format(tensor.type).dtype();
  if (type == DType::f32) return same(tensor);
  if (tensor.bytes / size(type) * sizeof(float) < components_.at(next_).bytes)
    bad(tensor, "has " + std::to_string(tensor.bytes / size(type)) + " numbers (" + weight_.type + " needs more)");
  use(tensor);
  add([&files = files_, &tensor, type](ByteRange range, std::byte* out) {  // a range begins anywhere, numbers do not
    const uint64_t first = range.begin / sizeof(float), count = (range.end + sizeof(float) - 1) / sizeof(float) - first;
    std::vector<std::byte> raw(count * size(type));
    files.read(tensor, {first * size(type), (first + count) * size(type)}, raw.data());
    std::vector<float> values(count);
    widen(type, raw.data(), count, values.data());
    std::memcpy(out, reinterpret_cast<const std::byte*>(values.data()) + range.begin % sizeof(float), range.size());
  });
}

void QuantizedModules::made(decltype(MadeTensor::read) read) { add(std::move(read)); }

std::unique_ptr<TensorSource> open_quantized(std::unique_ptr<TensorSource> files, const nlohmann::json& config, const std::string& file) {
  const auto quantization = quantization_of(config, file);
  if (!quantization || !files) return files;
  QuantizedModules modules(*files);
  method_of(*quantization).find(*quantization, modules);
  return std::make_unique<QuantizedTensors>(std::move(files), modules);
}

std::optional<DeclaredQuantization> declared_quantization(const Checkpoint& checkpoint) {
  const auto quantization = quantization_of(checkpoint.config, checkpoint.config_file);
  if (!quantization) return std::nullopt;
  const QuantizedMethod& method = method_of(*quantization);
  DeclaredQuantization declared{&method.declared(*quantization), {}};
  for (const std::string_view key : method.skip) {
    const std::vector<std::string> more = quantization->texts(key, 65536);
    declared.skipped.insert(declared.skipped.end(), more.begin(), more.end());
  }
  return declared;
}

}  // namespace tandem
