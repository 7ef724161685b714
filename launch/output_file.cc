#include "launch/output_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "kernels/base/error.h"

namespace tandem {

namespace fs = std::filesystem;

OutputFile::OutputFile(std::string option, const std::string& path) : option_(std::move(option)), path_(path) {
  std::error_code error;
  if (const fs::path target = fs::canonical(path, error); !error) path_ = target;  // through links, so that they stay
  const bool there = fs::exists(path_, error);
  if (fs::is_directory(path_, error)) bad_input(option_, "is " + path + ", a directory (must be a file)");
  if (!there || fs::is_regular_file(path_, error)) partial_ = path_ + ".partial-" + std::to_string(getpid());
  file_ = std::fopen((partial_.empty() ? path_ : partial_).c_str(), "wb");
  if (!file_) bad_input(option_, "cannot write " + path + ": " + std::strerror(errno) + " (must be a file in a folder that can be written)");
}

OutputFile::~OutputFile() {
  if (!file_) return;
  std::fclose(file_);
  if (!partial_.empty()) std::remove(partial_.c_str());
}

void OutputFile::full(int error) {
  fail(Code::resource_exhausted, option_, path_ + " cannot be written: " + std::strerror(error) + " (room for the whole file is needed)");
}

void OutputFile::write(std::string_view bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) full(errno);
}

void OutputFile::finish() {
  const bool bad = std::fclose(file_) != 0;
  file_ = nullptr;
  if (bad || (!partial_.empty() && std::rename(partial_.c_str(), path_.c_str()) != 0)) {
    const int error = errno;
    if (!partial_.empty()) std::remove(partial_.c_str());
    full(error);
  }
}

}  // namespace tandem
