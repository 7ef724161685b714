#include "runtime/model/weight_error.h"

#include <algorithm>
#include <cmath>

#include "kernels/formats/quantized_copy.h"

namespace tandem {
namespace {

constexpr int64_t kPanel = 1 << 20;  // numbers at a time

}  // namespace

void NumberStatistics::add(std::span<const float> values) {
  count += values.size();
  for (const float x : values) {
    if (!std::isfinite(x)) {
      ++not_finite;
      continue;
    }
    min = std::min(min, static_cast<double>(x));
    max = std::max(max, static_cast<double>(x));
    outliers += std::fabs(x) > kOutlier;
    sum += x;
    squares += static_cast<double>(x) * x;
  }
}

void NumberStatistics::add(const NumberStatistics& o) {
  count += o.count, outliers += o.outliers, not_finite += o.not_finite;
  min = std::min(min, o.min), max = std::max(max, o.max);
  sum += o.sum, squares += o.squares;
}

double FormatError::rms() const { return count > 0 ? std::sqrt(squares / static_cast<double>(count)) : 0; }
double FormatError::sqnr() const { return squares > 0 ? 10 * std::log10(signal / squares) : std::numeric_limits<double>::infinity(); }

void FormatError::add(std::span<const float> original, std::span<const float> quantized) {
  count += original.size();
  for (size_t i = 0; i < original.size(); ++i) {
    const double error = static_cast<double>(quantized[i]) - original[i];
    largest = std::max(largest, std::fabs(error));
    squares += error * error;
    signal += static_cast<double>(original[i]) * original[i];
  }
}

void FormatError::add(const FormatError& o) {
  count += o.count, bytes += o.bytes;
  largest = std::max(largest, o.largest);
  squares += o.squares, signal += o.signal;
}

void NumberBins::count(std::span<const float> values, std::vector<uint64_t>& bins) const {
  const double scale = high > low ? static_cast<double>(bins.size()) / (high - low) : 0;
  for (const float x : values) {
    if (!std::isfinite(x)) continue;
    const double at = std::clamp((x - low) * scale, 0.0, static_cast<double>(bins.size()) - 1);
    ++bins[static_cast<size_t>(at)];
  }
}

WeightReport examine_weight(const Blueprint& blueprint, WeightId id, std::span<const Format* const> formats, NumberBins* bins) {
  const WeightRow& row = blueprint.model->weights[id];
  const int64_t rows = row.rows.size(), cols = row.cols.size();
  int64_t grain = 1;
  bool whole = row.role == Role::norm || row.role == Role::bias;
  WeightReport report;
  for (const Format* format : formats) {
    FormatError error;
    if (format != nullptr) {
      grain = std::max(grain, format->grain(rows, cols).rows);  // powers of two
      whole |= format->reach() == Reach::whole;
      error.bytes = stored_bytes(*format, rows, cols);
    }
    report.errors.push_back(error);
  }
  const Origin& origin = blueprint.checkpoint.dialect == Dialect::gguf ? row.gguf : row.huggingface;
  if (origin.order != RowOrder::as_is || grain > rows) whole = true;
  const int64_t panel = whole ? rows : std::max(grain, kPanel / std::max<int64_t>(1, cols) / grain * grain);
  const Format& fp32 = dense_format(DType::f32);
  std::vector<float> values, back;
  for (int64_t begin = 0; begin < rows; begin += panel) {
    const Rectangle part{begin, std::min(rows, begin + panel), 0, cols};
    const LoadedSlice slice = load_slice_as(fp32, blueprint, id, part);
    values.resize(static_cast<size_t>(part.rows() * cols));
    fp32.dequantize(slice.view, 0, part.rows(), values.data());
    report.numbers.add(values);
    if (bins) bins->count(values, bins->original);
    for (size_t f = 0; f < formats.size(); ++f) {
      if (formats[f] == nullptr) continue;
      back.resize(values.size());
      round_trip(*formats[f], values.data(), part.rows(), cols, back.data());
      report.errors[f].add(values, back);
      if (bins && f == 0) bins->count(back, bins->quantized);
    }
  }
  return report;
}

}  // namespace tandem
