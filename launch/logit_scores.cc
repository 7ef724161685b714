#include "launch/logit_scores.h"

#include <algorithm>
#include <cmath>

namespace tandem {

double log_sum_exp(std::span<const float> row) {
  const auto most = static_cast<double>(*std::max_element(row.begin(), row.end()));
  double sum = 0;
  for (const float value : row) sum += std::exp(static_cast<double>(value) - most);
  return std::log(sum) + most;
}

double negative_log_likelihood(std::span<const float> row, int32_t target) { return log_sum_exp(row) - static_cast<double>(row[static_cast<size_t>(target)]); }

double divergence(std::span<const float> row, std::span<const float> other) {
  const double whole = log_sum_exp(row), whole_other = log_sum_exp(other);
  double sum = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const double p = static_cast<double>(row[i]) - whole;
    sum += std::exp(p) * (p - (static_cast<double>(other[i]) - whole_other));
  }
  return sum;
}

bool same_best(std::span<const float> row, std::span<const float> other) {
  return std::max_element(row.begin(), row.end()) - row.begin() == std::max_element(other.begin(), other.end()) - other.begin();
}

}  // namespace tandem
