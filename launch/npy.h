// Writes a float32 array as a NumPy file, rows as they come.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "launch/output_file.h"

namespace tandem {

class NpyWriter {
 public:
  // float32 little-endian, C order, for the option -o. Errors of all: as OutputFile's.
  NpyWriter(const std::string& path, std::span<const int64_t> shape);
  NpyWriter(const std::string& path, int64_t rows, int64_t cols) : NpyWriter(path, std::array{rows, cols}) {}
  void write(std::span<const float> values);
  void finish() { file_.finish(); }

 private:
  OutputFile file_;
};

}  // namespace tandem
