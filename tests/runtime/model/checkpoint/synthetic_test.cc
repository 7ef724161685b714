#include "runtime/model/checkpoint/synthetic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/rectangle.h"

namespace tandem {
namespace {

constexpr int64_t kRows = 67, kCols = 1536;  // cols: a multiple of every format's block

std::vector<std::byte> whole(const TensorSource& source, const std::string& name) {
  const TensorInfo* tensor = source.find(name);
  EXPECT_NE(tensor, nullptr) << name;
  std::vector<std::byte> bytes(tensor ? tensor->bytes : 0);
  if (tensor) source.read(*tensor, {0, bytes.size()}, bytes.data());
  return bytes;
}

struct Moments { double mean = 0, deviation = 0, least = INFINITY, most = -INFINITY; };
Moments moments(const std::vector<float>& values) {
  Moments m;
  double squares = 0;
  for (const float value : values) {
    EXPECT_TRUE(std::isfinite(value));
    m.mean += value;
    squares += double{value} * value;
    m.least = std::min(m.least, double{value});
    m.most = std::max(m.most, double{value});
  }
  m.mean /= static_cast<double>(values.size());
  m.deviation = std::sqrt(squares / static_cast<double>(values.size()) - m.mean * m.mean);
  return m;
}

std::vector<float> numbers(const TensorSource& source, const Format& format, const std::string& name, int64_t rows, int64_t cols) {
  std::vector<std::vector<std::byte>> parts;
  QuantizedView view{&format, rows, cols, {}};
  for (const Component& component : format.components(rows, cols)) {
    parts.push_back(whole(source, name + component.suffix));
    EXPECT_EQ(parts.back().size(), component.bytes) << format.name() << component.suffix;
  }
  for (size_t i = 0; i < parts.size(); ++i) view.data[i] = parts[i].data();
  std::vector<float> values(static_cast<size_t>(rows * cols));
  format.dequantize(view, 0, rows, values.data());
  return values;
}

class EveryFormat : public testing::TestWithParam<const Format*> {};

TEST_P(EveryFormat, HoldsNumbersThatAModelCanBeMadeOf) {
  const Format& format = *GetParam();
  const auto source = make_synthetic_source(7, {{.name = "w", .rows = kRows, .cols = kCols, .format = &format}});
  const Moments m = moments(numbers(*source, format, "w", kRows, kCols));
  EXPECT_GT(m.deviation, 0.017);
  EXPECT_LT(m.deviation, 0.024);
  EXPECT_LT(std::fabs(m.mean), 0.002);
  EXPECT_LT(std::max(m.most, -m.least), 0.25);
}

TEST_P(EveryFormat, AnyRangeHoldsTheBytesOfTheWhole) {
  const Format& format = *GetParam();
  const auto source = make_synthetic_source(11, {{.name = "w", .rows = kRows, .cols = kCols, .format = &format}});
  std::mt19937 random(42);
  for (const TensorInfo& tensor : source->tensors()) {
    const std::vector<std::byte> all = whole(*source, tensor.name);
    for (int i = 0; i < 200; ++i) {
      uint64_t begin = random() % (all.size() + 1), end = random() % (all.size() + 1);
      if (begin > end) std::swap(begin, end);
      std::vector<std::byte> some(end - begin + 1, std::byte{0xa5});  // one more: a sentinel
      source->read(tensor, {begin, end}, some.data());
      ASSERT_EQ(some.back(), std::byte{0xa5});
      ASSERT_EQ(std::memcmp(some.data(), all.data() + begin, end - begin), 0) << tensor.name << " " << begin << " " << end;
    }
  }
}

TEST_P(EveryFormat, ASliceIsThatOfTheWhole) {
  const Format& format = *GetParam();
  const auto source = make_synthetic_source(3, {{.name = "w", .rows = kRows, .cols = kCols, .format = &format}});
  const std::vector<float> all = numbers(*source, format, "w", kRows, kCols);
  const Rectangle part{16, 48, 512, 1024};
  std::vector<std::vector<std::byte>> stored(kMaxComponents);
  QuantizedView view{&format, part.rows(), part.cols(), {}, part.row_begin * kCols + part.col_begin, kCols};
  const std::vector<Component> components = format.components(kRows, kCols);
  for (size_t i = 0; i < components.size(); ++i) {
    read_rectangle(*source, *source->find("w" + components[i].suffix), format, kRows, kCols, part, stored[i], 0, i);
    view.data[i] = stored[i].data();
  }
  std::vector<float> values(static_cast<size_t>(part.rows() * part.cols()));
  format.dequantize(view, 0, part.rows(), values.data());
  for (int64_t r = 0; r < part.rows(); ++r) {
    for (int64_t c = 0; c < part.cols(); ++c) {
      ASSERT_EQ(values[static_cast<size_t>(r * part.cols() + c)], all[static_cast<size_t>((part.row_begin + r) * kCols + part.col_begin + c)]) << r << " " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, EveryFormat, testing::ValuesIn(formats().begin(), formats().end()),
                         [](const auto& info) { return std::string(info.param->name()); });

TEST(Synthetic, SeedAndNameMakeTheBytes) {
  const Format& bf16 = format("bf16");
  const std::vector<SyntheticTensor> list = {{.name = "a", .rows = 64, .cols = 640, .format = &bf16}, {.name = "b", .rows = 64, .cols = 640, .format = &bf16}};
  const auto one = make_synthetic_source(1, list), same = make_synthetic_source(1, {list[1], list[0]}), two = make_synthetic_source(2, list);
  EXPECT_EQ(whole(*one, "a"), whole(*same, "a"));  // whatever else there is
  EXPECT_NE(whole(*one, "a"), whole(*one, "b"));
  EXPECT_NE(whole(*one, "a"), whole(*two, "a"));
}

TEST(Synthetic, NormsLieAroundOne) {
  for (const char* name : {"bf16", "fp32", "fp16"}) {
    const auto source = make_synthetic_source(5, {{.name = "n", .cols = 4096, .vector = true, .around_one = true, .format = &format(name)}});
    EXPECT_EQ(source->find("n")->shape, std::vector<int64_t>{4096});
    const Moments m = moments(numbers(*source, format(name), "n", 1, 4096));
    EXPECT_NEAR(m.mean, 1, 0.01);
    EXPECT_GT(m.least, 0.8);
    EXPECT_LT(m.most, 1.2);
  }
}

// What a checkpoint has that was quantized with bitsandbytes: real code maps, statistics of the size that its own would have.
TEST(Synthetic, DoubleQuantizedTensorsHaveTheirStatistics) {
  const Format& dq = format("nf4_dq");
  const auto source = make_synthetic_source(9, {{.name = "w", .rows = 512, .cols = 512, .format = &dq}});
  EXPECT_EQ(source->find("w")->type, "nf4_dq");
  EXPECT_EQ(source->find("w.absmax")->type, "u8");
  EXPECT_EQ(source->find("w.nested_absmax")->type, "f32");
  const auto floats = [&](const char* name) {
    const std::vector<std::byte> bytes = whole(*source, name);
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  EXPECT_EQ(floats("w.quant_map").front(), -1.0f);
  EXPECT_EQ(floats("w.quant_map").back(), 1.0f);
  EXPECT_EQ(floats("w.nested_quant_map").size(), 256u);
  EXPECT_THAT(floats("w.nested_offset"), testing::ElementsAre(testing::FloatNear(0.047f, 0.01f)));
  for (const float nested : floats("w.nested_absmax")) {
    EXPECT_GT(nested, 0.001f);
    EXPECT_LT(nested, 0.04f);
  }
}

TEST(Synthetic, WhatIsNotThereIsNotRead) {
  const auto source = make_synthetic_source(1, {{.name = "w", .rows = 2, .cols = 32, .format = &format("bf16")}});
  EXPECT_EQ(source->find("v"), nullptr);
  std::byte out[256];
  EXPECT_THROW(source->read(*source->find("w"), {0, 129}, out), Error);
  EXPECT_THROW(source->read(*source->find("w"), {2, 1}, out), Error);
  EXPECT_NO_THROW(source->read(*source->find("w"), {128, 128}, out));
  EXPECT_THROW(make_synthetic_source(1, {{.name = "w", .rows = 2, .cols = 100, .format = &format("q4_0")}}), Error);
}

// Far below what it does (8 GB/s on one core), so that a busy machine or a sanitizer does not fail it.
TEST(Synthetic, ReadsNearlyAsFastAsMemoryIsCopied) {
  const Format& nf4 = format("nf4");
  const auto source = make_synthetic_source(1, {{.name = "w", .rows = 14336, .cols = 4096, .format = &nf4}});
  const TensorInfo& tensor = *source->find("w");
  std::vector<std::byte> bytes(tensor.bytes);
  source->read(tensor, {0, 64}, bytes.data());  // makes the pool
  double best = INFINITY;
  for (int i = 0; i < 5; ++i) {
    const auto started = std::chrono::steady_clock::now();
    source->read(tensor, {0, tensor.bytes}, bytes.data());
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
  }
  const double rate = static_cast<double>(tensor.bytes) / best / 1e9;
  RecordProperty("gb_per_second", std::to_string(rate));
  EXPECT_GT(rate, 0.5);
}

}  // namespace
}  // namespace tandem
