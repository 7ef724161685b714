// Walks in pieces against plain loops over the whole matrix.
#include "runtime/model/weight_error.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tandem {
namespace {

const std::string kTiny = TANDEM_FIXTURES "/llama-tiny";

std::vector<float> whole(const Blueprint& blueprint, WeightId id, const Format* through) {
  const WeightRow& row = blueprint.model->weights[id];
  const Rectangle all{0, row.rows.size(), 0, row.cols.size()};
  const LoadedSlice slice = through ? load_slice_as(*through, blueprint, id, all) : load_slice(blueprint, id, all);
  std::vector<float> values(static_cast<size_t>(row.elements()));
  slice.view.format->dequantize(slice.view, 0, all.rows(), values.data());
  return values;
}

TEST(WeightError, IsThatOfPlainLoops) {
  const Blueprint blueprint = make_blueprint(kTiny, {}, {});
  const std::vector<const Format*> formats = {&format("nf4"), &format("nf4_dq"), nullptr, &format("int8"), &format("zeropoint")};
  for (const char* name : {"model.layers.1.mlp.down_proj.weight", "lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"}) {
    const WeightId id = blueprint.model->weights.find(name);
    ASSERT_NE(id, kNoWeight);
    const std::vector<float> x = whole(blueprint, id, nullptr);
    NumberBins bins{-0.1, 0.1, std::vector<uint64_t>(7), std::vector<uint64_t>(7)};
    const WeightReport report = examine_weight(blueprint, id, formats, &bins);
    double sum = 0, low = x[0], high = x[0];
    for (const float v : x) sum += v, low = std::min<double>(low, v), high = std::max<double>(high, v);
    EXPECT_EQ(report.numbers.count, x.size());
    EXPECT_EQ(report.numbers.min, low);
    EXPECT_EQ(report.numbers.max, high);
    EXPECT_NEAR(report.numbers.mean(), sum / static_cast<double>(x.size()), 1e-12);
    for (size_t f = 0; f < formats.size(); ++f) {
      if (formats[f] == nullptr) {
        EXPECT_EQ(report.errors[f].count, 0u);
        continue;
      }
      const std::vector<float> y = whole(blueprint, id, formats[f]);
      double noise = 0, signal = 0, largest = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double d = static_cast<double>(y[i]) - x[i];
        noise += d * d, signal += static_cast<double>(x[i]) * x[i], largest = std::max(largest, std::fabs(d));
      }
      EXPECT_EQ(report.errors[f].largest, largest) << name << " " << formats[f]->name();
      EXPECT_NEAR(report.errors[f].rms(), std::sqrt(noise / static_cast<double>(x.size())), 1e-12);
      if (noise > 0) {
        EXPECT_NEAR(report.errors[f].sqnr(), 10 * std::log10(signal / noise), 1e-9);
      }
    }
    uint64_t first = 0, second = 0, negative = 0;
    for (size_t b = 0; b < 7; ++b) first += bins.original[b], second += bins.quantized[b];
    for (const float v : x) negative += v < -0.1f + 0.2f / 7;
    EXPECT_EQ(first, x.size());
    EXPECT_EQ(second, x.size());
    EXPECT_NEAR(static_cast<double>(bins.original[0]), static_cast<double>(negative), 1);
  }
}

TEST(NumberStatistics, CountsWhatIsNoNumberApart) {
  NumberStatistics n;
  n.add(std::vector<float>{1, -7, NAN, INFINITY, 6, 6.5f});
  EXPECT_EQ(n.count, 6u);
  EXPECT_EQ(n.not_finite, 2u);
  EXPECT_EQ(n.outliers, 2u);
  EXPECT_EQ(n.min, -7);
  EXPECT_EQ(n.max, 6.5);
  EXPECT_DOUBLE_EQ(n.mean(), 6.5 / 4);
  NumberBins bins{0, 0, std::vector<uint64_t>(3), {}};
  bins.count(std::vector<float>{0, 1, NAN}, bins.original);  // a range of nothing
  EXPECT_EQ(bins.original[0], 2u);
}

}  // namespace
}  // namespace tandem
