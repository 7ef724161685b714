#include "launch/npy.h"

#include <cerrno>
#include <cstring>

#include "kernels/base/error.h"

namespace tandem {

NpyWriter::NpyWriter(const std::string& path, std::span<const int64_t> shape) : path_(path), partial_(path + ".partial") {
  file_ = std::fopen(partial_.c_str(), "wb");
  if (!file_) bad_input("-o", "cannot write " + path + ": " + std::strerror(errno));
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const int64_t size : shape) header += std::to_string(size) + ", ";  // a trailing comma makes even one number a tuple
  header += "), }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  const auto length = static_cast<uint16_t>(header.size());
  std::fwrite("\x93NUMPY\x01\x00", 1, 8, file_);
  std::fwrite(&length, 1, 2, file_);
  std::fwrite(header.data(), 1, header.size(), file_);
}

NpyWriter::~NpyWriter() {
  if (!file_) return;
  std::fclose(file_);
  std::remove(partial_.c_str());
}

void NpyWriter::write(std::span<const float> values) {
  if (std::fwrite(values.data(), sizeof(float), values.size(), file_) != values.size()) {
    fail(Code::resource_exhausted, path_, std::string("cannot be written: ") + std::strerror(errno));
  }
}

void NpyWriter::finish() {
  const bool bad = std::fclose(file_) != 0;
  file_ = nullptr;
  if (bad || std::rename(partial_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    std::remove(partial_.c_str());
    fail(Code::resource_exhausted, path_, std::string("cannot be written: ") + std::strerror(error));
  }
}

}  // namespace tandem
