#include "runtime/model/checkpoint/quantized_writer.h"

#include <cstring>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"

namespace tandem {
namespace {

constexpr const QuantizedWriter* kWriters[] = {&kBitsandbytes4Writer, &kBitsandbytes8Writer, &kPackedWriter, &kFloatWriter, &kFp8BlockWriter};

uint64_t bytes_of(DType dtype, const std::vector<int64_t>& shape) {
  uint64_t bytes = size(dtype);
  for (const int64_t side : shape) bytes *= static_cast<uint64_t>(side);
  return bytes;
}

}  // namespace

FilePiece component_piece(std::string name, DType dtype, std::vector<int64_t> shape, int component, Recoding recoding) {
  const uint64_t bytes = bytes_of(dtype, shape);
  return {.name = std::move(name), .dtype = dtype, .shape = std::move(shape), .bytes = bytes, .component = component, .recoding = recoding};
}

FilePiece constant_piece(std::string name, DType dtype, std::vector<int64_t> shape, std::vector<std::byte> bytes) {
  const uint64_t count = bytes.size();
  return {.name = std::move(name), .dtype = dtype, .shape = std::move(shape), .bytes = count, .constant = std::move(bytes)};
}

uint64_t recoded_offset(Recoding recoding, uint64_t offset) { return recoding == Recoding::to_bf16 ? offset / 2 : offset; }

void recode(Recoding recoding, const std::byte* component, uint64_t bytes, std::vector<std::byte>& out) {
  out.resize(recoded_offset(recoding, bytes));
  switch (recoding) {
    case Recoding::as_is:
      std::memcpy(out.data(), component, bytes);
      break;
    case Recoding::to_bf16: {
      std::vector<float> values(bytes / sizeof(float));
      std::memcpy(values.data(), component, bytes);
      narrow(DType::bf16, values.data(), values.size(), out.data());
      break;
    }
  }
}

const QuantizedWriter* find_writer(const Format& format) {
  for (const QuantizedWriter* writer : kWriters) {
    if (writer->writes(format)) return writer;
  }
  return nullptr;
}

std::string written_formats() {
  std::string list;
  for (const Format* format : formats()) {
    if (format->is_dense() || find_writer(*format)) list += (list.empty() ? "" : ", ") + std::string(format->name());
  }
  return list + ", fp8:128";
}

std::string torch_name(DType type) {
  return type == DType::f32 ? "float32" : type == DType::f16 ? "float16" : "bfloat16";
}

}  // namespace tandem
