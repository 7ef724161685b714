#include "runtime/model/checkpoint/shard_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"

namespace tandem {
namespace {

using nlohmann::ordered_json;

constexpr uint64_t kLength = sizeof(uint64_t);  // of the header's length

[[noreturn]] void cannot_write(const std::string& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  fail(full ? Code::resource_exhausted : Code::unavailable, path, std::string("cannot be written: ") + std::strerror(error));
}

void write_all(int descriptor, const std::string& path, uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::pwrite(descriptor, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) cannot_write(path, done < 0 ? errno : ENOSPC);
    bytes = bytes.subspan(static_cast<size_t>(done));
    offset += static_cast<uint64_t>(done);
  }
}

void put_in_place(int descriptor, const std::string& from, const std::string& to) {
  if (::fsync(descriptor) != 0 || ::rename(from.c_str(), to.c_str()) != 0) cannot_write(to, errno);
  const int folder = ::open(std::filesystem::path(to).parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  (void)::fsync(folder);
  ::close(folder);
}

void add_tensor(ordered_json& header, const FilePiece& piece, const std::vector<int64_t>& shape, uint64_t begin, uint64_t end) {
  header[piece.name] = {{"dtype", name(piece.dtype)}, {"shape", shape}, {"data_offsets", {begin, end}}};
}

}  // namespace

ShardFile::ShardFile(std::string path, const std::vector<const FilePiece*>& pieces) : path_(std::move(path)) {
  std::vector<const FilePiece*> order = pieces;
  std::sort(order.begin(), order.end(), [](const FilePiece* a, const FilePiece* b) {
    if (size(a->dtype) != size(b->dtype)) return size(a->dtype) > size(b->dtype);
    return a->name < b->name;
  });
  ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t longest = 0;
  for (const FilePiece* piece : order) {
    if (piece->text) {
      texts_.push_back(piece);
      longest += piece->bytes;
      continue;
    }
    places_.push_back({piece, data_bytes_});
    offset_of_[piece] = data_bytes_;
    add_tensor(header, *piece, piece->shape, data_bytes_, data_bytes_ + piece->bytes);
    data_bytes_ += piece->bytes;
  }
  for (const FilePiece* piece : texts_) add_tensor(header, *piece, {static_cast<int64_t>(piece->bytes)}, data_bytes_ + longest, data_bytes_ + longest);
  header_bytes_ = (kLength + header.dump().size() + 7) / 8 * 8;
}

ShardFile::~ShardFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void ShardFile::open() {
  if (descriptor_ >= 0) return;
  // A whole file in which something was found damaged is unfinished again.
  if (::rename(path_.c_str(), (path_ + ".partial").c_str()) != 0 && errno != ENOENT) cannot_write(path_, errno);
  descriptor_ = ::open((path_ + ".partial").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) cannot_write(path_, errno);
}

void ShardFile::write(const FilePiece& piece, uint64_t offset, std::span<const std::byte> bytes) {
  write_all(descriptor_, path_, header_bytes_ + offset_of_.at(&piece) + offset, bytes);
}

void ShardFile::finish(const std::map<std::string, std::string>& texts) {
  open();
  ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  for (const Place& place : places_) add_tensor(header, *place.piece, place.piece->shape, place.offset, place.offset + place.piece->bytes);
  uint64_t end = data_bytes_;
  std::string all;
  for (const FilePiece* piece : texts_) {
    const std::string& text = texts.at(piece->name);
    add_tensor(header, *piece, {static_cast<int64_t>(text.size())}, end, end + text.size());
    end += text.size();
    all += text;
  }
  std::string head = header.dump();
  const uint64_t length = header_bytes_ - kLength;
  if (head.size() > length) fail(Code::internal, path_, "the header is longer than was reserved for it");
  head.resize(length, ' ');
  head.insert(0, reinterpret_cast<const char*>(&length), kLength);
  write_all(descriptor_, path_, header_bytes_ + data_bytes_, std::as_bytes(std::span(all)));
  write_all(descriptor_, path_, 0, std::as_bytes(std::span(head)));
  if (::ftruncate(descriptor_, static_cast<off_t>(header_bytes_ + end)) != 0) cannot_write(path_, errno);
  put_in_place(descriptor_, path_ + ".partial", path_);
  ::close(descriptor_);
  descriptor_ = -1;
}

bool ShardFile::read(const FilePiece& piece, uint64_t offset, std::span<std::byte> out) const {
  int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) descriptor = ::open((path_ + ".partial").c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  uint64_t at = header_bytes_ + offset_of_.at(&piece) + offset;
  bool whole = true;
  while (!out.empty() && whole) {
    const ssize_t got = ::pread(descriptor, out.data(), out.size(), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    whole = got > 0;
    if (!whole) break;
    out = out.subspan(static_cast<size_t>(got));
    at += static_cast<uint64_t>(got);
  }
  ::close(descriptor);
  return whole;
}

uint64_t ShardFile::taken_bytes() const {
  struct stat status {};
  const bool there = ::stat(path_.c_str(), &status) == 0 || ::stat((path_ + ".partial").c_str(), &status) == 0;
  return there ? static_cast<uint64_t>(status.st_blocks) * 512 : 0;
}

bool ShardFile::finished() const {
  struct stat status {};
  return ::stat(path_.c_str(), &status) == 0 && S_ISREG(status.st_mode) && static_cast<uint64_t>(status.st_size) >= bytes();
}

void write_whole_file(const std::string& path, std::string_view text) {
  const std::string partial = path + ".partial";
  const int descriptor = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) cannot_write(path, errno);
  try {
    write_all(descriptor, path, 0, std::as_bytes(std::span(text)));
    put_in_place(descriptor, partial, path);
  } catch (...) {
    ::close(descriptor);
    ::unlink(partial.c_str());
    throw;
  }
  ::close(descriptor);
}

}  // namespace tandem
