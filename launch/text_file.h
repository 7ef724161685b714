// A text that a user names: a file, or a pipe (`--chat <(...)`).
#pragma once
#include <cstddef>
#include <string>

namespace tandem {

// Errors: Code::not_found, Code::invalid_argument naming the file: a directory, or more than `most` bytes.
std::string read_text_file(const std::string& path, size_t most);

}  // namespace tandem
