#include "runtime/model/checkpoint/file_tensors.h"

#include "kernels/base/error.h"

namespace tandem {

FileTensors::FileTensors(std::vector<std::unique_ptr<Storage>> files, std::vector<TensorInfo> tensors)
    : files_(std::move(files)), tensors_(std::move(tensors)) {
  by_name_.reserve(tensors_.size());
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    const auto [known, fresh] = by_name_.emplace(tensors_[i].name, i);
    if (fresh) continue;
    const std::string first = file_name(tensors_[known->second]);
    const std::string here = file_name(tensors_[i]);
    bad_input(here, "tensor " + in_quotes(tensors_[i].name) + (first == here ? " appears twice" : " is also in " + first) +
                        " (a name stands for one tensor)");
  }
}

const TensorInfo* FileTensors::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

void FileTensors::read(const TensorInfo& tensor, ByteRange range, void* destination) const {
  if (range.begin > range.end || range.end > tensor.bytes) {
    fail(Code::internal, file_name(tensor),
         "bytes " + std::to_string(range.begin) + " to " + std::to_string(range.end) + " of " + in_quotes(tensor.name) + ", which has " +
             std::to_string(tensor.bytes));
  }
  files_.at(tensor.file)->read(tensor.offset + range.begin, range.size(), destination);
}

uint64_t element_count(const std::vector<int64_t>& shape, const std::string& file, std::string_view tensor) {
  int64_t count = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(count, dimension, &count)) {
      bad_input(file, "tensor " + in_quotes(tensor) + " has an impossible shape (its elements must be fewer than 2^63)");
    }
  }
  return static_cast<uint64_t>(count);
}

}  // namespace tandem
