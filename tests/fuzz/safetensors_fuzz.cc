// Any bytes as a safetensors file, and as its index: tensors that lie in the file, or an Error.
#include <cstdlib>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    std::vector<std::unique_ptr<Storage>> files;
    files.push_back(in_memory("fuzz.safetensors", bytes));
    auto tensors = read_safetensors_header(*files.front());
    const FileTensors source(std::move(files), std::move(tensors));
    for (const TensorInfo& tensor : source.tensors()) {
      if (tensor.bytes > size || tensor.offset > size - tensor.bytes) std::abort();
      std::vector<std::byte> content(tensor.bytes);
      source.read(tensor, {0, tensor.bytes}, content.data());
      if (source.find(tensor.name) != &tensor) std::abort();
    }
  } catch (const Error&) {
  }
  try {
    (void)parse_safetensors_index({reinterpret_cast<const char*>(data), size}, "fuzz.index.json");
  } catch (const Error&) {
  }
  return 0;
}
