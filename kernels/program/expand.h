// What each record means: its expansion into primitive operations, each a plain loop over numbered values. The oracle of every
// backend's kernels. Pure functions; a Primitive is a value.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/program/record.h"

namespace tandem {

enum class Operation : uint8_t {
  look_up,     // out[row] = row ids[row] - begin of the weight; zero outside [begin, begin + width)
  position,    // out[row] = row positions[row] + begin of the weight
  zero,        // out[row, width] = 0
  copy,        // out = a
  add,         // out = a + b
  multiply,    // out = a * b
  reduce,      // out = sum of a over the peers
  scale,       // out = a * number
  cap,         // out = number * tanh(a / number)
  rms_norm,    // out = a / sqrt(mean(a^2) + number) * weight (+ bias), over groups of `width` (0: the whole row)
  layer_norm,  // out = (a - mean(a)) / sqrt(variance(a) + number) * weight (+ bias)
  matrix,      // out[row, r] = sum over c of weight[r, c] * a[row, c]
  bias,        // out = a + weight
  activate,    // out = activation(a)
  sigmoid,     // out = 1 / (1 + exp(-a))
  rotate,      // rope on a's heads [groups, width], its frequencies and scale
  append,      // a, b = keys and values [groups, width] of the rows, kept at their positions of layer kv
  scores,      // out[row, head, t] = a's head . key t of its KV head, t counted from the sequence's first token
  mask,        // out[row, head, t] = -infinity where t is after the row or `window` (begin) or more before it
  softmax,     // over groups of `width` (0: the sequence's positions)
  mix,         // out[row, head] = sum over t of a[row, head, t] * value t
  choose,      // out[row, e] = a[row, e] for the `groups` largest (ties: the lower index), 0 elsewhere; number 1: divided by their sum
  add_scaled,  // out += a * b[row, begin]
  pick,        // out = a's rows whose logits are wanted
  gather,      // out = the peers' parts of a, one after the other
};

// Numbers of values. The first four are what records hand on; others are inside one expansion.
constexpr int kX = 0, kH = 1, kPending = 2, kLogits = 3, kFirstInner = 4;

struct Primitive {
  Operation operation = Operation::zero;
  int out = -1, a = -1, b = -1;
  WeightId weight = kNoWeight, bias = kNoWeight;
  int64_t width = 0, groups = 0, begin = 0;
  float number = 0;
  Activation activation = Activation::none;
  const Rope* rope = nullptr;  // the record's own
  KvLayer kv;
  bool first_only = false;  // bias: added by member 0 of the peer group only
};

std::vector<Primitive> expand(const Record& record);
std::string describe(const Primitive& primitive);  // one line

}  // namespace tandem
