#include "runtime/model/checkpoint/storage.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "kernels/base/error.h"

namespace tandem {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

[[noreturn]] void ends_early(const std::string& name, uint64_t end, uint64_t wanted) {
  bad_input(name, "ends at byte " + std::to_string(end) + " but byte " + std::to_string(wanted) +
                      " is needed (it shrank after it was opened: copy it again)");
}

class File final : public Storage {
 public:
  explicit File(const std::string& path) : name_(path) {
    // Non-blocking, so that a pipe put in a model's place is refused below rather than waited for.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) {
      const int error = errno;
      if (error == ENOENT || error == ENOTDIR) fail(Code::not_found, name_, "no such file");
      if (error == EMFILE || error == ENFILE) fail(Code::resource_exhausted, name_, reason(error) + " (raise ulimit -n)");
      bad_input(name_, "cannot be opened: " + reason(error) + " (must be a file that this user may read)");
    }
    struct stat status {};
    const int failed = ::fstat(descriptor_, &status);
    if (failed != 0 || !S_ISREG(status.st_mode)) {
      ::close(descriptor_);
      bad_input(name_, "is not a regular file (must be one: no directory, pipe or device)");
    }
    size_ = static_cast<uint64_t>(status.st_size);
  }
  ~File() override { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& name() const override { return name_; }
  uint64_t size() const override { return size_; }
  void read(uint64_t offset, size_t bytes, void* destination) const override {
    if (offset > size_ || bytes > size_ - offset) ends_early(name_, size_, offset + bytes);
    auto* out = static_cast<std::byte*>(destination);
    while (bytes > 0) {
      const ssize_t got = ::pread(descriptor_, out, bytes, static_cast<off_t>(offset));
      if (got < 0) {
        if (errno == EINTR) continue;
        fail(Code::unavailable, name_, "cannot be read at byte " + std::to_string(offset) + ": " + reason(errno));
      }
      if (got == 0) ends_early(name_, offset, offset + bytes);
      out += got;
      offset += static_cast<uint64_t>(got);
      bytes -= static_cast<size_t>(got);
    }
  }

 private:
  std::string name_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

class Memory final : public Storage {
 public:
  Memory(std::string name, std::span<const std::byte> bytes) : name_(std::move(name)), bytes_(bytes) {}
  const std::string& name() const override { return name_; }
  uint64_t size() const override { return bytes_.size(); }
  void read(uint64_t offset, size_t bytes, void* destination) const override {
    if (offset > bytes_.size() || bytes > bytes_.size() - offset) ends_early(name_, bytes_.size(), offset + bytes);
    if (bytes > 0) std::memcpy(destination, bytes_.data() + offset, bytes);
  }

 private:
  std::string name_;
  std::span<const std::byte> bytes_;
};

}  // namespace

std::unique_ptr<Storage> open_file(const std::string& path) { return std::make_unique<File>(path); }

std::unique_ptr<Storage> in_memory(std::string name, std::span<const std::byte> bytes) {
  return std::make_unique<Memory>(std::move(name), bytes);
}

std::string read_text(const std::string& path, uint64_t limit) {
  const File file(path);
  if (file.size() > limit) {
    bad_input(path, "has " + std::to_string(file.size()) + " bytes (at most " + std::to_string(limit) + " are read)");
  }
  std::string text(file.size(), '\0');
  file.read(0, text.size(), text.data());
  return text;
}

std::string in_quotes(std::string_view name) {
  constexpr size_t longest = 120;
  constexpr char digits[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : name.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    }
  }
  return out + (name.size() > longest ? "...'" : "'");
}

}  // namespace tandem
