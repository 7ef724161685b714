#include "kernels/cuda/tile4.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "kernels/formats/nf4.h"
#include "tests/kernels/cuda/device_memory.h"

namespace tandem::cuda {
namespace {

uint16_t bf16_bits(float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
float bf16_value(uint16_t bits) {
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float v;
  std::memcpy(&v, &u, 4);
  return v;
}
uint16_t f16_bits(float v) {
  const _Float16 h = static_cast<_Float16>(v);
  uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}

// A quantized matrix (or a cut of one) as numbers, and as tiles on the device.
struct Matrix {
  const Format* format = nullptr;
  int64_t rows = 0, cols = 0;
  std::vector<float> values;
  std::unique_ptr<DeviceArray<std::byte>> tiles;
  Weight weight() const { return {nullptr, format, const_cast<Matrix*>(this)->tiles->data(), rows, cols}; }
};

struct Device {
  DeviceInfo info = device_info();
  Launch how(bool dependent = false) const { return {nullptr, &info, dependent}; }
};

Matrix make_matrix(const Device& device, const char* name, int64_t rows, int64_t cols, Rectangle part, std::mt19937& random) {
  Matrix m;
  m.format = &format(name);
  m.rows = part.rows(), m.cols = part.cols();
  std::vector<float> source(static_cast<size_t>(rows * cols));
  std::normal_distribution<float> normal(0.0f, 0.05f);
  for (float& v : source) v = normal(random);
  const auto components = m.format->components(rows, cols);
  std::vector<std::vector<std::byte>> stored(components.size());
  std::vector<std::byte*> out;
  for (size_t i = 0; i < components.size(); ++i) {
    stored[i].resize(components[i].bytes);
    out.push_back(stored[i].data());
  }
  m.format->quantize(source.data(), rows, cols, out);
  QuantizedView host, view;
  host.format = view.format = m.format;
  host.rows = view.rows = m.rows, host.cols = view.cols = m.cols;
  host.first_element = view.first_element = part.row_begin * cols + part.col_begin;
  host.whole_cols = view.whole_cols = cols;
  const auto ranges = m.format->ranges(rows, cols, part);
  std::vector<std::vector<std::byte>> cut(components.size());
  std::vector<std::unique_ptr<DeviceArray<std::byte>>> on_device;
  for (size_t i = 0; i < components.size(); ++i) {
    for (const ByteRange& r : ranges[i]) cut[i].insert(cut[i].end(), stored[i].begin() + static_cast<long>(r.begin), stored[i].begin() + static_cast<long>(r.end));
    on_device.push_back(std::make_unique<DeviceArray<std::byte>>(cut[i]));
    host.data[i] = cut[i].data(), view.data[i] = on_device.back()->data();
  }
  m.values.resize(static_cast<size_t>(m.rows * m.cols));
  m.format->dequantize(host, 0, m.rows, m.values.data());
  m.tiles = std::make_unique<DeviceArray<std::byte>>(tile4(*m.format, m.rows, m.cols).bytes);
  tile4_pack(device.how(), view, m.tiles->data());
  check(cudaDeviceSynchronize(), "pack");
  return m;
}
Matrix make_matrix(const Device& device, const char* name, int64_t rows, int64_t cols, std::mt19937& random) {
  return make_matrix(device, name, rows, cols, {0, rows, 0, cols}, random);
}

void expect_widened(const Device& device, const Matrix& m) {
  const int64_t stride = m.cols + 8;
  for (const int64_t row : {int64_t{0}, m.rows > 16 ? int64_t{16} : int64_t{0}}) {
    const int64_t count = row == 0 ? m.rows : std::min<int64_t>(m.rows - row, 21);
    DeviceArray<float> wide(static_cast<size_t>(count * stride));
    DeviceArray<uint16_t> half(wide.size()), brain(wide.size());
    tile4_widen(device.how(), m.weight(), row, count, wide.data(), Element::f32, stride);
    tile4_widen(device.how(), m.weight(), row, count, half.data(), Element::f16, stride);
    tile4_widen(device.how(), m.weight(), row, count, brain.data(), Element::bf16, stride);
    const auto w = wide.host();
    const auto h = half.host(), b = brain.host();
    int64_t wrong = 0;
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = 0; c < stride; ++c) {
        const size_t at = static_cast<size_t>(r * stride + c);
        if (c >= m.cols) {
          wrong += h[at] != 0xffff || b[at] != 0xffff || !std::isnan(w[at]);
          continue;
        }
        const float v = m.values[static_cast<size_t>((row + r) * m.cols + c)];
        wrong += std::memcmp(&v, &w[at], 4) != 0 || f16_bits(v) != h[at] || bf16_bits(v) != b[at];
      }
    }
    EXPECT_EQ(wrong, 0) << m.format->name() << " " << m.rows << " x " << m.cols << " from row " << row;
  }
}

TEST(CudaTile4, WidensToTheBitsOfTheFormat) {
  TANDEM_NEEDS_GPU();
  const Device device;
  std::mt19937 random(1);
  for (const char* name : {"nf4", "nf4_dq", "fp4", "fp4_dq"}) {
    for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{1, 64}, {16, 512}, {17, 576}, {61, 1024}, {15, 1088}, {130, 4096}}) {
      expect_widened(device, make_matrix(device, name, rows, cols, random));
    }
    expect_widened(device, make_matrix(device, name, 40, 4096, {8, 40, 0, 4096}, random));
    expect_widened(device, make_matrix(device, name, 40, 4096, {0, 40, 1024, 2048}, random));
    expect_widened(device, make_matrix(device, name, 40, 2240, {3, 37, 64, 640 + 64}, random));
  }
}


