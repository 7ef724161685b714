// Every kernel against double loops over dequantized weights: awkward sizes, poisoned outputs, company, cuts, look-ups.
#include "kernels/cpu/linear.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "kernels/base/error.h"
#include "kernels/formats/nf4.h"
#include "tests/support/tolerance.h"

namespace tandem::cpu {
namespace {

constexpr float kSentinel = 1234.5f;
constexpr unsigned kSeed = 20240607;

struct Aligned {
  explicit Aligned(size_t bytes) : bytes(bytes), data(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64))) {
    std::memset(data, 0xa5, (bytes + 127) / 64 * 64);  // what pack forgets is seen
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  size_t bytes;
  std::byte* data;
};

struct Matrix {
  int64_t rows, cols;
  std::vector<std::vector<std::byte>> stored;
  QuantizedView view;
  std::vector<float> values;  // dequantized
};

// Random weights; formats that cannot be made from floats get random blocks with small scales.
Matrix make_matrix(const Format& format, int64_t rows, int64_t cols, std::mt19937& random) {
  Matrix m{rows, cols};
  m.view = {&format, rows, cols};
  for (const Component& c : format.components(rows, cols)) m.stored.emplace_back(c.bytes);
  std::vector<float> source(static_cast<size_t>(rows * cols));
  std::normal_distribution<float> normal;
  for (float& v : source) v = normal(random);
  std::vector<std::byte*> out;
  for (auto& s : m.stored) out.push_back(s.data());
  try {
    format.quantize(source.data(), rows, cols, out);
  } catch (const Error&) {
    for (auto& b : m.stored[0]) b = static_cast<std::byte>(random());
    const auto halves = [&](size_t at) {  // an fp16 between 2^-9 and 2^-6
      for (size_t i = at; i < m.stored[0].size(); i += m.stored[0].size() / static_cast<size_t>(rows * cols / format.block())) {
        m.stored[0][i] = static_cast<std::byte>(random());
        m.stored[0][i + 1] = static_cast<std::byte>(0x18 + random() % 12);
      }
    };
    const auto name = format.name();
    if (name == "q6_k") {
      halves(208);
    } else if (name == "q3_k") {
      halves(108);
    } else if (name == "q2_k") {
      halves(80), halves(82);
    } else {
      halves(0);
      if (name == "q4_k" || name == "q5_k" || name == "q5_1") halves(2);
    }
  }
  for (size_t i = 0; i < m.stored.size(); ++i) m.view.data[i] = m.stored[i].data();
  m.values.resize(static_cast<size_t>(rows * cols));
  format.dequantize(m.view, 0, rows, m.values.data());
  return m;
}

std::unique_ptr<Aligned> pack(const LinearKernel& kernel, const Matrix& m) {
  const auto bytes = kernel.resident(*m.view.format, m.rows, m.cols);
  auto resident = std::make_unique<Aligned>(bytes.weights + bytes.scales);
  const int64_t tiles = (m.rows + kernel.row_tile - 1) / kernel.row_tile;
  // From the last tile to the first, one at a time: no tile depends on another.
  for (int64_t t = tiles; t-- > 0;) kernel.pack(m.view, t, t + 1, resident->data);
  for (size_t i = bytes.weights + bytes.scales; i < (resident->bytes + 127) / 64 * 64; ++i) {
    EXPECT_EQ(resident->data[i], std::byte{0xa5}) << "pack wrote past its end";
  }
  return resident;
}

struct Activation {
  std::vector<float> values;  // [tokens, stride]
  int64_t stride;
  std::vector<Int8Block> blocks;
  Input input;
};
Activation make_activation(int64_t tokens, int64_t cols, const Features& features, std::mt19937& random) {
  Activation a;
  a.stride = cols + 5;
  a.values.assign(static_cast<size_t>(tokens * a.stride), std::numeric_limits<float>::quiet_NaN());  // what lies between rows is not read
  std::normal_distribution<float> normal;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < cols; ++k) a.values[t * a.stride + k] = normal(random) * (k % 37 == 5 ? 20.0f : 1.0f);
  }
  a.blocks.resize(static_cast<size_t>(tokens * int8_blocks(cols)));
  quantize_rows(a.values.data(), a.stride, cols, 0, tokens, a.blocks.data(), features);
  a.input.values = a.values.data();
  a.input.stride = a.stride;
  a.input.int8 = {a.blocks.data(), int8_blocks(cols)};
  return a;
}
double activation_at(const LinearKernel& kernel, const Activation& a, int64_t t, int64_t k) {
  if (kernel.activations == Activations::fp32) return a.values[t * a.stride + k];
  const Int8Block& b = a.blocks[t * a.input.int8.stride + k / 32];
  return static_cast<double>(b.scale) * b.codes[k % 32];
}
Input from_token(const Input& in, int64_t token) {
  Input i = in;
  i.values += token * in.stride;
  i.int8.blocks += token * in.int8.stride;
  return i;
}

