#include "kernels/cuda/dense_linear.h"

#include <cmath>
#include <memory>
#include <random>

#include "kernels/base/error.h"
#include "tests/kernels/cuda/device_memory.h"
#include "tests/kernels/cuda/elements.h"

namespace tandem::cuda {
namespace {

struct Device {
  DeviceInfo info = device_info();
  Launch how(bool dependent) const { return {nullptr, &info, dependent}; }
};

// A dense weight: numbers as its type holds them, and the resident bytes.
struct Matrix {
  Resident resident;
  int64_t rows = 0, cols = 0;
  std::vector<float> values;
  std::unique_ptr<DeviceArray<std::byte>> memory;
  Weight weight() const { return {&resident, nullptr, memory->data(), rows, cols}; }
};

Matrix make_matrix(Element element, int64_t rows, int64_t cols, std::mt19937& random) {
  Matrix m;
  m.resident = {"dense", Kind::dense, element, false};
  m.rows = rows, m.cols = cols;
  m.values = random_values(rows * cols, element, random);
  m.memory = std::make_unique<DeviceArray<std::byte>>(encoded(m.values, rows, cols, dense_stride(cols), element, 0.0f));
  return m;
}

struct Case {
  Element element = Element::bf16;
  std::vector<int64_t> heights;
  int64_t cols = 0, rows = 1;
  LinearOutput output = LinearOutput::store;
  Activation activation = Activation::none;
  bool norm = false, pick = false, bias = false, dependent = false, odd_stride = false;
  float scale = 1, soft_cap = 0;
};

double reference_activation(Activation activation, double x) {
  switch (activation) {
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(0.7978845608 * (x + 0.044715 * x * x * x)));
    case Activation::relu: return std::max(x, 0.0);
    default: return x;
  }
}

void expect_product(const Device& device, const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Matrix> matrices;
  int64_t width = 0;
  std::vector<std::unique_ptr<DeviceArray<float>>> biases;
  std::vector<std::vector<float>> bias_values;
  std::vector<BoundProduct> products;
  for (const int64_t height : c.heights) {
    matrices.push_back(make_matrix(c.element, height, c.cols, random));
    bias_values.push_back(c.bias ? random_values(height, Element::f32, random) : std::vector<float>(static_cast<size_t>(height)));
    biases.push_back(std::make_unique<DeviceArray<float>>(bias_values.back()));
  }
  for (size_t i = 0; i < matrices.size(); ++i) products.push_back({matrices[i].weight(), c.bias ? biases[i]->data() : nullptr});
  const bool gated = c.output == LinearOutput::gated;
  for (const int64_t height : c.heights) width += height;
  if (gated) width /= 2;

  // Rows to multiply: values, or the norm of a residual stream; more rows than are used when they are picked.
  const int64_t source_rows = c.pick ? c.rows + 5 : c.rows, stride = dense_stride(c.cols) + (c.odd_stride ? 3 : 8);
  const Element kept = c.norm ? Element::f32 : c.element;
  const std::vector<float> source = random_values(source_rows * c.cols, kept, random), norm = random_values(c.cols, Element::f32, random);
  std::vector<int32_t> row_of;
  for (int64_t i = 0; i < c.rows; ++i) row_of.push_back(static_cast<int32_t>(c.pick ? (i * 7 + 3) % source_rows : i));
  DeviceArray<std::byte> x(encoded(source, source_rows, c.cols, stride, kept, NAN));
  DeviceArray<float> norm_weight(norm);
  DeviceArray<int32_t> picks(row_of);
  const bool wide = c.output == LinearOutput::store_f32 || c.output == LinearOutput::add_f32;
  const Element out = wide ? Element::f32 : c.element;
  const int64_t y_stride = width + 5;
  std::vector<float> before(static_cast<size_t>(c.rows * y_stride), NAN);
  if (c.output == LinearOutput::add_f32) {
    for (float& v : before) v = std::normal_distribution<float>()(random);
  }
  DeviceArray<std::byte> y(encoded(before, c.rows, y_stride, y_stride, out, NAN));
  DeviceArray<std::byte> scratch(linear_scratch_bytes(width));
  scratch.zero();

  LinearCall call;
  call.products = products;
  if (c.norm) {
    call.input.residual = reinterpret_cast<const float*>(x.data()), call.input.norm_weight = norm_weight.data(), call.input.epsilon = 1e-5f;
  } else {
    call.input.values = x.data();
  }
  call.input.element = c.element, call.input.stride = stride;
  if (c.pick) call.input.row_of = picks.data();
  call.rows = c.rows, call.output = c.output, call.activation = c.activation, call.scale = c.scale, call.soft_cap = c.soft_cap;
  call.y = y.data(), call.y_stride = y_stride;
  linear(device.how(c.dependent), call, {scratch.data(), scratch.bytes()});
  const auto first = y.host();
  if (c.output != LinearOutput::add_f32) {  // again, after others: the same bits
    linear(device.how(true), call, {scratch.data(), scratch.bytes()});
    EXPECT_EQ(first, y.host());
  }
  const std::vector<float> got = decoded(first, c.rows * y_stride, out);

  const double unit = unit_of(c.element), out_unit = unit_of(out);
  int64_t wrong = 0;
  double worst = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    const float* s = source.data() + row_of[static_cast<size_t>(row)] * c.cols;
    std::vector<float> rows(s, s + c.cols);
    if (c.norm) {
      double squares = 0;
      for (const float v : rows) squares += static_cast<double>(v) * v;
      const float inverse = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(c.cols) + 1e-5));
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = rounded(rows[i] * inverse * norm[i], c.element);
    }
    int64_t at = row * y_stride;
    const auto sum = [&](size_t product, int64_t i, double& error) {
      const float* w = matrices[product].values.data() + i * c.cols;
      double value = 0, size = 0, most = 0;
      for (int64_t k = 0; k < c.cols; ++k) {
        const double v = static_cast<double>(w[k]) * rows[static_cast<size_t>(k)];
        value += v, size += std::abs(v), most = std::max(most, std::abs(v));
      }
      error = 2e-6 * size + (c.norm ? 4 * unit * most : 0) + 1e-6;  // a norm's rounding may fall the other way
      return value + bias_values[product][static_cast<size_t>(i)];
    };
    for (size_t product = 0; product < (gated ? 1 : matrices.size()); ++product) {
      for (int64_t i = 0; i < matrices[product].rows; ++i, ++at) {
        double error = 0, value = sum(product, i, error);
        if (gated) {
          double up_error = 0;
          const double up = sum(1, i, up_error), active = reference_activation(c.activation, value);
          error = 1.2 * error * std::abs(up) + std::abs(active) * up_error + 2e-6 * std::abs(active * up);
          value = active * up;
        } else if (c.output == LinearOutput::activated) {
          value = reference_activation(c.activation, value), error = 1.2 * error + 2e-6 * std::abs(value);
        } else if (c.output == LinearOutput::store_f32) {
          value *= c.scale, error *= c.scale;
          if (c.soft_cap > 0) value = c.soft_cap * std::tanh(value / c.soft_cap), error += 2e-6 * c.soft_cap;
        } else if (c.output == LinearOutput::add_f32) {
          value += before[static_cast<size_t>(at)];
        }
        const double off = std::abs(got[static_cast<size_t>(at)] - value), allowed = error + out_unit * std::abs(value);
        if (!(off <= allowed)) ++wrong;
        worst = std::max(worst, std::isnan(off) ? 1e30 : off / allowed);
      }
    }
    for (; at < (row + 1) * y_stride; ++at) {  // between rows: untouched
      const float v = got[static_cast<size_t>(at)], was = before[static_cast<size_t>(at)];
      wrong += c.output == LinearOutput::add_f32 ? v != was : !std::isnan(v);
    }
  }
  EXPECT_EQ(wrong, 0) << "seed " << seed << " element " << static_cast<int>(c.element) << " heights " << c.heights[0] << " x" << c.heights.size() << " cols " << c.cols
                      << " rows " << c.rows << " output " << static_cast<int>(c.output) << " norm " << c.norm << " pick " << c.pick << " odd " << c.odd_stride
                      << " worst " << worst;
}

