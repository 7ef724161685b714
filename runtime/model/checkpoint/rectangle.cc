#include "runtime/model/checkpoint/rectangle.h"

#include <cstring>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {

void read_ranges(const TensorSource& source, const TensorInfo& tensor, std::span<const ByteRange> ranges, uint64_t offset, std::byte* out) {
  std::vector<std::byte> bounce;
  for (size_t first = 0; first < ranges.size();) {
    // As many ranges as one read may cover: without gaps any number, with gaps no more than the buffer holds.
    uint64_t end = ranges[first].end, bytes = ranges[first].size();
    size_t next = first + 1;
    for (; next < ranges.size(); ++next) {
      const ByteRange& range = ranges[next];
      if (range.begin < end || range.begin - end >= kReadThrough) break;
      const bool gaps = range.begin != end || bytes != end - ranges[first].begin;
      if (gaps && range.end - ranges[first].begin > kBounce) break;
      end = range.end;
      bytes += range.size();
    }
    const uint64_t begin = ranges[first].begin;
    if (bytes == end - begin) {
      source.read(tensor, {offset + begin, offset + end}, out);
      out += bytes;
    } else {
      bounce.resize(end - begin);
      source.read(tensor, {offset + begin, offset + end}, bounce.data());
      for (size_t i = first; i < next; ++i) {
        std::memcpy(out, bounce.data() + (ranges[i].begin - begin), ranges[i].size());
        out += ranges[i].size();
      }
    }
    first = next;
  }
}

void check_holds(const TensorSource& source, const TensorInfo& tensor, const Format& format, int64_t rows, int64_t cols, uint64_t offset,
                 size_t component) {
  const auto components = format.components(rows, cols);
  const uint64_t stored = components.at(component).bytes;
  if (offset > tensor.bytes || stored > tensor.bytes - offset) {
    bad_input(source.file_name(tensor), "tensor " + in_quotes(tensor.name) + " has " + std::to_string(tensor.bytes) +
                                            " bytes (a matrix of " + std::to_string(rows) + " x " + std::to_string(cols) + " " +
                                            std::string(format.name()) + " values needs " + std::to_string(stored) +
                                            (offset ? " from byte " + std::to_string(offset) : "") + ")");
  }
}

void read_rectangle(const TensorSource& source, const TensorInfo& tensor, const Format& format, int64_t rows, int64_t cols,
                    const Rectangle& part, std::vector<std::byte>& out, uint64_t offset, size_t component) {
  check_holds(source, tensor, format, rows, cols, offset, component);
  const std::vector<ByteRange> ranges = format.ranges(rows, cols, part).at(component);
  uint64_t bytes = 0;
  for (const ByteRange& range : ranges) bytes += range.size();
  out.resize(bytes);
  read_ranges(source, tensor, ranges, offset, out.data());
}

uint64_t expert_offset(const TensorSource& source, const TensorInfo& tensor, int64_t expert) {
  if (tensor.shape.size() != 3 || expert < 0 || expert >= tensor.shape[0]) {
    bad_input(source.file_name(tensor), "tensor " + in_quotes(tensor.name) + " has no expert " + std::to_string(expert) +
                                            " (its shape must be [experts, rows, columns])");
  }
  return tensor.bytes / static_cast<uint64_t>(tensor.shape[0]) * static_cast<uint64_t>(expert);
}

}  // namespace tandem
