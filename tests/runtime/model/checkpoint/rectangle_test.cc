#include "runtime/model/checkpoint/rectangle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "kernels/base/error.h"

namespace tandem {
namespace {

// Remembers what was read of bytes that are a function of their position.
class Pattern final : public TensorSource {
 public:
  explicit Pattern(uint64_t bytes) : tensors_{{.name = "t", .type = "q4_1", .bytes = bytes}} {}
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view) const override { return nullptr; }
  void read(const TensorInfo& tensor, ByteRange range, void* destination) const override {
    ASSERT_LE(range.end, tensor.bytes);
    ASSERT_LE(range.begin, range.end);
    reads.push_back(range);
    for (uint64_t i = range.begin; i < range.end; ++i) static_cast<std::byte*>(destination)[i - range.begin] = at(i);
  }
  std::string file_name(const TensorInfo&) const override { return "file"; }
  static std::byte at(uint64_t i) { return static_cast<std::byte>(i * 2654435761u >> 13); }
  const TensorInfo& tensor() const { return tensors_[0]; }
  mutable std::vector<ByteRange> reads;

 private:
  std::vector<TensorInfo> tensors_;
};

// Blocks of 32 values in 20 bytes, row by row, and one scale a row as a second component.
class Blocks final : public Format {
 public:
  std::string_view name() const override { return "blocks"; }
  std::vector<Component> components(int64_t rows, int64_t cols) const override {
    return {{.suffix = "", .bytes = static_cast<uint64_t>(rows * cols / 32 * 20)},
            {.suffix = ".scale", .dtype = DType::f32, .bytes = static_cast<uint64_t>(rows * 4), .scales = true}};
  }
  Grain grain(int64_t, int64_t) const override { return {1, 32}; }
  std::vector<std::vector<ByteRange>> ranges(int64_t, int64_t cols, const Rectangle& part) const override {
    std::vector<std::vector<ByteRange>> out(2);
    for (int64_t row = part.row_begin; row < part.row_end; ++row) {
      const auto at = [&](int64_t col) { return static_cast<uint64_t>((row * cols + col) / 32 * 20); };
      out[0].push_back({at(part.col_begin), at(part.col_end)});
    }
    out[1].push_back({static_cast<uint64_t>(part.row_begin * 4), static_cast<uint64_t>(part.row_end * 4)});
    return out;
  }
  void quantize(const float*, int64_t, int64_t, std::span<std::byte* const>) const override {}
  void dequantize(const QuantizedView&, int64_t, int64_t, float*) const override {}
};

std::vector<std::byte> expected(std::span<const ByteRange> ranges, uint64_t offset) {
  std::vector<std::byte> out;
  for (const ByteRange& range : ranges) {
    for (uint64_t i = range.begin; i < range.end; ++i) out.push_back(Pattern::at(offset + i));
  }
  return out;
}

TEST(Rectangle, RowsAreOneRead) {
  const Pattern source(1000 * 64 * 20);
  std::vector<std::byte> out;
  read_rectangle(source, source.tensor(), Blocks(), 1000, 2048, {100, 900, 0, 2048}, out);
  EXPECT_EQ(source.reads.size(), 1u);
  EXPECT_EQ(out, expected(Blocks().ranges(1000, 2048, {100, 900, 0, 2048})[0], 0));
}

TEST(Rectangle, ColumnsAreReadThroughSmallGaps) {
  const Pattern source(1000 * 64 * 20);
  std::vector<std::byte> out;
  const Rectangle half{0, 1000, 1024, 2048};
  read_rectangle(source, source.tensor(), Blocks(), 1000, 2048, half, out);
  EXPECT_EQ(out, expected(Blocks().ranges(1000, 2048, half)[0], 0));
  EXPECT_LE(source.reads.size(), 3u);
  for (const ByteRange& read : source.reads) EXPECT_LE(read.size(), kBounce);
}

TEST(Rectangle, LargeGapsAreNotRead) {
  const int64_t cols = 65536;
  const Pattern source(16 * cols / 32 * 20);
  std::vector<std::byte> out;
  read_rectangle(source, source.tensor(), Blocks(), 16, cols, {0, 16, 0, 32}, out);
  EXPECT_EQ(source.reads.size(), 16u);
  EXPECT_EQ(out.size(), 16u * 20);
  for (const ByteRange& read : source.reads) EXPECT_EQ(read.size(), 20u);
}

TEST(Rectangle, ExpertsAndComponents) {
  const int64_t rows = 12, cols = 96, experts = 5;
  const uint64_t one = rows * cols / 32 * 20;
  Pattern source(one * experts);
  TensorInfo stacked = source.tensor();
  stacked.shape = {experts, rows, cols};
  std::vector<std::byte> out;
  for (int64_t expert = 0; expert < experts; ++expert) {
    const Rectangle part{3, 7, 32, 64};
    read_rectangle(source, stacked, Blocks(), rows, cols, part, out, expert_offset(source, stacked, expert));
    EXPECT_EQ(out, expected(Blocks().ranges(rows, cols, part)[0], one * expert));
  }
  EXPECT_THROW(expert_offset(source, stacked, 5), Error);
  EXPECT_THROW(expert_offset(source, stacked, -1), Error);
  EXPECT_THROW(expert_offset(source, source.tensor(), 0), Error);
  read_rectangle(source, stacked, Blocks(), rows, cols, {3, 7, 32, 64}, out, 0, 1);
  EXPECT_EQ(out.size(), 16u);
  // A matrix that the tensor is too small for is the file's fault, not a read beyond its end.
  EXPECT_THROW(read_rectangle(source, stacked, Blocks(), rows * experts + 1, cols, {0, 1, 0, 32}, out), Error);
  EXPECT_THROW(read_rectangle(source, stacked, Blocks(), rows, cols, {0, 1, 0, 32}, out, one * experts - 1), Error);
}

TEST(Rectangle, AnyRanges) {
  const uint32_t seed = 20240817;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    const Pattern source(3 << 20);
    std::vector<ByteRange> ranges;
    uint64_t at = 0;
    const uint64_t gap = std::array{0u, 1u, 300u, 20000u, 60000u}[random() % 5], size = std::array{1u, 7u, 5000u, 600000u}[random() % 4];
    while (ranges.size() < 50) {
      if (random() % 20 == 0) at = random() % 1000;  // out of order, or again
      at += gap ? random() % (gap + 1) : 0;
      const uint64_t end = at + random() % (size + 1);
      if (end > (3 << 20) - 64) break;
      ranges.push_back({at, end});
      at = end;
    }
    const std::vector<std::byte> wanted = expected(ranges, 64);
    std::vector<std::byte> out(wanted.size() + 1, std::byte{0xa5});
    read_ranges(source, source.tensor(), ranges, 64, out.data());
    EXPECT_EQ(out.back(), std::byte{0xa5});
    out.pop_back();
    EXPECT_EQ(out, wanted);
  }
  const Pattern source(10);
  read_ranges(source, source.tensor(), {}, 0, nullptr);
  EXPECT_TRUE(source.reads.empty());
}

}  // namespace
}  // namespace tandem