std::vector<const Format*> formats_of(const LinearKernel& kernel) {
  if (kernel.format == "nf4") return {&format("nf4"), &format("nf4:128")};
  if (kernel.format == "fp8") return {&format("fp8"), &format("fp8:128")};
  if (kernel.format == "int4" || kernel.format == "int8_group") {
    const std::string name(kernel.format);
    return {&format(name), &format(name + ":32"), &format(name + ":row")};
  }
  if (!kernel.format.empty()) return {&format(kernel.format)};
  return {&format("q5_1"), &format("q4_0"), &format("nf4_dq"), &format("q3_k")};
}

std::vector<Features> machines() {
  const Features all = detect_features();
  std::vector<Features> list = {{}};
  if (all.avx2) list.push_back({.avx2 = true});
  if (all.avx512_vnni) list.push_back(all);
  return list;
}

class Linear : public testing::Test {
 protected:
  void SetUp() override { RecordProperty("seed", kSeed), std::printf("seed %u\n", kSeed); }
};

void compare(const LinearKernel& kernel, const Format& format, int64_t rows, int64_t cols, const Features& features, std::mt19937& random) {
  SCOPED_TRACE(std::string(kernel.name) + " " + std::string(format.name()) + " " + std::to_string(rows) + "x" + std::to_string(cols));
  const Matrix m = make_matrix(format, rows, cols, random);
  const auto resident = pack(kernel, m);
  const int64_t tiles = (rows + kernel.row_tile - 1) / kernel.row_tile;
  const Activation x = make_activation(33, cols, features, random);
  const double tolerance = kernel.activations == Activations::fp32 ? test::kLinearFp32 : test::kLinearInt8;
  const int64_t y_stride = rows + 3;
  std::vector<float> alone(static_cast<size_t>(33 * rows));
  for (int64_t t = 0; t < 33; ++t) {
    std::vector<float> y(static_cast<size_t>(rows + 2), kSentinel);
    std::fill_n(y.begin() + 1, rows, std::nanf(""));
    for (int64_t tile = tiles; tile-- > 0;) {
      kernel.multiply(resident->data, rows, cols, from_token(x.input, t), 1, tile, tile + 1, y.data() + 1, rows);
    }
    ASSERT_EQ(y.front(), kSentinel);
    ASSERT_EQ(y.back(), kSentinel);
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < cols; ++k) {
        const double product = m.values[r * cols + k] * activation_at(kernel, x, t, k);
        sum += product;
        size += std::fabs(product);
      }
      ASSERT_NEAR(y[1 + r], sum, tolerance * size + 1e-30) << "row " << r << " token " << t;
      alone[t * rows + r] = y[1 + r];
    }
  }
  for (const int64_t tokens : {2, 3, 5, 7, 8, 9, 33}) {
    std::vector<float> y(static_cast<size_t>(tokens * y_stride + 2), kSentinel);
    for (int64_t t = 0; t < tokens; ++t) std::fill_n(y.begin() + 1 + t * y_stride, rows, std::nanf(""));
    const int64_t middle = static_cast<int64_t>(random() % static_cast<unsigned>(tiles + 1));
    kernel.multiply(resident->data, rows, cols, x.input, tokens, 0, middle, y.data() + 1, y_stride);
    kernel.multiply(resident->data, rows, cols, x.input, tokens, middle, tiles, y.data() + 1, y_stride);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t r = 0; r < rows; ++r) {
        ASSERT_EQ(std::bit_cast<uint32_t>(y[1 + t * y_stride + r]), std::bit_cast<uint32_t>(alone[t * rows + r]))
            << "row " << r << ", token " << t << " of " << tokens;
      }
      for (int64_t r = rows; r < y_stride; ++r) ASSERT_EQ(y[1 + t * y_stride + r], kSentinel);
    }
    ASSERT_EQ(y.front(), kSentinel);
    ASSERT_EQ(y.back(), kSentinel);
  }
  // Look-ups: dequantize's numbers, which are the numbers that multiply uses.
  std::vector<float> row(static_cast<size_t>(cols + 2), kSentinel);
  for (int64_t r = 0; r < rows; ++r) {
    kernel.row(resident->data, rows, cols, r, row.data() + 1);
    ASSERT_EQ(std::memcmp(row.data() + 1, m.values.data() + r * cols, static_cast<size_t>(cols) * 4), 0) << "row " << r;
  }
  ASSERT_EQ(row.front(), kSentinel);
  ASSERT_EQ(row.back(), kSentinel);
  if (kernel.activations != Activations::fp32) return;
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t k = static_cast<int64_t>(random() % static_cast<unsigned>(cols));
    std::vector<float> unit(static_cast<size_t>(cols), 0.0f), y(static_cast<size_t>(rows));
    unit[k] = 1;
    Input in;
    in.values = unit.data();
    in.stride = cols;
    kernel.multiply(resident->data, rows, cols, in, 1, 0, tiles, y.data(), rows);
    for (int64_t r = 0; r < rows; ++r) ASSERT_EQ(y[r], m.values[r * cols + k]) << "row " << r << " column " << k;
  }
}

