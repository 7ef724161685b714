// Products of few rows (decoding): y = W x with what comes before and after it fused in. More rows than kFewRows go through
// gemm.h. Called on the rank's thread; everything is enqueued on the launch's stream, nothing allocates or waits.
#pragma once
#include <span>

#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/plan/workspace.h"
#include "kernels/program/record.h"

namespace tandem::cuda {

struct Weight {  // bound: a resident layout in device memory
  const Resident* resident = nullptr;
  const Format* format = nullptr;
  const std::byte* data = nullptr;
  int64_t rows = 0, cols = 0;
};
struct BoundProduct {
  Weight weight;
  const float* bias = nullptr;  // float[weight.rows] or null
};

// The rows that are multiplied. Either values, or the RMS norm of residual rows, taken on the way (in fp32, rounded once to `element`).
struct LinearInput {
  const void* values = nullptr;           // element[rows, stride]
  const float* residual = nullptr;        // float[rows, stride], when values is null
  const float* norm_weight = nullptr;     // float[cols]
  float epsilon = 0;
  Element element = Element::bf16;        // activations inside the product
  int64_t stride = 0;                     // elements from row to row
  const int32_t* row_of = nullptr;        // device: row i is row row_of[i] of the source; null: i
};

enum class LinearOutput : uint8_t {
  store,      // element y[row, ...]: the products' rows one after the other
  store_f32,  // float y
  add_f32,    // float y += (a residual stream); one product
  gated,      // element y = activation(first product) * second; two products, equally tall
  activated,  // element y = activation(product)
};

struct LinearCall {
  std::span<const BoundProduct> products;  // 1 to 3, all with the same cols
  LinearInput input;
  int64_t rows = 0;                        // 1 .. kFewRows
  LinearOutput output = LinearOutput::store;
  void* y = nullptr;
  int64_t y_stride = 0;                    // elements
  Activation activation = Activation::none;
  float scale = 1, soft_cap = 0;           // store_f32: y = cap(scale * product)
};

// Scratch that a call may use: partial sums of split products. Zero-filled once before the first call; left with zero counters.
struct LinearScratch { std::byte* memory = nullptr; uint64_t bytes = 0; };

// All products of a call have the same kind of resident (dense of one element type, or tile4).
void linear(const Launch& how, const LinearCall& call, const LinearScratch& scratch);

}  // namespace tandem::cuda