constexpr Element kElements[] = {Element::f32, Element::bf16, Element::f16};

TEST(CudaDenseLinear, EveryNumberOfRowsAtAwkwardShapes) {
  TANDEM_NEEDS_GPU();
  const Device device;
  unsigned seed = 100;
  for (const Element element : kElements) {
    for (const auto& [height, cols] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {15, 8}, {16, 64}, {17, 100}, {33, 131}, {61, 1024}, {97, 576}, {8, 4096}}) {
      for (const int64_t rows : {1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 64}) {
        Case c;
        c.element = element, c.heights = {height}, c.cols = cols, c.rows = rows;
        c.dependent = seed % 2 == 0, c.odd_stride = seed % 3 == 0, c.pick = seed % 5 == 0, c.bias = seed % 7 == 0;
        expect_product(device, c, seed++);
      }
    }
  }
}

TEST(CudaDenseLinear, WhatComesBeforeAndAfter) {
  TANDEM_NEEDS_GPU();
  const Device device;
  unsigned seed = 1000;
  for (const Element element : kElements) {
    for (const int64_t rows : {1, 2, 5, 11, 29, 40}) {
      for (const bool norm : {false, true}) {
        for (const int64_t cols : {200, 203, 1024}) {
          Case c;
          c.element = element, c.cols = cols, c.rows = rows, c.norm = norm, c.bias = true;
          c.pick = seed % 2 == 0;
          c.heights = {50, 16, 33};
          expect_product(device, c, seed++);
          c.heights = {70};
          c.output = LinearOutput::add_f32;
          expect_product(device, c, seed++);
          c.output = LinearOutput::store_f32, c.scale = 0.5f, c.soft_cap = 3;
          expect_product(device, c, seed++);
          for (const Activation a : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
            c.activation = a, c.heights = {41}, c.output = LinearOutput::activated;
            expect_product(device, c, seed++);
            c.heights = {41, 41}, c.output = LinearOutput::gated;
            expect_product(device, c, seed++);
          }
        }
      }
    }
  }
}

