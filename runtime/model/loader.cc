#include "runtime/model/loader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/rectangle.h"

namespace tandem {
namespace {

QuantizedView view_of(const Format& format, int64_t rows, int64_t cols, const std::byte* bytes) {
  QuantizedView view{&format, rows, cols, {}};
  size_t i = 0;
  for (const Component& component : format.components(rows, cols)) {
    view.data[i++] = bytes;
    bytes += component.bytes;
  }
  return view;
}

uint64_t bytes_of(const std::vector<ByteRange>& ranges) {
  uint64_t bytes = 0;
  for (const ByteRange& range : ranges) bytes += range.size();
  return bytes;
}

// Rows of each head from llama.cpp's order (2i, 2i + 1) to Hugging Face's (i, i + half). Rows are whole bytes in every GGUF format.
void restore_rope_rows(std::span<std::byte> bytes, int64_t rows, int64_t head_dim) {
  const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
  std::vector<std::byte> head(row_bytes * static_cast<size_t>(head_dim));
  const int64_t half = head_dim / 2;
  for (int64_t first = 0; first + head_dim <= rows; first += head_dim) {
    std::byte* base = bytes.data() + static_cast<size_t>(first) * row_bytes;
    for (int64_t i = 0; i < half; ++i) {
      std::memcpy(head.data() + static_cast<size_t>(i) * row_bytes, base + static_cast<size_t>(2 * i) * row_bytes, row_bytes);
      std::memcpy(head.data() + static_cast<size_t>(i + half) * row_bytes, base + static_cast<size_t>(2 * i + 1) * row_bytes, row_bytes);
    }
    std::memcpy(base, head.data(), head.size());
  }
}

void transpose(std::span<std::byte> bytes, int64_t rows, int64_t cols) {
  const auto element = bytes.size() / static_cast<size_t>(rows * cols);
  const std::vector<std::byte> before(bytes.begin(), bytes.end());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      std::memcpy(bytes.data() + static_cast<size_t>(c * rows + r) * element, before.data() + static_cast<size_t>(r * cols + c) * element, element);
    }
  }
}

Origin origin_of(const Blueprint& blueprint, const WeightRow& row) {
  if (blueprint.synthetic) return {row.name};
  return blueprint.checkpoint.dialect == Dialect::gguf ? row.gguf : row.huggingface;
}

// The stored form of `part` in the checkpoint's own format, rows in Hugging Face's order, at the beginning of `buffer`.
void read_stored(const Blueprint& blueprint, WeightId id, const Rectangle& part, std::vector<std::byte>& buffer) {
  const WeightRow& row = blueprint.model->weights[id];
  const TensorInfo& tensor = *blueprint.formats.tensors[id];
  const Format& stored = *blueprint.formats.stored[id];
  const Origin origin = origin_of(blueprint, row);
  const bool vector = row.role == Role::norm || row.role == Role::bias;
  // The matrix as it is stored, and the part of it that is wanted.
  int64_t rows = origin.fused_rows > 0 ? origin.fused_rows : row.rows.size(), cols = row.cols.size();
  Rectangle wanted{part.row_begin + origin.row_offset, part.row_end + origin.row_offset, part.col_begin, part.col_end};
  const auto turn = [&] {
    std::swap(rows, cols);
    wanted = {wanted.col_begin, wanted.col_end, wanted.row_begin, wanted.row_end};
  };
  if (origin.transposed || row.role == Role::bias) turn();
  const std::vector<Component> components = stored.components(rows, cols);
  const TensorSource& source = *blueprint.checkpoint.tensors;
  const auto ranges = stored.ranges(rows, cols, wanted);
  uint64_t total = 0;
  for (const auto& list : ranges) total += bytes_of(list);
  if (buffer.size() < total) {
    buffer = std::vector<std::byte>();  // given back before more is taken
    buffer.resize(total);
  }
  const std::span<std::byte> bytes(buffer.data(), total);
  std::byte* to = bytes.data();
  for (size_t i = 0; i < components.size(); ++i) {  // the codes, and what belongs to them from tensors of their own
    const TensorInfo* holder = i == 0 ? &tensor : source.find(tensor.name + components[i].suffix);
    if (holder == nullptr) bad_input(source.file_name(tensor), "has no tensor " + tensor.name + components[i].suffix + " (" + std::string(stored.name()) + " needs it)");
    const uint64_t offset = origin.stacked >= 0 ? static_cast<uint64_t>(origin.stacked) * components[i].bytes : 0;
    check_holds(source, *holder, stored, rows, cols, offset, i);
    read_ranges(source, *holder, ranges[i], offset, to);
    to += bytes_of(ranges[i]);
  }
  if (origin.order == RowOrder::interleaved_rope) {
    if (vector) {
      restore_rope_rows(bytes, wanted.cols(), row.rows.unit);
    } else {
      restore_rope_rows(bytes, wanted.rows(), row.rows.unit);
    }
  }
  if (origin.transposed) transpose(bytes, wanted.rows(), wanted.cols());
}

