// Operations on rows: look-up, norms, residual sums, activations. fp32 inside. Enqueued on the launch's stream.
#pragma once
#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/plan/layout.h"
#include "kernels/cuda/step_view.h"
#include "kernels/program/record.h"

namespace tandem::cuda {

// x[row] = scale * table[id] (zero outside [begin, begin + table rows)). ids[row] < 0: the id that was last drawn for the row's
// sequence, last_ids[slot]. table: dense `table_element` [.., table_stride]. x: float[most_rows, hidden].
struct EmbedCall {
  StepView step;
  const int32_t* ids = nullptr;       // [rows]
  const int32_t* last_ids = nullptr;  // [slots]
  const void* table = nullptr;
  Element table_element = Element::bf16;
  int64_t table_rows = 0, table_stride = 0, begin = 0, hidden = 0;
  float scale = 1;
  float* x = nullptr;
  int32_t most_rows = 0;
};
void embed(const Launch& how, const EmbedCall& call);

// x[row] += the row of its position in a table of learned ones. table: dense `table_element` [table rows, table_stride].
struct PositionsCall {
  StepView step;
  const void* table = nullptr;
  Element table_element = Element::bf16;
  int64_t table_stride = 0, offset = 0, hidden = 0;
  float* x = nullptr;
  int32_t most_rows = 0;
};
void add_positions(const Launch& how, const PositionsCall& call);

// x += pending when it is given; h = norm(x) as `element` when h is given; x = norm(x) too when it `replaces`. row_of (device) picks rows
// of x: then x is only read, and row i of h is that of row row_of[i]; rows = how many. x, pending: float[.., hidden]; h: element[rows, hidden].
struct EnterCall {
  float* x = nullptr;
  const float* pending = nullptr;
  const float* weight = nullptr;  // float[hidden]
  const float* bias = nullptr;    // or null
  NormKind kind = NormKind::rms;
  float epsilon = 1e-5f;
  void* h = nullptr;
  Element element = Element::bf16;
  const int32_t* row_of = nullptr;
  bool replaces = false;
  int64_t rows = 0, hidden = 0;
};
void enter(const Launch& how, const EnterCall& call);

// out[row, i] = activation(gate[row, i]) * up[row, i]; without up: activation(gate). All element; strides in elements.
void activate(const Launch& how, Activation activation, const void* gate, const void* up, void* out, Element element, int64_t rows, int64_t width,
              int64_t in_stride, int64_t out_stride);
// Each of `heads` heads of a row is normalized where it lies: element y[row, head * width + i].
void normalize_heads(const Launch& how, NormKind kind, float epsilon, const float* weight, void* y, Element element, int64_t rows, int64_t heads, int64_t width,
                     int64_t stride);
// y[row] += sigmoid(logit[row]) * values[row]; float[rows, width], logits float[rows].
void add_weighted(const Launch& how, const float* logits, const float* values, float* y, int64_t rows, int64_t width);
// y[row, i] += bias[i] (float bias; y element)
void add_bias(const Launch& how, const float* bias, void* y, Element element, int64_t rows, int64_t width, int64_t stride);
// y = cap(scale * y), y = soft_cap * tanh(y / soft_cap) when soft_cap > 0; float[count].
void scale_and_cap(const Launch& how, float* y, int64_t count, float scale, float soft_cap);

}  // namespace tandem::cuda
