#include "launch/text_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/base/error.h"

namespace tandem {

std::string read_text_file(const std::string& path, size_t most) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) bad_input(path, "is a directory (must be a text file)");
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file && errno == ENOENT) fail(Code::not_found, path, "no such file (must be a text file)");
  if (!file) bad_input(path, std::string("cannot be opened: ") + std::strerror(errno) + " (must be a text file)");
  std::string text;
  char piece[1 << 16];
  while (file.read(piece, sizeof piece) || file.gcount() > 0) {
    text.append(piece, static_cast<size_t>(file.gcount()));
    if (text.size() > most) bad_input(path, "has more than " + std::to_string(most) + " bytes (at most that many)");
  }
  return text;
}

}  // namespace tandem
