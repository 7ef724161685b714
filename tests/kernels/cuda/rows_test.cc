#include "kernels/cuda/rows.h"

#include <cmath>
#include <random>

#include "kernels/base/cuda/element.cuh"
#include "tests/kernels/cuda/device_memory.h"

namespace tandem::cuda {
namespace {

std::vector<float> random_floats(size_t count, uint64_t seed, float deviation = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

template <typename T>
std::vector<T> rounded(const std::vector<float>& values) {
  std::vector<T> r;
  for (const float v : values) r.push_back(T(v));
  return r;
}

template <typename T> constexpr Element kElement = Element::f32;
template <> constexpr Element kElement<bf16> = Element::bf16;
template <> constexpr Element kElement<f16> = Element::f16;
template <typename T> constexpr double kHalfUlp = 0x1p-22;  // of a value, with what fp32 sums lose
template <> constexpr double kHalfUlp<bf16> = 0x1p-8;
template <> constexpr double kHalfUlp<f16> = 0x1p-11;

template <typename T>
void expect_near(T got, double expected, double loss, const std::string& what) {
  const double tolerance = (kHalfUlp<T> * 1.01 + loss) * std::abs(expected) + loss + 1e-7;
  ASSERT_LE(std::abs(static_cast<double>(static_cast<float>(got)) - expected), tolerance) << what << ": " << static_cast<float>(got) << " for " << expected;
}

Launch stream(const DeviceInfo& info) { return {nullptr, &info, true}; }

template <typename T>
void check_embed(int64_t hidden, int64_t table_stride, bool counted) {
  const DeviceInfo info = device_info();
  constexpr int64_t kTable = 37, kBegin = 100;
  constexpr int32_t kRows = 11;
  const std::vector<T> table = rounded<T>(random_floats(static_cast<size_t>(kTable * table_stride), 3));
  std::vector<int32_t> ids{100, 136, 99, 137, -1, 120, -1, 0, 101, -1, 111}, last_ids{104, 5, 136, 99};
  std::vector<SequenceOnDevice> sequences(3);
  sequences[0].slot = 2, sequences[1].slot = 0, sequences[2].slot = 1;
  const std::vector<int32_t> sequence_of{0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2}, counts{8, 3, 0, 0};
  DeviceArray<T> device_table(table);
  DeviceArray<int32_t> device_ids(ids), device_last(last_ids), device_of(sequence_of), device_counts(counts);
  DeviceArray<SequenceOnDevice> device_sequences(sequences);
  DeviceArray<float> x(static_cast<size_t>(kRows * hidden));
  EmbedCall call;
  call.step.counts = counted ? device_counts.data() : nullptr;
  call.step.sequences = device_sequences.data(), call.step.sequence_of = device_of.data();
  call.ids = device_ids.data(), call.last_ids = device_last.data(), call.table = device_table.data(), call.table_element = kElement<T>;
  call.table_rows = kTable, call.table_stride = table_stride, call.begin = kBegin, call.hidden = hidden, call.scale = 1.5f;
  call.x = x.data(), call.most_rows = kRows;
  embed(stream(info), call);
  const std::vector<float> got = x.host();
  for (int64_t row = 0; row < kRows; ++row) {
    int64_t id = ids[static_cast<size_t>(row)];
    if (id < 0) id = last_ids[static_cast<size_t>(sequences[static_cast<size_t>(sequence_of[static_cast<size_t>(row)])].slot)];
    id -= kBegin;
    for (int64_t i = 0; i < hidden; ++i) {
      const float v = got[static_cast<size_t>(row * hidden + i)];
      if (counted && row >= counts[0]) {
        ASSERT_TRUE(std::isnan(v)) << "a row past the count was written";
      } else {
        const float expected = id >= 0 && id < kTable ? 1.5f * static_cast<float>(table[static_cast<size_t>(id * table_stride + i)]) : 0.0f;
        ASSERT_EQ(v, expected) << "row " << row << " element " << i << " of " << hidden;
      }
    }
  }
}

TEST(CudaRows, EmbedsRows) {
  TANDEM_NEEDS_GPU();
  for (const int64_t hidden : {1, 7, 64, 576, 1023, 4096, 4100, 8192}) {
    for (const bool counted : {false, true}) {
      check_embed<float>(hidden, dense_stride(hidden), counted);
      check_embed<bf16>(hidden, dense_stride(hidden), counted);
      check_embed<f16>(hidden, hidden, counted);
      ASSERT_FALSE(HasFatalFailure());
    }
  }
}

struct EnterCase { int64_t rows, hidden; NormKind kind; bool pending, bias, norm, pick; };

template <typename T>
void check_enter(const EnterCase& c) {
  const DeviceInfo info = device_info();
  const std::string what = std::to_string(c.rows) + " x " + std::to_string(c.hidden) + (c.kind == NormKind::layer ? " layer" : " rms") +
                           (c.pending ? " pending" : "") + (c.pick ? " picked" : "");
  const int64_t all = c.pick ? 2 * c.rows + 1 : c.rows;
  const std::vector<float> x = random_floats(static_cast<size_t>(all * c.hidden), 11, 3), pending = random_floats(static_cast<size_t>(c.rows * c.hidden), 12),
                           weight = random_floats(static_cast<size_t>(c.hidden), 13), bias = random_floats(static_cast<size_t>(c.hidden), 14);
  std::vector<int32_t> row_of;
  for (int64_t i = 0; i < c.rows; ++i) row_of.push_back(static_cast<int32_t>((i * 5 + 1) % all));
  DeviceArray<float> dx(x), dp(pending), dw(weight), db(bias);
  DeviceArray<int32_t> dr(row_of);
  DeviceArray<T> h(static_cast<size_t>(c.rows * c.hidden));
  EnterCall call;
  call.x = dx.data(), call.pending = c.pending ? dp.data() : nullptr, call.weight = dw.data(), call.bias = c.bias ? db.data() : nullptr;
  call.kind = c.kind, call.h = c.norm ? h.data() : nullptr, call.element = kElement<T>;
  call.row_of = c.pick ? dr.data() : nullptr, call.rows = c.rows, call.hidden = c.hidden;
  enter(stream(info), call);
  const std::vector<float> x_after = dx.host();
  const std::vector<T> got = h.host();
  for (int64_t i = 0; i < c.rows; ++i) {
    const int64_t from = c.pick ? row_of[static_cast<size_t>(i)] : i;
    std::vector<double> v(static_cast<size_t>(c.hidden));
    double mean = 0, squares = 0;
    for (int64_t k = 0; k < c.hidden; ++k) {
      const auto at = static_cast<size_t>(from * c.hidden + k);
      const float sum = c.pending ? x[at] + pending[static_cast<size_t>(i * c.hidden + k)] : x[at];
      ASSERT_EQ(x_after[at], c.pick ? x[at] : sum) << what;
      mean += v[static_cast<size_t>(k)] = sum;
    }
    if (!c.norm) continue;
    mean = c.kind == NormKind::layer ? mean / static_cast<double>(c.hidden) : 0;
    for (const double a : v) squares += (a - mean) * (a - mean);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(c.hidden) + static_cast<double>(call.epsilon));
    for (int64_t k = 0; k < c.hidden; ++k) {
      const auto at = static_cast<size_t>(k);
      const double expected = (v[at] - mean) * scale * weight[at] + (c.bias ? bias[at] : 0.0f);
      expect_near(got[static_cast<size_t>(i * c.hidden + k)], expected, 4e-6, what);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(CudaRows, EntersBlocks) {
  TANDEM_NEEDS_GPU();
  for (const int64_t hidden : {2, 5, 64, 576, 1023, 2052, 4096, 7168, 8192, 16384, 16388}) {
    for (const int64_t rows : {1, 3, 65}) {
      for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
        for (int flags = 0; flags < 4; ++flags) check_enter<bf16>({rows, hidden, kind, flags % 2 == 1, kind == NormKind::layer, true, flags / 2 == 1});
        check_enter<float>({rows, hidden, kind, true, true, true, false});
        check_enter<f16>({rows, hidden, kind, false, false, true, false});
      }
      check_enter<bf16>({rows, hidden, NormKind::rms, true, false, false, false});
      ASSERT_FALSE(HasFatalFailure());
    }
  }
}

double activation_of(Activation activation, double x) {
  switch (activation) {
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::relu: return std::max(x, 0.0);
    default: return x;
  }
}

template <typename T>
void check_elements(int64_t rows, int64_t width) {
  const DeviceInfo info = device_info();
  const int64_t in_stride = 2 * width, out_stride = width + 8;
  std::vector<float> values = random_floats(static_cast<size_t>(rows * in_stride), 21, 4);
  values[0] = -120, values[values.size() / 2] = 90;
  const std::vector<T> in = rounded<T>(values);
  const std::vector<float> bias = random_floats(static_cast<size_t>(width), 22);
  DeviceArray<T> device_in(in);
  DeviceArray<float> device_bias(bias);
  for (const Activation activation : {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
    for (const bool gated : {true, false}) {
      DeviceArray<T> out(static_cast<size_t>(rows * out_stride));
      activate(stream(info), activation, device_in.data(), gated ? device_in.data() + width : nullptr, out.data(), kElement<T>, rows, width, in_stride, out_stride);
      const std::vector<T> got = out.host();
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < out_stride; ++k) {
          const T v = got[static_cast<size_t>(i * out_stride + k)];
          if (k >= width) {
            ASSERT_TRUE(std::isnan(static_cast<float>(v))) << "written between rows";
            continue;
          }
          const double up = gated ? static_cast<float>(in[static_cast<size_t>(i * in_stride + width + k)]) : 1.0;
          const double gate = static_cast<float>(in[static_cast<size_t>(i * in_stride + k)]);
          // the tanh and erf of a negative argument cancel: what is lost is a last bit of the argument
          expect_near(v, activation_of(activation, gate) * up, 1e-6 * std::max(1.0, std::abs(gate * up)), "activation");
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
  DeviceArray<T> y(in);
  add_bias(stream(info), device_bias.data(), y.data(), kElement<T>, rows, width, in_stride);
  const std::vector<T> got = y.host();
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < in_stride; ++k) {
      const auto at = static_cast<size_t>(i * in_stride + k);
      const float expected = static_cast<float>(in[at]) + (k < width ? bias[static_cast<size_t>(k)] : 0.0f);
      ASSERT_EQ(static_cast<float>(got[at]), static_cast<float>(T(expected))) << "bias";
    }
  }
}

TEST(CudaRows, ActivatesAndAddsBiases) {
  TANDEM_NEEDS_GPU();
  for (const int64_t width : {1, 7, 64, 1025, 2056}) {
    for (const int64_t rows : {1, 5}) {
      check_elements<float>(rows, width);
      check_elements<bf16>(rows, width);
      check_elements<f16>(rows, width);
      ASSERT_FALSE(HasFatalFailure());
    }
  }
  check_elements<bf16>(70000, 8);  // more rows than a grid has
}

TEST(CudaRows, ScalesAndCaps) {
  TANDEM_NEEDS_GPU();
  const DeviceInfo info = device_info();
  for (const int64_t count : {1, 3, 4, 1023, 128256}) {
    for (const float cap : {0.0f, 30.0f}) {
      const std::vector<float> y = random_floats(static_cast<size_t>(count), 31, 40);
      DeviceArray<float> device_y(y);
      scale_and_cap(stream(info), device_y.data(), count, 0.75f, cap);
      const std::vector<float> got = device_y.host();
      for (size_t i = 0; i < y.size(); ++i) {
        const double v = static_cast<double>(y[i]) * 0.75;
        expect_near(got[i], cap > 0 ? cap * std::tanh(v / cap) : v, 1e-6, "cap");
        ASSERT_FALSE(HasFatalFailure());
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cuda