TEST_F(Linear, EveryKernelAgainstTheOracleAndItself) {
  std::mt19937 random(kSeed);
  for (const Features& features : machines()) {
    for (const LinearKernel* kernel : linear_kernels(features)) {
      for (const Format* format : formats_of(*kernel)) {
        const int64_t block = format->block();
        std::vector<int64_t> widths = {block, 3 * block, 4 * block, 18 * 32};
        if (block == 1) widths = {1, 2, 31, 32, 33, 67, 130};
        if (block == 64) widths.insert(widths.end(), {8, 24, 40, 96, 5, 33, 250});
        for (const int64_t cols : widths) {
          if (block > 64 && cols % block != 0) continue;
          for (const int64_t rows : {1, 15, 16, 17, 37}) {
            if (rows == 37 && cols != widths[1]) continue;
            compare(*kernel, *format, rows, cols, features, random);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(Linear, LongRows) {
  std::mt19937 random(kSeed + 1);
  for (const Features& features : machines()) {
    for (const LinearKernel* kernel : linear_kernels(features)) {
      for (const Format* format : formats_of(*kernel)) compare(*kernel, *format, 17, 5120, features, random);
    }
  }
}

TEST_F(Linear, InstructionSetsAgreeBitForBit) {
  std::mt19937 random(kSeed + 2);
  const auto all = linear_kernels(detect_features());
  for (const LinearKernel* one : all) {
    for (const LinearKernel* two : all) {
      if (one >= two || one->format != two->format || one->format.empty() || one->activations != two->activations) continue;
      SCOPED_TRACE(std::string(one->name) + " and " + two->name);
      const Matrix m = make_matrix(format(one->format), 37, 768, random);
      const auto r1 = pack(*one, m), r2 = pack(*two, m);
      const Activation x = make_activation(11, 768, detect_features(), random);
      std::vector<float> y1(11 * 37), y2(11 * 37);
      one->multiply(r1->data, 37, 768, x.input, 11, 0, 3, y1.data(), 37);
      two->multiply(r2->data, 37, 768, x.input, 11, 0, 3, y2.data(), 37);
      EXPECT_EQ(std::memcmp(y1.data(), y2.data(), y1.size() * 4), 0);
    }
  }
}

// Slices of a double-quantized matrix find their own statistics, wherever they are cut.
TEST_F(Linear, SlicesOfNestedFormats) {
  std::mt19937 random(kSeed + 3);
  const Format& nested = format("nf4_dq");
  constexpr int64_t kRows = 70, kCols = 20480;  // a row crosses nested blocks (16384 elements)
  const Matrix whole = make_matrix(nested, kRows, kCols, random);
  for (const Rectangle part : {Rectangle{0, 70, 0, kCols}, {33, 60, 0, kCols}, {5, 40, 64 * 100, 64 * 319}, {69, 70, 64, 128}}) {
    Matrix m{part.rows(), part.cols()};
    m.view = {&nested, part.rows(), part.cols()};
    m.view.first_element = part.row_begin * kCols + part.col_begin;
    m.view.whole_cols = kCols;
    const auto ranges = nested.ranges(kRows, kCols, part);
    for (size_t i = 0; i < ranges.size(); ++i) {
      auto& to = m.stored.emplace_back();
      for (const ByteRange& r : ranges[i]) {
        to.insert(to.end(), whole.stored[i].begin() + static_cast<int64_t>(r.begin), whole.stored[i].begin() + static_cast<int64_t>(r.end));
      }
    }
    for (size_t i = 0; i < m.stored.size(); ++i) m.view.data[i] = m.stored[i].data();
    for (const Features& features : machines()) {
      const LinearKernel& kernel = choose_linear(nested, Activations::fp32, features);
      const auto resident = pack(kernel, m);
      std::vector<float> row(static_cast<size_t>(m.cols));
      for (int64_t r = 0; r < m.rows; ++r) {
        kernel.row(resident->data, m.rows, m.cols, r, row.data());
        ASSERT_EQ(std::memcmp(row.data(), whole.values.data() + (part.row_begin + r) * kCols + part.col_begin, row.size() * 4), 0) << r;
      }
      for (const int64_t k : {int64_t{0}, m.cols / 2, m.cols - 1}) {
        std::vector<float> unit(static_cast<size_t>(m.cols), 0.0f), y(static_cast<size_t>(m.rows));
        unit[k] = 1;
        Input in;
        in.values = unit.data();
        in.stride = m.cols;
        kernel.multiply(resident->data, m.rows, m.cols, in, 1, 0, (m.rows + kernel.row_tile - 1) / kernel.row_tile, y.data(), m.rows);
        for (int64_t r = 0; r < m.rows; ++r) ASSERT_EQ(y[r], whole.values[(part.row_begin + r) * kCols + part.col_begin + k]);
      }
    }
  }
}

// E4M3 has codes that are no numbers: a product with one is none.
TEST_F(Linear, Fp8KeepsWhatIsNotANumberInSight) {
  std::mt19937 random(kSeed + 5);
  for (const char* name : {"fp8", "fp8_tensor", "fp8:128"}) {
    Matrix m = make_matrix(format(name), 3, 260, random);
    m.stored[0][260 + 130] = std::byte{0xff};
    for (const Features& features : machines()) {
      const LinearKernel& kernel = choose_linear(format(name), Activations::fp32, features);
      const auto resident = pack(kernel, m);
      const Activation x = make_activation(1, 260, features, random);
      float y[3];
      kernel.multiply(resident->data, 3, 260, x.input, 1, 0, 1, y, 3);
      EXPECT_FALSE(std::isnan(y[0]));
      EXPECT_TRUE(std::isnan(y[1])) << kernel.name;
    }
  }
}

TEST_F(Linear, ChoosesByFormatActivationAndProcessor) {
  EXPECT_STREQ(choose_linear(format("q4_1"), Activations::int8, {}).name, "any_fp32_oracle");
  EXPECT_STREQ(choose_linear(format("q4_1"), Activations::int8, {.avx2 = true}).name, "q4_1_int8_avx2");
  EXPECT_EQ(choose_linear(format("nf4"), Activations::int8, detect_features()).activations, Activations::fp32);
  if (detect_features().avx512_vnni) {
    EXPECT_STREQ(choose_linear(format("q6_k"), Activations::int8, detect_features()).name, "q6_k_int8_avx512vnni");
    EXPECT_STREQ(choose_linear(format("q5_1"), Activations::int8, detect_features()).name, "any_fp32_avx512vnni");
  }
}

TEST_F(Linear, ResidentBytesAreStoredBytesWhereRowsAndColumnsFillTiles) {
  for (const char* name : {"q4_0", "q4_1", "q8_0", "q4_k", "fp32", "bf16", "fp16"}) {
    const auto b = choose_linear(format(name), Activations::fp32, {.avx2 = true}).resident(format(name), 576, 1536);
    EXPECT_EQ(b.weights + b.scales, stored_bytes(format(name), 576, 1536)) << name;
  }
  const auto int8 = choose_linear(format("int8"), Activations::int8, {.avx2 = true}).resident(format("int8"), 576, 1536);
  EXPECT_EQ(int8.weights, 576u * 1536);
  EXPECT_EQ(int8.scales, 576u * 4);
  const auto nf4 = choose_linear(format("nf4"), Activations::fp32, {.avx2 = true}).resident(format("nf4"), 4096, 4096);
  EXPECT_EQ(nf4.weights, 4096u * 4096 / 2);
  EXPECT_EQ(nf4.scales, 4096u * 4096 / 16 + 128);
  const auto dq = choose_linear(format("nf4_dq"), Activations::fp32, {.avx2 = true}).resident(format("nf4_dq"), 4096, 4096);
  EXPECT_LT(static_cast<double>(dq.weights + dq.scales), 1.01 * static_cast<double>(stored_bytes(format("nf4_dq"), 4096, 4096)));
}

TEST_F(Linear, QuantizedActivations) {
  std::mt19937 random(kSeed + 4);
  for (const int64_t cols : {1, 31, 32, 33, 64, 200}) {
    std::vector<float> x(static_cast<size_t>(cols));
    for (const float magnitude : {1.0f, 1e-42f, 1e-36f, 1e30f, 3.3e38f, 0.0f}) {
      std::uniform_real_distribution<float> uniform(-1, 1);
      for (float& v : x) v = uniform(random) * magnitude;
      std::vector<Int8Block> plain(static_cast<size_t>(int8_blocks(cols))), fast(plain.size());
      quantize_rows(x.data(), cols, cols, 0, 1, plain.data(), {});
      for (const Features& features : machines()) {
        std::memset(fast.data(), 0x77, fast.size() * sizeof(Int8Block));
        quantize_rows(x.data(), cols, cols, 0, 1, fast.data(), features);
        ASSERT_EQ(std::memcmp(plain.data(), fast.data(), plain.size() * sizeof(Int8Block)), 0) << cols << " " << magnitude;
      }
      for (int64_t k = 0; k < cols; ++k) {
        const Int8Block& b = plain[k / 32];
        if (magnitude < 1e-35f) continue;  // flushed to zero
        EXPECT_NEAR(b.codes[k % 32] * static_cast<double>(b.scale), x[k], b.scale * 0.501);
      }
      for (size_t i = 0; i < plain.size(); ++i) {
        int sums[2] = {0, 0};
        for (int j = 0; j < 32; ++j) sums[j / 16] += plain[i].codes[j];
        EXPECT_EQ(plain[i].offset[0], -8 * sums[0]);
        EXPECT_EQ(plain[i].offset[1], -8 * sums[1]);
        EXPECT_EQ(plain[i].sum, plain[i].scale * static_cast<float>(sums[0] + sums[1]));
      }
    }
    for (const float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {  // must reach the product
      x[cols / 2] = odd;
      for (const Features& features : machines()) {
        std::vector<Int8Block> b(static_cast<size_t>(int8_blocks(cols)));
        quantize_rows(x.data(), cols, cols, 0, 1, b.data(), features);
        EXPECT_TRUE(std::isnan(b[cols / 2 / 32].scale));
        EXPECT_TRUE(std::isnan(b[cols / 2 / 32].sum));
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
