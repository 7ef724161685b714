#include "kernels/program/evaluate.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tandem {
namespace {

double activation(Activation kind, double x) {
  switch (kind) {
    case Activation::none:
      return x;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x < 0 ? 0 : x;
  }
  return x;
}

int64_t longest(const StepRows& step) {
  int64_t longest = 0;
  for (const SequenceRows& s : step.sequences) longest = std::max<int64_t>(longest, s.position + s.rows);
  return longest;
}

}  // namespace

void Evaluator::run(const Program& program, const StepRows& step, const Matrix* hidden_in) {
  values_.clear();
  if (hidden_in != nullptr) values_[kX] = *hidden_in;
  for (const Record& record : program.records()) run(record, step);
}

void Evaluator::run(const Record& record, const StepRows& step) {
  for (const Primitive& p : expand(record)) run(p, step);
  std::erase_if(values_, [](const auto& entry) { return entry.first >= kFirstInner; });
}

void Evaluator::forget(int32_t slot) {
  for (auto& [layer, kept] : caches_) kept.erase(slot);
}

void Evaluator::run(const Primitive& p, const StepRows& step) {
  const Matrix a = p.a >= 0 ? values_.at(p.a) : Matrix{}, b = p.b >= 0 ? values_.at(p.b) : Matrix{};
  const auto make = [&](int64_t rows, int64_t cols) -> Matrix& {
    Matrix& out = values_[p.out];
    out = {rows, cols, std::vector<double>(static_cast<size_t>(rows * cols), 0.0)};
    return out;
  };
  const auto each = [&](const auto& f) {  // out[r, c] = f(r, c) of a's shape
    Matrix out{a.rows, a.cols, std::vector<double>(a.values.size())};
    for (int64_t r = 0; r < a.rows; ++r) {
      for (int64_t c = 0; c < a.cols; ++c) out.at(r, c) = f(r, c);
    }
    values_[p.out] = std::move(out);
  };
  const auto weight = [&](WeightId id, int64_t r, int64_t c) { return weights.at(id).at(r, c); };

  switch (p.operation) {
    case Operation::look_up: {
      Matrix& out = make(step.rows, weights.at(p.weight).cols);
      for (int64_t r = 0; r < out.rows; ++r) {
        const int64_t row = step.ids[r] - p.begin;
        for (int64_t c = 0; c < out.cols; ++c) out.at(r, c) = row >= 0 && row < p.width ? weight(p.weight, row, c) : 0.0;
      }
      return;
    }
    case Operation::position: {
      Matrix& out = make(step.rows, weights.at(p.weight).cols);
      for (int64_t r = 0; r < out.rows; ++r) {
        for (int64_t c = 0; c < out.cols; ++c) out.at(r, c) = weight(p.weight, step.positions[r] + p.begin, c);
      }
      return;
    }
    case Operation::zero:
      make(step.rows, p.width);
      return;
    case Operation::gather:
    case Operation::reduce:
    case Operation::copy:
      values_[p.out] = a;
      return;
    case Operation::add:
      return each([&](int64_t r, int64_t c) { return a.at(r, c) + b.at(r, c); });
    case Operation::multiply:
      return each([&](int64_t r, int64_t c) { return a.at(r, c) * b.at(r, c); });
    case Operation::scale:
      return each([&](int64_t r, int64_t c) { return a.at(r, c) * p.number; });
    case Operation::cap:
      return each([&](int64_t r, int64_t c) { return p.number * std::tanh(a.at(r, c) / p.number); });
    case Operation::bias:
      return each([&](int64_t r, int64_t c) { return a.at(r, c) + weight(p.weight, 0, c); });
    case Operation::activate:
      return each([&](int64_t r, int64_t c) { return activation(p.activation, a.at(r, c)); });
    case Operation::sigmoid:
      return each([&](int64_t r, int64_t c) { return 1 / (1 + std::exp(-a.at(r, c))); });
    case Operation::rms_norm:
    case Operation::layer_norm: {
      const int64_t width = p.width == 0 ? a.cols : p.width, groups = a.cols / width;
      std::vector<double> means(static_cast<size_t>(a.rows * groups)), factors(means.size());
      for (int64_t i = 0; i < a.rows * groups; ++i) {
        const double* x = a.values.data() + i * width;
        double sum = 0, squares = 0;
        for (int64_t c = 0; c < width; ++c) sum += x[c];
        const double mean = p.operation == Operation::layer_norm ? sum / static_cast<double>(width) : 0.0;
        for (int64_t c = 0; c < width; ++c) squares += (x[c] - mean) * (x[c] - mean);
        means[i] = mean, factors[i] = 1 / std::sqrt(squares / static_cast<double>(width) + p.number);
      }
      return each([&](int64_t r, int64_t c) {
        const int64_t i = r * groups + c / width, element = c % width;
        return (a.at(r, c) - means[i]) * factors[i] * weight(p.weight, 0, element) +
               (p.bias == kNoWeight ? 0.0 : weight(p.bias, 0, element));
      });
    }
    case Operation::matrix: {
      const Matrix& w = weights.at(p.weight);
      Matrix& out = make(a.rows, w.rows);
      for (int64_t row = 0; row < a.rows; ++row) {
        for (int64_t r = 0; r < w.rows; ++r) {
          for (int64_t c = 0; c < w.cols; ++c)
            out.at(row, r) += w.at(r, c) * (round_activation ? round_activation(a.at(row, c)) : a.at(row, c));
        }
      }
      return;
    }
    case Operation::rotate: {
      const int64_t half = p.rope->rotary / 2;
      return each([&](int64_t r, int64_t c) {
        const int64_t i = c % p.width;
        if (i >= 2 * half) return a.at(r, c);
        const float angle = static_cast<float>(step.positions[r]) * p.rope->inverse_frequency[i % half];  // rounded as everywhere
        const double cosine = std::cos(static_cast<double>(angle)) * p.rope->scale,
                     sine = std::sin(static_cast<double>(angle)) * p.rope->scale;
        return i < half ? a.at(r, c) * cosine - a.at(r, c + half) * sine : a.at(r, c) * cosine + a.at(r, c - half) * sine;
      });
    }
    case Operation::append: {
      auto& layer = caches_[{p.kv.group, p.kv.layer}];
      for (const SequenceRows& s : step.sequences) {
        Kept& kept = layer[s.slot];
        kept.keys.resize(static_cast<size_t>(s.position + s.rows));
        kept.values.resize(static_cast<size_t>(s.position + s.rows));
        for (int64_t r = s.row; r < s.row + s.rows; ++r) {
          auto &key = kept.keys[s.position + r - s.row], &value = kept.values[s.position + r - s.row];
          key.assign(static_cast<size_t>(a.cols), 0), value = key;
          for (int64_t c = 0; c < a.cols; ++c) {
            key[c] = round_kv ? round_kv(a.at(r, c)) : a.at(r, c);
            value[c] = round_kv ? round_kv(b.at(r, c)) : b.at(r, c);
          }
        }
      }
      return;
    }
    case Operation::scores: {
      const int64_t context = longest(step);
      Matrix& out = make(step.rows, p.groups * context);
      for (const SequenceRows& s : step.sequences) {
        const Kept& kept = caches_.at({p.kv.group, p.kv.layer}).at(s.slot);
        for (int64_t r = s.row; r < s.row + s.rows; ++r) {
          for (int64_t head = 0; head < p.groups; ++head) {
            for (int64_t t = 0; t < s.position + s.rows; ++t) {
              const auto& key = kept.keys[t];
              const int64_t kv_head = head / (p.groups / (static_cast<int64_t>(key.size()) / p.width));
              for (int64_t i = 0; i < p.width; ++i)
                out.at(r, head * context + t) += a.at(r, head * p.width + i) * key[kv_head * p.width + i];
            }
          }
        }
      }
      return;
    }
    case Operation::mask: {
      const int64_t context = longest(step);
      return each([&](int64_t r, int64_t c) {
        const int64_t t = c % context, position = step.positions[r];
        const bool seen = t <= position && (p.begin == 0 || t > position - p.begin);
        return seen ? a.at(r, c) : -std::numeric_limits<double>::infinity();
      });
    }
    case Operation::softmax: {
      const int64_t width = p.width > 0 ? p.width : longest(step);
      Matrix out = a;
      for (int64_t r = 0; r < a.rows; ++r) {
        for (int64_t g = 0; g < p.groups; ++g) {
          double highest = -std::numeric_limits<double>::infinity(), sum = 0;
          for (int64_t i = 0; i < width; ++i) highest = std::max(highest, a.at(r, g * width + i));
          for (int64_t i = 0; i < width; ++i) sum += std::exp(a.at(r, g * width + i) - highest);
          for (int64_t i = 0; i < width; ++i) out.at(r, g * width + i) = std::exp(a.at(r, g * width + i) - highest) / sum;
        }
      }
      values_[p.out] = std::move(out);
      return;
    }
    case Operation::mix: {
      const int64_t context = longest(step);
      Matrix& out = make(step.rows, p.groups * p.width);
      for (const SequenceRows& s : step.sequences) {
        const Kept& kept = caches_.at({p.kv.group, p.kv.layer}).at(s.slot);
        for (int64_t r = s.row; r < s.row + s.rows; ++r) {
          for (int64_t head = 0; head < p.groups; ++head) {
            for (int64_t t = 0; t < s.position + s.rows; ++t) {
              const auto& value = kept.values[t];
              const int64_t kv_head = head / (p.groups / (static_cast<int64_t>(value.size()) / p.width));
              const double share = a.at(r, head * context + t);
              for (int64_t i = 0; i < p.width && share != 0; ++i) out.at(r, head * p.width + i) += share * value[kv_head * p.width + i];
            }
          }
        }
      }
      return;
    }
    case Operation::choose: {
      Matrix out{a.rows, a.cols, std::vector<double>(a.values.size(), 0.0)};
      for (int64_t r = 0; r < a.rows; ++r) {
        std::vector<int64_t> order(static_cast<size_t>(a.cols));
        for (int64_t c = 0; c < a.cols; ++c) order[c] = c;
        std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return a.at(r, i) > a.at(r, j); });
        double sum = 0;
        for (int64_t i = 0; i < p.groups; ++i) sum += a.at(r, order[i]);
        for (int64_t i = 0; i < p.groups; ++i) out.at(r, order[i]) = a.at(r, order[i]) / (p.number == 1 ? sum : 1.0);
      }
      values_[p.out] = std::move(out);
      return;
    }
    case Operation::add_scaled: {
      Matrix& out = values_.at(p.out);
      for (int64_t r = 0; r < out.rows; ++r) {
        for (int64_t c = 0; c < out.cols; ++c) out.at(r, c) += a.at(r, c) * b.at(r, p.begin);
      }
      return;
    }
    case Operation::pick: {
      Matrix& out = make(static_cast<int64_t>(step.heads.size()), a.cols);
      for (int64_t r = 0; r < out.rows; ++r) {
        for (int64_t c = 0; c < out.cols; ++c) out.at(r, c) = a.at(step.heads[r], c);
      }
      return;
    }
  }
}

}  // namespace tandem