// Converts rows in pieces, so that only a few megabytes of floats exist at a time.
std::vector<std::byte> convert(const Format& from, const Format& to, int64_t rows, int64_t cols, const std::vector<std::byte>& source) {
  const std::vector<Component> components = to.components(rows, cols);
  uint64_t total = 0;
  std::vector<uint64_t> begin;
  for (const Component& component : components) {
    begin.push_back(total);
    total += component.bytes;
  }
  std::vector<std::byte> result(total);
  const QuantizedView view = view_of(from, rows, cols, source.data());
  const int64_t grain = std::max<int64_t>(1, to.grain(rows, cols).rows);
  int64_t piece = std::max<int64_t>(grain, (int64_t{1} << 20) / std::max<int64_t>(1, cols) / grain * grain);
  if (to.reach() == Reach::whole) piece = rows;
  std::vector<float> values(static_cast<size_t>(std::min(piece, rows) * cols));
  for (int64_t first = 0; first < rows; first += piece) {
    const int64_t count = std::min(piece, rows - first);
    from.dequantize(view, first, count, values.data());
    const std::vector<Component> before = to.components(first, cols);
    std::vector<std::byte*> out;
    for (size_t i = 0; i < components.size(); ++i) {
      const bool one_for_all = before[i].bytes == components[i].bytes;  // a code map: every piece writes the same one
      out.push_back(result.data() + begin[i] + (one_for_all ? 0 : before[i].bytes));
    }
    to.quantize(values.data(), count, cols, out);
  }
  return result;
}

}  // namespace

LoadedSlice load_slice(const Blueprint& blueprint, WeightId id, const Rectangle& part, std::vector<std::byte> buffer) {
  return load_slice_as(*blueprint.formats.held[id], blueprint, id, part, std::move(buffer));
}

LoadedSlice load_slice_as(const Format& held, const Blueprint& blueprint, WeightId id, const Rectangle& part, std::vector<std::byte> buffer) {
  const WeightRow& row = blueprint.model->weights[id];
  const Format& stored = *blueprint.formats.stored[id];
  if (blueprint.formats.tensors[id] == nullptr) {
    bad_input(blueprint.checkpoint.path, "holds no weights (a directory with safetensors or a .gguf file is needed to run)");
  }
  const int64_t rows = row.rows.size(), cols = row.cols.size();
  const auto ranges = held.ranges(rows, cols, part);
  LoadedSlice slice;
  // What has to be read for the statistics of the part to be those of the whole matrix.
  Rectangle read = part;
  if (held.reach() != Reach::block) read.col_begin = 0, read.col_end = cols;
  if (held.reach() == Reach::whole) read.row_begin = 0, read.row_end = rows;
  const bool as_read = read.rows() == part.rows() && read.cols() == part.cols();
  if (&stored == &held) {
    slice.bytes = std::move(buffer);
    read_stored(blueprint, id, part, slice.bytes);
  } else if (as_read) {
    read_stored(blueprint, id, part, buffer);
    slice.bytes = convert(stored, held, part.rows(), part.cols(), buffer);
  } else {
    read_stored(blueprint, id, read, buffer);
    const std::vector<std::byte> all = convert(stored, held, read.rows(), read.cols(), buffer);
    const Rectangle within{part.row_begin - read.row_begin, part.row_end - read.row_begin, part.col_begin - read.col_begin, part.col_end - read.col_begin};
    const auto kept = held.ranges(read.rows(), read.cols(), within);
    const std::vector<Component> components = held.components(read.rows(), read.cols());
    uint64_t base = 0;
    for (size_t i = 0; i < components.size(); ++i) {
      for (const ByteRange& range : kept[i]) {
        slice.bytes.insert(slice.bytes.end(), all.begin() + static_cast<int64_t>(base + range.begin), all.begin() + static_cast<int64_t>(base + range.end));
      }
      base += components[i].bytes;
    }
  }
  if (const float plus = origin_of(blueprint, row).plus; plus != 0) {  // held as fp32
    for (int64_t i = 0; i < part.rows() * part.cols(); ++i) {
      float value;
      std::memcpy(&value, slice.bytes.data() + i * static_cast<int64_t>(sizeof value), sizeof value);
      value += plus;
      std::memcpy(slice.bytes.data() + i * static_cast<int64_t>(sizeof value), &value, sizeof value);
    }
  }
  slice.view = {&held, part.rows(), part.cols(), {}, part.row_begin * cols + part.col_begin, cols};
  const std::byte* at = slice.bytes.data();
  for (size_t i = 0; i < ranges.size(); ++i) {
    slice.view.data[i] = at;
    at += bytes_of(ranges[i]);
  }
  return slice;
}

}  // namespace tandem