TEST(CudaTile4, RefusesACutThatItsScalesCannotFollow) {
  TANDEM_NEEDS_GPU();
  const Device device;
  std::mt19937 random(2);
  EXPECT_THROW(make_matrix(device, "nf4_dq", 8, 1088, {0, 8, 64, 576}, random), Error);
}

struct Case {
  std::vector<const Matrix*> matrices;
  int64_t rows = 1;
  LinearOutput output = LinearOutput::store;
  Activation activation = Activation::none;
  bool norm = false, pick = false, bias = false, dependent = false;
  float scale = 1, soft_cap = 0;
};

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(0.7978845608 * (x + 0.044715 * x * x * x)));
    case Activation::relu: return std::max(x, 0.0);
    default: return x;
  }
}

void expect_product(const Device& device, const LinearScratch& scratch, const Case& c, std::mt19937& random) {
  const int64_t cols = c.matrices[0]->cols, stride = cols + 8, sources = c.rows + 3;
  std::normal_distribution<float> normal;
  std::vector<float> residual(static_cast<size_t>(sources * stride)), norm_weight(static_cast<size_t>(cols));
  std::vector<uint16_t> values(residual.size());
  for (size_t i = 0; i < residual.size(); ++i) residual[i] = normal(random), values[i] = bf16_bits(residual[i]);
  for (float& v : norm_weight) v = 1 + 0.1f * normal(random);
  std::vector<int32_t> picks(static_cast<size_t>(c.rows));
  for (int64_t i = 0; i < c.rows; ++i) picks[i] = static_cast<int32_t>((i * 7 + 2) % sources);
  const float epsilon = 1e-5f;

  std::vector<double> x(static_cast<size_t>(c.rows * cols));
  for (int64_t i = 0; i < c.rows; ++i) {
    const int64_t from = (c.pick ? picks[i] : i) * stride;
    double squares = 0;
    for (int64_t k = 0; k < cols; ++k) squares += double(residual[from + k]) * residual[from + k];
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(cols) + epsilon);
    for (int64_t k = 0; k < cols; ++k) {
      x[i * cols + k] = bf16_value(c.norm ? bf16_bits(static_cast<float>(residual[from + k] * inverse * norm_weight[k])) : values[from + k]);
    }
  }
  int64_t out_rows = 0;
  std::vector<double> wanted;  // [rows][out_rows]
  std::vector<std::vector<float>> biases;
  for (const Matrix* m : c.matrices) {
    out_rows += m->rows;
    biases.emplace_back(static_cast<size_t>(m->rows));
    for (float& b : biases.back()) b = c.bias ? normal(random) : 0;
  }
  const bool gated = c.output == LinearOutput::gated;
  const int64_t width = gated ? c.matrices[0]->rows : out_rows;
  std::vector<double> sums(static_cast<size_t>(c.rows * out_rows));
  for (int64_t i = 0; i < c.rows; ++i) {
    int64_t at = 0;
    for (size_t n = 0; n < c.matrices.size(); ++n) {
      const Matrix& m = *c.matrices[n];
      for (int64_t r = 0; r < m.rows; ++r, ++at) {
        double sum = biases[n][r];
        const float* w = m.values.data() + r * cols;
        for (int64_t k = 0; k < cols; ++k) sum += w[k] * x[i * cols + k];
        sums[i * out_rows + at] = sum;
      }
    }
  }
  const int64_t y_stride = width + 5;
  std::vector<float> before(static_cast<size_t>(c.rows * y_stride));
  for (float& v : before) v = normal(random);
  const bool floats = c.output == LinearOutput::add_f32 || c.output == LinearOutput::store_f32;
  std::vector<double> expected(static_cast<size_t>(c.rows * width));
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t r = 0; r < width; ++r) {
      double v = sums[i * out_rows + r];
      if (gated) v = activated(c.activation, v) * sums[i * out_rows + width + r];
      if (c.output == LinearOutput::activated) v = activated(c.activation, v);
      if (c.output == LinearOutput::store_f32) v = c.soft_cap > 0 ? c.soft_cap * std::tanh(v * c.scale / c.soft_cap) : v * c.scale;
      if (c.output == LinearOutput::add_f32) v += before[i * y_stride + r];
      expected[i * width + r] = v;
    }
  }

  DeviceArray<float> residual_d(residual), norm_d(norm_weight), y_f32(before.size());
  DeviceArray<uint16_t> values_d(values), y_16(before.size());
  DeviceArray<int32_t> picks_d(picks);
  std::vector<std::unique_ptr<DeviceArray<float>>> biases_d;
  std::vector<BoundProduct> products;
  for (size_t n = 0; n < c.matrices.size(); ++n) {
    biases_d.push_back(std::make_unique<DeviceArray<float>>(biases[n]));
    products.push_back({c.matrices[n]->weight(), c.bias ? biases_d.back()->data() : nullptr});
  }
  LinearCall call;
  call.products = products;
  call.input.stride = stride;
  if (c.norm) {
    call.input.residual = residual_d.data(), call.input.norm_weight = norm_d.data(), call.input.epsilon = epsilon;
  } else {
    call.input.values = values_d.data();
  }
  if (c.pick) call.input.row_of = picks_d.data();
  call.rows = c.rows, call.output = c.output, call.activation = c.activation, call.scale = c.scale, call.soft_cap = c.soft_cap;
  call.y = floats ? static_cast<void*>(y_f32.data()) : y_16.data();
  call.y_stride = y_stride;
  std::vector<float> first;
  for (int run = 0; run < 2; ++run) {  // twice: the same bits, and the scratch must be left as it was found
    y_16.poison(), y_f32.poison();
    if (c.output == LinearOutput::add_f32) check(cudaMemcpy(y_f32.data(), before.data(), y_f32.bytes(), cudaMemcpyHostToDevice), "copy");
    tile4_linear(device.how(c.dependent), call, scratch);
    check(cudaDeviceSynchronize(), "product");
    const auto f = y_f32.host();
    const auto h = y_16.host();
    double error = 0, norm = 0, worst = 0, largest = 0;
    int64_t unwritten = 0, spilled = 0;
    std::vector<float> got;
    for (int64_t i = 0; i < c.rows; ++i) {
      for (int64_t r = 0; r < y_stride; ++r) {
        const size_t at = static_cast<size_t>(i * y_stride + r);
        if (r >= width) {
          spilled += floats ? c.output == LinearOutput::add_f32 ? f[at] != before[at] : !std::isnan(f[at]) : h[at] != 0xffff;
          continue;
        }
        const float v = floats ? f[at] : bf16_value(h[at]);
        got.push_back(v);
        const double e = v - expected[i * width + r];
        unwritten += std::isnan(v);
        error += e * e, norm += expected[i * width + r] * expected[i * width + r];
        worst = std::max(worst, std::fabs(e)), largest = std::max(largest, std::fabs(expected[i * width + r]));
      }
    }
    const auto where = [&] {
      return ::testing::Message() << c.matrices[0]->format->name() << " " << c.matrices.size() << " x " << c.matrices[0]->rows << " x " << cols << ", rows " << c.rows
                                  << ", output " << static_cast<int>(c.output) << ", norm " << c.norm << ", pick " << c.pick << ", run " << run;
    };
    EXPECT_EQ(unwritten, 0) << where();
    EXPECT_EQ(spilled, 0) << where();
    EXPECT_LE(std::sqrt(error / norm), floats ? 3e-3 : 4e-3) << where();
    EXPECT_LE(worst, 0.02 * largest + 0.02) << where();
    if (run == 0) first = got;
    if (run == 1) {
      EXPECT_EQ(std::memcmp(first.data(), got.data(), got.size() * 4), 0) << where();
    }
  }
}

