#include <charconv>
#include <string>

#include "kernels/base/error.h"
#include "kernels/formats/blockwise.h"
#include "kernels/formats/format.h"
#include "kernels/formats/int4.h"

namespace tandem {

std::span<const Format* const> formats() {
  static const std::vector<const Format*> all = [] {
    std::vector<const Format*> list;
    for (const auto& some :
         {dense_formats(), four_bit_formats(), int8_formats(), group_int_formats(), fp8_formats(), absmax_formats(), gguf_block_formats()})
      list.insert(list.end(), some.begin(), some.end());
    return list;
  }();
  return all;
}

std::string_view family(const Format& format) { return format.layout(); }

namespace {

const Format* listed(std::string_view name) {
  for (const Format* format : formats()) {
    if (format->name() == name) return format;
  }
  return nullptr;
}

// Of "nf4:128", "128" as a number; kWholeRow for "row", 0 for what is neither.
int64_t block_of(std::string_view name) {
  int64_t block = 0;
  const size_t colon = name.find(':');
  if (colon == std::string_view::npos) return 0;
  if (name.substr(colon + 1) == "row") return kWholeRow;
  const auto [end, error] = std::from_chars(name.data() + colon + 1, name.data() + name.size(), block);
  return error == std::errc() && end == name.data() + name.size() && block > 0 ? block : 0;
}

std::string known_blocks(const Format& format) {
  std::string list;
  for (int64_t block = 1; block <= 8192; block *= 2) {
    if (format.with_block(block)) list += (list.empty() ? "" : ", ") + std::to_string(block);
  }
  if (format.with_block(kWholeRow)) list += " or row";
  return list.empty() ? "one form only" : "blocks of " + list;
}

}  // namespace

const Format* find_format(std::string_view name) {
  const Format* found = listed(name.substr(0, name.find(':')));
  return found == nullptr || name.find(':') == std::string_view::npos ? found : found->with_block(block_of(name));
}

const Format& format(std::string_view name) {
  if (const Format* found = find_format(name)) return *found;
  if (const Format* other = listed(name.substr(0, name.find(':')))) {
    bad_input("--format", "is '" + std::string(name) + "' (" + std::string(other->name()) + " comes in " + known_blocks(*other) + ")");
  }
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
