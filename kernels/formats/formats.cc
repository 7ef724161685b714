#include <string>

#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"
#include "kernels/formats/format.h"

namespace tandem {

std::span<const Format* const> formats() {
  static const std::vector<const Format*> all = [] {
    std::vector<const Format*> list;
    for (const auto& some : {dense_formats(), four_bit_formats(), gguf_block_formats()}) list.insert(list.end(), some.begin(), some.end());
    return list;
  }();
  return all;
}

const Format* find_format(std::string_view name) {
  for (const Format* format : formats()) {
    if (format->name() == name) return format;
  }
  return nullptr;
}

const Format& format(std::string_view name) {
  if (const Format* found = find_format(name)) return *found;
  std::string known;
  for (const Format* format : formats()) known += (known.empty() ? "" : ", ") + std::string(format->name());
  bad_input("--format", "is '" + std::string(name) + "' (known: " + known + ")");
}

const Format& dense_format(DType type) {
  for (const Format* format : dense_formats()) {
    if (format->dtype() == type) return *format;
  }
  bad_input("format", std::string(name(type)) + " is not a type that weights can be computed with (F32, F16 or BF16)");
}

uint64_t stored_bytes(const Format& format, int64_t rows, int64_t cols) {
  uint64_t bytes = 0;
  for (const Component& component : format.components(rows, cols)) bytes += component.bytes;
  return bytes;
}

int64_t element_count(std::string_view format, int64_t rows, int64_t cols) {
  int64_t count = 0, bits = 0;
  if (rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &count) || __builtin_mul_overflow(count, int64_t{64}, &bits)) {
    bad_input(std::string(format), "no matrix can have the shape [" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
  }
  return count;
}

std::vector<Component> RowBlockFormat::components(int64_t rows, int64_t cols) const {
  element_count(name_, rows, cols);
  if (cols % block_ != 0) {
    bad_input(std::string(name_), "cannot hold [" + std::to_string(rows) + ", " + std::to_string(cols) + "]: rows are stored in blocks (" +
                                      std::to_string(cols) + " is not a multiple of " + std::to_string(block_) + ")");
  }
  return {{"", dtype_, static_cast<uint64_t>(rows) * row_bytes(cols), false}};
}

std::vector<std::vector<ByteRange>> RowBlockFormat::ranges(int64_t, int64_t cols, const Rectangle& part) const {
  const uint64_t row = row_bytes(cols), left = row_bytes(part.col_begin), right = row_bytes(part.col_end);
  std::vector<ByteRange> list;
  if (part.rows() <= 0 || part.cols() <= 0) return {list};
  const auto begin = static_cast<uint64_t>(part.row_begin), end = static_cast<uint64_t>(part.row_end);
  if (left == 0 && right == row) return {{{begin * row, end * row}}};
  list.reserve(end - begin);
  for (uint64_t r = begin; r < end; ++r) list.push_back({r * row + left, r * row + right});
  return {list};
}

}  // namespace tandem
