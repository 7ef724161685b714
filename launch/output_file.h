// A file that a command writes. It appears under its name only when it is whole; what was there before stays until then. Devices and
// pipes (/dev/stdout) are written to as they are.
#pragma once
#include <cstdio>
#include <string>
#include <string_view>

namespace tandem {

class OutputFile {
 public:
  // Errors: Code::invalid_argument naming `option` when nothing can be written there.
  OutputFile(std::string option, const std::string& path);
  ~OutputFile();  // an unfinished file is removed
  OutputFile(const OutputFile&) = delete;

  void write(std::string_view bytes);
  void finish();  // both: Code::resource_exhausted when the disk is full

 private:
  [[noreturn]] void full(int error);
  std::string option_, path_, partial_;  // partial_ empty: written in place
  std::FILE* file_ = nullptr;
};

}  // namespace tandem
