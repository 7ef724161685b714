// Runs programs by their expansions, in double precision and plain loops: slow, readable, the judge of the fast ones. It is one rank
// alone: what would be summed or gathered over peers is taken as it is. Not thread-safe.
#pragma once
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "kernels/program/backend.h"
#include "kernels/program/expand.h"

namespace tandem {

struct Matrix {  // [rows, cols]
  int64_t rows = 0, cols = 0;
  std::vector<double> values;
  double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

class Evaluator {
 public:
  std::map<WeightId, Matrix> weights;  // vectors are one row
  // Applied to keys and values before they are kept; identity when empty (a cache of doubles).
  std::function<double(double)> round_kv;
  // Applied to a product's activations; identity when empty.
  std::function<double(double)> round_activation;

  // One step; sequences are told apart by their slots, page tables are not looked at. hidden_in: [rows, hidden] for a program that
  // receives.
  void run(const Program& program, const StepRows& step, const Matrix* hidden_in = nullptr);
  void run(const Record& record, const StepRows& step);
  const Matrix& value(int number) const { return values_.at(number); }
  Matrix& value(int number) { return values_[number]; }
  void forget(int32_t slot);  // the sequence's keys and values

 private:
  struct Kept {
    std::vector<std::vector<double>> keys, values;  // [position][kv_heads * head_dim]
  };
  void run(const Primitive& p, const StepRows& step);
  std::map<int, Matrix> values_;
  std::map<std::pair<int32_t, int32_t>, std::map<int32_t, Kept>> caches_;  // (group, layer), slot
};

}  // namespace tandem
