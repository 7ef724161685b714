// What a weight's numbers are like, and how far formats move them: everything in one or two walks in pieces, so that a matrix of any size
// costs a few megabytes (formats whose statistics are of the whole matrix: the matrix). Values; pure.
#pragma once
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "runtime/model/loader.h"

namespace tandem {

constexpr float kOutlier = 6.0f;  // LLM.int8()'s threshold

struct NumberStatistics {
  uint64_t count = 0, outliers = 0, not_finite = 0;  // outliers: |x| > kOutlier
  double min = std::numeric_limits<double>::infinity(), max = -std::numeric_limits<double>::infinity(), sum = 0, squares = 0;  // of finite ones
  double mean() const { return count > not_finite ? sum / static_cast<double>(count - not_finite) : 0; }
  void add(std::span<const float> values);
  void add(const NumberStatistics& other);
};

// Quantized and dequantized against the original.
struct FormatError {
  uint64_t count = 0, bytes = 0;  // numbers; stored bytes
  double largest = 0, squares = 0, signal = 0;  // |x' - x|; sums of (x' - x)^2 and x^2
  double rms() const;
  double sqnr() const;  // 10 log10(signal / noise) in dB; infinite where nothing moved
  void add(std::span<const float> original, std::span<const float> quantized);
  void add(const FormatError& other);
};

// Equal bins over [low, high]; numbers outside fall into the outer ones, what is no number nowhere.
struct NumberBins {
  double low = 0, high = 0;
  std::vector<uint64_t> original, quantized;
  void count(std::span<const float> values, std::vector<uint64_t>& bins) const;
};

struct WeightReport {
  NumberStatistics numbers;
  std::vector<FormatError> errors;  // one a format
};

// `formats` null: none of that weight (it cannot hold it, or does not apply). `bins` may be null; of formats[0], else of the original alone.
WeightReport examine_weight(const Blueprint& blueprint, WeightId id, std::span<const Format* const> formats, NumberBins* bins);

}  // namespace tandem
