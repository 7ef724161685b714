#include "launch/npy.h"

#include <string_view>

namespace tandem {

NpyWriter::NpyWriter(const std::string& path, std::span<const int64_t> shape) : file_("-o", path) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const int64_t size : shape) header += std::to_string(size) + ", ";  // a trailing comma makes even one number a tuple
  header += "), }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  const auto length = static_cast<uint16_t>(header.size());
  file_.write(std::string_view("\x93NUMPY\x01\x00", 8));
  file_.write({reinterpret_cast<const char*>(&length), 2});
  file_.write(header);
}

void NpyWriter::write(std::span<const float> values) {
  file_.write({reinterpret_cast<const char*>(values.data()), values.size_bytes()});
}

}  // namespace tandem
