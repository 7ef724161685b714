// Writes a float32 array as a NumPy file, rows as they come.
#pragma once
#include <array>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

namespace tandem {

class NpyWriter {
 public:
  // float32 little-endian, C order. Errors: Code::invalid_argument naming the option when the file cannot be written.
  NpyWriter(const std::string& path, std::span<const int64_t> shape);
  NpyWriter(const std::string& path, int64_t rows, int64_t cols) : NpyWriter(path, std::array{rows, cols}) {}
  ~NpyWriter();  // an unfinished file is removed
  void write(std::span<const float> values);
  void finish();  // Errors: Code::resource_exhausted when the disk is full

 private:
  std::string path_, partial_;
  std::FILE* file_ = nullptr;
};

}  // namespace tandem
