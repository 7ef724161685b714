// Any bytes as a GGUF file: tensors that lie in the file, a configuration and a vocabulary, or an Error.
#include <cstdlib>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/gguf.h"
#include "runtime/model/checkpoint/gguf_config.h"
#include "runtime/model/checkpoint/tensor_names.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto file = in_memory("fuzz.gguf", bytes);
  try {
    const GgufHeader header = read_gguf_header(*file);
    std::vector<std::unique_ptr<Storage>> files;
    files.push_back(in_memory("fuzz.gguf", bytes));
    const FileTensors source(std::move(files), header.tensors);
    for (const TensorInfo& tensor : source.tensors()) {
      if (tensor.bytes > size || tensor.offset > size - tensor.bytes) std::abort();
      if (const auto name = huggingface_name("mixtral", tensor.name)) (void)locate(source, "mixtral", *name);
    }
    (void)gguf_config(*file, header, source).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    (void)gguf_generation_config(*file, header);
    (void)read_gguf_text(*file, header);
  } catch (const Error&) {
  }
  return 0;
}
