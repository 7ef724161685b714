// What a way of quantizing checkpoints implements; quantized.cc has the list.
#pragma once
#include <array>
#include <functional>
#include <string>
#include <unordered_set>
#include <vector>

#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/quantized.h"

namespace tandem {

// A tensor that stands for one or several of the files'.
struct MadeTensor {
  TensorInfo info;
  std::function<void(ByteRange range, std::byte* out)> read;
};

// Collects what one checkpoint's quantized modules become.
class QuantizedModules {
 public:
  explicit QuantizedModules(const TensorSource& files) : files_(files) {}
  const TensorSource& files() const { return files_; }

  // The tensor `name`, which `beside` needs; it is used up. Errors: it is missing, of another type or of other dimensions (-1: any).
  const TensorInfo& take(const std::string& name, const TensorInfo& beside, std::string_view type, const std::vector<int64_t>& shape);
  const TensorInfo& take_floats(const std::string& name, const TensorInfo& beside,
                                const std::vector<int64_t>& shape);  // fp32, fp16 or bf16
  void use(const TensorInfo& tensor) { used_.insert(tensor.name); }
  [[noreturn]] void bad(const TensorInfo& tensor, const std::string& message) const;  // names file and tensor
  template <typename T>
  std::vector<T> values(const TensorInfo& tensor) const {  // all of it: for small ones
    std::vector<T> out(tensor.bytes / sizeof(T));
    files_.read(tensor, {0, out.size() * sizeof(T)}, out.data());
    return out;
  }

  // "<module>.weight" [rows, cols] in `format`. Then one call of a component each, in their order.
  void begin(const std::string& module, const Format& format, int64_t rows, int64_t cols, const TensorInfo& from);
  void same(const TensorInfo& tensor);          // the tensor's bytes as they are. Errors: it has fewer than the format needs
  void constant(std::vector<std::byte> bytes);  // not in the file as such
  void made(decltype(MadeTensor::read) read);   // put in order when read
  void floats(const TensorInfo& tensor);        // fp32, whatever float type it is stored in

  std::vector<MadeTensor> take_made() { return std::move(made_); }
  bool used(const std::string& name) const { return used_.contains(name); }

 private:
  void add(decltype(MadeTensor::read) read);
  const TensorSource& files_;
  std::vector<MadeTensor> made_;
  std::unordered_set<std::string> used_;
  TensorInfo weight_;  // of the module that was begun
  std::vector<Component> components_;
  size_t next_ = 0;
};

struct QuantizedMethod {
  std::string_view name;                 // quantization_config's quant_method
  std::array<std::string_view, 2> skip;  // its keys that list modules left alone
  const Format& (*declared)(const Config& config);
  void (*find)(const Config& config, QuantizedModules& modules);
};
extern const QuantizedMethod kBitsandbytes, kGptq, kAwq, kFp8, kFbgemmFp8, kCompressedTensors;  // in files of their names

// fp8.cc: a module whose weight is in E4M3; nothing when it is not.
void add_fp8_module(const TensorInfo& codes, QuantizedModules& modules);

}  // namespace tandem