// Blocks that go through several tiles, activations that stream, both products of a gate, norms of wide rows.
TEST(CudaDenseLinear, LargeShapes) {
  TANDEM_NEEDS_GPU();
  const Device device;
  struct Shape { std::vector<int64_t> heights; int64_t cols, rows; LinearOutput output; bool norm; };
  unsigned seed = 5000;
  const Shape shapes[] = {{{9001}, 264, 1, LinearOutput::store_f32, true},
                          {{9001}, 520, 8, LinearOutput::store, false},
                          {{9001}, 264, 13, LinearOutput::store_f32, true},
                          {{36013}, 264, 33, LinearOutput::store_f32, false},
                          {{36013}, 136, 64, LinearOutput::store, true},
                          {{70001}, 136, 27, LinearOutput::store_f32, false},
                          {{40}, 14336, 1, LinearOutput::add_f32, false},
                          {{40}, 14336, 8, LinearOutput::add_f32, false},
                          {{5003}, 14336, 8, LinearOutput::add_f32, false},
                          {{40}, 14336, 15, LinearOutput::add_f32, true},
                          {{41}, 14344, 16, LinearOutput::store_f32, false},
                          {{41}, 28676, 7, LinearOutput::store_f32, false},
                          {{2100}, 4104, 64, LinearOutput::store, false},
                          {{3005}, 4096, 20, LinearOutput::store, false},
                          {{5000, 5000}, 520, 2, LinearOutput::gated, true},
                          {{5000, 5000}, 520, 16, LinearOutput::gated, false},
                          {{5000, 5000}, 520, 64, LinearOutput::gated, true},
                          {{1030, 260, 260}, 2056, 1, LinearOutput::store, true},
                          {{1030, 260, 260}, 2056, 9, LinearOutput::store, true}};
  for (const Shape& s : shapes) {
    Case c;
    c.element = seed % 3 == 0 ? Element::f16 : Element::bf16;
    c.heights = s.heights, c.cols = s.cols, c.rows = s.rows, c.output = s.output, c.norm = s.norm;
    c.activation = s.output == LinearOutput::gated ? Activation::silu : Activation::none;
    c.dependent = true, c.bias = seed % 2 == 0;
    expect_product(device, c, seed++);
  }
}

TEST(CudaDenseLinear, RefusesWhatItCannotMultiply) {
  TANDEM_NEEDS_GPU();
  const Device device;
  std::mt19937 random(3);
  const Matrix a = make_matrix(Element::bf16, 16, 64, random), b = make_matrix(Element::bf16, 16, 72, random);
  const std::vector<BoundProduct> products{{a.weight(), nullptr}, {b.weight(), nullptr}};
  LinearCall call;
  call.products = products;
  call.rows = 1;
  EXPECT_THROW(linear(device.how(false), call, {}), Error);
  call.products = std::span(products).first(1);
  call.input.element = Element::f16;
  EXPECT_THROW(linear(device.how(false), call, {}), Error);
  call.rows = kFewRows + 1;
  EXPECT_THROW(linear(device.how(false), call, {}), Error);
}

}  // namespace
}  // namespace tandem::cuda