// With the device's own kernels, and with those for devices before Hopper.
class CudaTile4Products : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here";
    device_ = std::make_unique<Device>();
    if (std::string(GetParam()) == "ampere") device_->info.major = 8;
    memory_ = std::make_unique<DeviceArray<std::byte>>(kTile4ScratchBytes);
    check(cudaMemset(memory_->data(), 0, kTile4CounterBytes), "cudaMemset");
  }
  void TearDown() override {
    if (memory_ == nullptr) return;
    std::vector<unsigned char> counters(kTile4CounterBytes);
    check(cudaMemcpy(counters.data(), memory_->data(), counters.size(), cudaMemcpyDeviceToHost), "copy");
    EXPECT_EQ(std::count(counters.begin(), counters.end(), 0), static_cast<long>(counters.size())) << "counters were left";
  }
  void expect(const Case& c) { expect_product(*device_, {memory_->data(), memory_->size()}, c, random_); }
  Matrix matrix(const char* name, int64_t rows, int64_t cols) { return make_matrix(*device_, name, rows, cols, random_); }
  std::mt19937 random_{3};
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceArray<std::byte>> memory_;
};

TEST_P(CudaTile4Products, OfAnyShapeAndNumberOfRows) {
  for (const char* name : {"nf4_dq", "nf4", "fp4_dq"}) {
    for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 64}, {16, 512}, {17, 576}, {50, 1024}, {100, 4096}, {35, 3584}, {48, 14336}, {20, 8192}, {17, 28672}, {23, 16384}, {9001, 512}, {4500, 1536}}) {
      const Matrix m = matrix(name, rows, cols);
      for (const int64_t count : {1, 2, 8, 9, 17, 32, 33, 64}) {
        if (rows * count * cols > 250'000'000) continue;
        expect({.matrices = {&m}, .rows = count});
      }
    }
  }
}

