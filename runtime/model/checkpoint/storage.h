// Read-only bytes under a name: a file, read with pread so that one that shrinks is an error and not a signal, or memory (tests and
// fuzz targets). Owns its descriptor. Immutable after opening; read() may be called from many threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace tandem {

class Storage {
 public:
  virtual ~Storage() = default;
  virtual const std::string& name() const = 0;  // for messages: the path as it was given
  virtual uint64_t size() const = 0;            // bytes, when it was opened
  // Bytes [offset, offset + bytes). Errors: Code::invalid_argument when the file is shorter than that by now, Code::unavailable on an
  // I/O error.
  virtual void read(uint64_t offset, size_t bytes, void* destination) const = 0;
};

// Errors: Code::not_found; Code::invalid_argument for what is no regular file or may not be read.
std::unique_ptr<Storage> open_file(const std::string& path);
std::unique_ptr<Storage> in_memory(std::string name, std::span<const std::byte> bytes);  // a view: the bytes must outlive it

constexpr uint64_t kTextLimit = 64ull << 20;
// A whole text file. Errors: those of open_file; Code::invalid_argument when it is larger than `limit` bytes.
std::string read_text(const std::string& path, uint64_t limit = kTextLimit);

// A name that a file invented, fit for one line of a message: quoted, control and non-ASCII bytes escaped, long ones shortened.
std::string in_quotes(std::string_view name);

}  // namespace tandem
