// The tensors of one or many files, found by name: what every kind of checkpoint file becomes once its headers are parsed. Owns the
// files. Immutable; any thread.
#pragma once
#include <unordered_map>

#include "runtime/model/checkpoint/source.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {

class FileTensors final : public TensorSource {
 public:
  // tensors[i].file indexes `files`; offsets and bytes were checked against the file. Errors: Code::invalid_argument when two tensors
  // have one name.
  FileTensors(std::vector<std::unique_ptr<Storage>> files, std::vector<TensorInfo> tensors);

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view name) const override;
  void read(const TensorInfo& tensor, ByteRange range, void* destination) const override;
  std::string file_name(const TensorInfo& tensor) const override { return files_.at(tensor.file)->name(); }

 private:
  std::vector<std::unique_ptr<Storage>> files_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, uint32_t> by_name_;  // views into tensors_
};

// The product of the dimensions, 1 for none. Errors: Code::invalid_argument (file, tensor) when a dimension is negative or the product
// does not fit 63 bits.
uint64_t element_count(const std::vector<int64_t>& shape, const std::string& file, std::string_view tensor);

}  // namespace tandem