TEST_P(CudaTile4Products, WithEveryInputAndOutput) {
  for (const char* name : {"nf4_dq", "nf4"}) {
    for (const int64_t cols : {512, 576, 2048, 7168}) {
      const Matrix q = matrix(name, 70, cols), k = matrix(name, 33, cols), v = matrix(name, 16, cols), gate = matrix(name, 75, cols), up = matrix(name, 75, cols);
      for (const int64_t rows : {1, 5, 13, 40}) {
        for (const bool norm : {false, true}) {
          const bool pick = (rows + cols) % 3 == 0, bias = norm;
          expect({.matrices = {&q, &k, &v}, .rows = rows, .norm = norm, .pick = pick, .bias = bias});
          expect({.matrices = {&q, &k}, .rows = rows, .norm = norm, .pick = !pick, .bias = bias, .dependent = true});
          expect({.matrices = {&q}, .rows = rows, .output = LinearOutput::add_f32, .norm = norm, .bias = bias});
          expect({.matrices = {&q}, .rows = rows, .output = LinearOutput::store_f32, .norm = norm, .pick = true, .scale = 0.5f, .soft_cap = norm ? 3.0f : 0.0f});
          expect({.matrices = {&gate, &up}, .rows = rows, .output = LinearOutput::gated, .activation = Activation::silu, .norm = norm, .bias = bias});
          expect({.matrices = {&gate, &up}, .rows = rows, .output = LinearOutput::gated, .activation = norm ? Activation::gelu_tanh : Activation::relu});
          expect({.matrices = {&q}, .rows = rows, .output = LinearOutput::activated, .activation = Activation::gelu, .bias = bias});
        }
      }
    }
  }
}

// Experts of which some have no rows; lists as route() writes them.
TEST_P(CudaTile4Products, OfExperts) {
  struct Shape { int64_t hidden, ffn; int32_t experts, top_k; std::vector<int64_t> rows; };
  for (const char* name : {"nf4_dq", "nf4"}) {
    for (const Shape& s : {Shape{512, 1024, 4, 2, {1, 2, 3, 8, 13, 40}}, Shape{1088, 72 * 64, 3, 1, {1, 4, 5, 9, 64}}, Shape{64, 14336, 5, 2, {1, 2, 7, 20}}}) {
      std::vector<Matrix> gate, up, down;
      for (int32_t e = 0; e < s.experts; ++e) {
        gate.push_back(matrix(name, s.ffn, s.hidden)), up.push_back(matrix(name, s.ffn, s.hidden)), down.push_back(matrix(name, s.hidden, s.ffn));
      }
      const auto pointers = [](const std::vector<Matrix>& list) {
        std::vector<const std::byte*> data;
        for (const Matrix& m : list) data.push_back(m.tiles->data());
        return data;
      };
      DeviceArray<const std::byte*> gate_d(pointers(gate)), up_d(pointers(up)), down_d(pointers(down));
      for (const int64_t rows : s.rows) {
        std::vector<std::vector<int32_t>> rows_of(static_cast<size_t>(s.experts));
        for (int32_t row = 0; row < rows; ++row) {
          const int32_t first = static_cast<int32_t>(random_() % 3 == 0 ? s.experts - 1 : random_() % static_cast<uint32_t>(s.experts));
          for (int32_t k = 0; k < s.top_k; ++k) rows_of[static_cast<size_t>((first + k) % s.experts)].push_back(row);
        }
        std::vector<int32_t> begin{0}, row_of;
        for (const auto& list : rows_of) {
          row_of.insert(row_of.end(), list.begin(), list.end());
          begin.push_back(static_cast<int32_t>(row_of.size()));
        }
        std::normal_distribution<float> normal;
        std::vector<uint16_t> h(static_cast<size_t>(rows * s.hidden));
        for (uint16_t& v : h) v = bf16_bits(normal(random_));
        const int64_t pairs = rows * s.top_k;
        DeviceArray<int32_t> begin_d(begin), row_of_d(row_of);
        DeviceArray<uint16_t> h_d(h), gated(static_cast<size_t>(pairs * s.ffn));
        DeviceArray<float> results(static_cast<size_t>(pairs * s.hidden));
        ExpertCall call;
        call.gate = {gate[0].weight(), gate_d.data()}, call.up = {up[0].weight(), up_d.data()}, call.down = {down[0].weight(), down_d.data()};
        call.h = h_d.data(), call.rows = rows, call.hidden = s.hidden, call.ffn = s.ffn, call.local_experts = s.experts, call.top_k = s.top_k;
        call.lists.begin = begin_d.data(), call.lists.row_of = row_of_d.data();
        call.gated = gated.data(), call.results = results.data();
        tile4_experts(device_->how(true), call, {memory_->data(), memory_->size()});
        const auto got_gated = gated.host();
        const auto got = results.host();
        double gated_error = 0, gated_norm = 0, error = 0, norm = 0;
        for (int32_t e = 0; e < s.experts; ++e) {
          for (int32_t pair = begin[e]; pair < begin[e + 1]; ++pair) {
            const uint16_t* const x = h.data() + row_of[pair] * s.hidden;
            for (int64_t r = 0; r < s.ffn; ++r) {
              double a = 0, b = 0;
              for (int64_t k = 0; k < s.hidden; ++k) {
                a += double(gate[e].values[r * s.hidden + k]) * bf16_value(x[k]), b += double(up[e].values[r * s.hidden + k]) * bf16_value(x[k]);
              }
              const double wanted = activated(Activation::silu, a) * b, difference = bf16_value(got_gated[pair * s.ffn + r]) - wanted;
              gated_error += difference * difference, gated_norm += wanted * wanted;
            }
            for (int64_t r = 0; r < s.hidden; ++r) {
              double wanted = 0;
              for (int64_t k = 0; k < s.ffn; ++k) wanted += double(down[e].values[r * s.ffn + k]) * bf16_value(got_gated[pair * s.ffn + k]);
              const double difference = got[pair * s.hidden + r] - wanted;
              error += difference * difference, norm += wanted * wanted;
            }
          }
        }
        EXPECT_LE(std::sqrt(gated_error / gated_norm), 5e-3) << name << " " << s.hidden << " x " << s.ffn << ", rows " << rows;
        EXPECT_LE(std::sqrt(error / norm), 3e-3) << name << " " << s.hidden << " x " << s.ffn << ", rows " << rows;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(On, CudaTile4Products, testing::Values("native", "ampere"), [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem::cuda
