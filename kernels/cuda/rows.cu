// Every kernel is bound by bytes: rows move as quads of floats (or eight 16-bit elements) with all loads of a thread in flight at once,
// and a row that is read twice stays in registers. Rows that are not whole quads take plain loops.
#include "kernels/cuda/rows.h"

#include <algorithm>

#include "kernels/base/cuda/element.cuh"
#include "kernels/base/cuda/reduce.cuh"
#include "kernels/cuda/activation.cuh"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256, kMostThreads = 1024;
constexpr int kQuads = 4;  // that a thread has in flight

template <typename F>
void by_element(Element element, const F& f) {
  switch (element) {
    case Element::f32: return f(float{});
    case Element::bf16: return f(bf16{});
    case Element::f16: return f(f16{});
  }
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
dim3 grid_over(int64_t width, int64_t rows) { return {static_cast<unsigned>((width + kThreads - 1) / kThreads), static_cast<unsigned>(rows), 1}; }

template <typename T>
struct alignas(16) Sixteen { T v[16 / sizeof(T)]; };  // bytes

// ---- look-up

struct EmbedRow {
  const void* from = nullptr;  // null: zeros
  float* to = nullptr;
};

template <typename T>
__device__ __forceinline__ EmbedRow embed_row(const EmbedCall& call, int64_t row) {
  int64_t id = call.ids[row];
  if (id < 0) id = call.last_ids[call.step.sequences[call.step.sequence_of[row]].slot];
  id -= call.begin;
  const bool here = id >= 0 && id < call.table_rows;
  return {here ? static_cast<const T*>(call.table) + id * call.table_stride : nullptr, call.x + row * call.hidden};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) embed_rows(EmbedCall call) {
  let_next_begin();
  wait_for_previous();
  if (call.step.counts != nullptr && blockIdx.y >= call.step.counts[0]) return;
  const EmbedRow row = embed_row<T>(call, blockIdx.y);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < call.hidden) row.to[i] = row.from != nullptr ? call.scale * to_float(static_cast<const T*>(row.from)[i]) : 0.0f;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) embed_quads(EmbedCall call) {
  let_next_begin();
  wait_for_previous();
  if (call.step.counts != nullptr && blockIdx.y >= call.step.counts[0]) return;
  const EmbedRow row = embed_row<T>(call, blockIdx.y);
  const int64_t quads = call.hidden / 4, first = static_cast<int64_t>(blockIdx.x) * kThreads * kQuads + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
    const int64_t q = first + k * kThreads;
    if (q >= quads) break;
    float4 v{0, 0, 0, 0};
    if (row.from != nullptr) {
      const Quad<T> e = static_cast<const Quad<T>*>(row.from)[q];
      v = {call.scale * to_float(e.v[0]), call.scale * to_float(e.v[1]), call.scale * to_float(e.v[2]), call.scale * to_float(e.v[3])};
    }
    reinterpret_cast<float4*>(row.to)[q] = v;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) add_position_rows(PositionsCall call) {
  let_next_begin();
  wait_for_previous();
  const int64_t row = blockIdx.y, i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if ((call.step.counts != nullptr && row >= call.step.counts[0]) || i >= call.hidden) return;
  call.x[row * call.hidden + i] += to_float(static_cast<const T*>(call.table)[(call.step.positions[row] + call.offset) * call.table_stride + i]);
}

// ---- residual sums and norms

// One block a row, in registers: blockDim.x * kHeld quads. How many threads that takes depends on the width only, so that a row's sums do
// not depend on its company. Few registers, so that many rows are on their way at once.
template <typename T, int kHeld>
__global__ void __launch_bounds__(kMostThreads, kHeld == 2 ? 2 : 1) enter_quads(EnterCall call) {
  __shared__ float shared[32];
  let_next_begin();
  const int quads = static_cast<int>(call.hidden / 4), stride = blockDim.x;
  const auto holds = [&](int k) { return static_cast<int>(threadIdx.x) + k * stride < quads; };
  float4 weight[kHeld];  // a constant: read while the kernel ahead still runs
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    weight[k] = call.weight != nullptr && holds(k) ? __ldg(reinterpret_cast<const float4*>(call.weight) + threadIdx.x + k * stride) : float4{1, 1, 1, 1};
  }
  wait_for_previous();
  const int64_t row = blockIdx.x;
  float4* x = reinterpret_cast<float4*>(call.x + (call.row_of != nullptr ? call.row_of[row] : row) * call.hidden) + threadIdx.x;
  float4 v[kHeld];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) v[k] = holds(k) ? x[k * stride] : float4{0, 0, 0, 0};
  if (call.pending != nullptr) {
    const float4* pending = reinterpret_cast<const float4*>(call.pending + row * call.hidden) + threadIdx.x;
    float4 p[kHeld];
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (holds(k)) p[k] = pending[k * stride];
    }
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (!holds(k)) break;
      v[k] = {v[k].x + p[k].x, v[k].y + p[k].y, v[k].z + p[k].z, v[k].w + p[k].w};
      if (call.row_of == nullptr) x[k * stride] = v[k];
    }
  }
  if (call.h == nullptr && !call.replaces) return;
  float mean = 0;
  if (call.kind == NormKind::layer) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) sum += (v[k].x + v[k].y) + (v[k].z + v[k].w);
    mean = block_sum(sum, shared) / static_cast<float>(call.hidden);
  }
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (!holds(k)) break;
    v[k] = {v[k].x - mean, v[k].y - mean, v[k].z - mean, v[k].w - mean};
    squares += (v[k].x * v[k].x + v[k].y * v[k].y) + (v[k].z * v[k].z + v[k].w * v[k].w);
  }
  const float scale = call.kind == NormKind::none ? 1.0f : 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(call.hidden) + call.epsilon);
  Quad<T>* h = reinterpret_cast<Quad<T>*>(static_cast<T*>(call.h) + row * call.hidden) + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (!holds(k)) break;
    float4 b{0, 0, 0, 0};
    if (call.bias != nullptr) b = __ldg(reinterpret_cast<const float4*>(call.bias) + threadIdx.x + k * stride);
    const float4 n{v[k].x * scale * weight[k].x + b.x, v[k].y * scale * weight[k].y + b.y, v[k].z * scale * weight[k].z + b.z, v[k].w * scale * weight[k].w + b.w};
    if (call.replaces) x[k * stride] = n;
    if (call.h == nullptr) continue;
    Quad<T> out;
    out.v[0] = from_float<T>(n.x), out.v[1] = from_float<T>(n.y), out.v[2] = from_float<T>(n.z), out.v[3] = from_float<T>(n.w);
    h[k * stride] = out;
  }
}

// Any width. With row_of, x is read only, so the sum is made again where it is needed.
template <typename T>
__global__ void __launch_bounds__(kThreads) enter_rows(EnterCall call) {
  __shared__ float shared[32];
  let_next_begin();
  wait_for_previous();
  const int64_t row = blockIdx.x, hidden = call.hidden;
  float* x = call.x + (call.row_of != nullptr ? call.row_of[row] : row) * hidden;
  const float* pending = call.pending != nullptr ? call.pending + row * hidden : nullptr;
  if (pending != nullptr && call.row_of == nullptr) {
    for (int64_t i = threadIdx.x; i < hidden; i += kThreads) x[i] += pending[i];
    pending = nullptr;
  }
  if (call.h == nullptr && !call.replaces) return;
  const auto value = [&](int64_t i) { return pending != nullptr ? x[i] + pending[i] : x[i]; };
  float mean = 0;
  if (call.kind == NormKind::layer) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < hidden; i += kThreads) sum += value(i);
    mean = block_sum(sum, shared) / static_cast<float>(hidden);
  }
  float squares = 0;
  for (int64_t i = threadIdx.x; i < hidden; i += kThreads) squares += (value(i) - mean) * (value(i) - mean);
  const float scale = call.kind == NormKind::none ? 1.0f : 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(hidden) + call.epsilon);
  T* h = static_cast<T*>(call.h) + row * hidden;
  for (int64_t i = threadIdx.x; i < hidden; i += kThreads) {
    const float n = (value(i) - mean) * scale * (call.weight != nullptr ? call.weight[i] : 1.0f) + (call.bias != nullptr ? call.bias[i] : 0.0f);
    if (call.replaces) x[i] = n;
    if (call.h != nullptr) h[i] = from_float<T>(n);
  }
}

// ---- element by element; blockIdx.y is the row, or the first of the rows that a block takes (gridDim.y at most 65535)

template <typename T>
__global__ void __launch_bounds__(kThreads) activate_rows(Activation activation, const T* gate, const T* up, T* out, int64_t rows, int64_t width,
                                                          int64_t in_stride, int64_t out_stride) {
  let_next_begin();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= width) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float v = activated(activation, to_float(gate[row * in_stride + i]));
    if (up != nullptr) v *= to_float(up[row * in_stride + i]);
    out[row * out_stride + i] = from_float<T>(v);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) activate_vectors(Activation activation, const T* gate, const T* up, T* out, int64_t rows, int64_t width,
                                                             int64_t in_stride, int64_t out_stride) {
  constexpr int kEach = 16 / sizeof(T);
  let_next_begin();
  wait_for_previous();
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kEach;
  if (i >= width) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    Sixteen<T> g = *reinterpret_cast<const Sixteen<T>*>(gate + row * in_stride + i);
    if (up != nullptr) {
      const Sixteen<T> u = *reinterpret_cast<const Sixteen<T>*>(up + row * in_stride + i);
#pragma unroll
      for (int k = 0; k < kEach; ++k) g.v[k] = from_float<T>(activated(activation, to_float(g.v[k])) * to_float(u.v[k]));
    } else {
#pragma unroll
      for (int k = 0; k < kEach; ++k) g.v[k] = from_float<T>(activated(activation, to_float(g.v[k])));
    }
    *reinterpret_cast<Sixteen<T>*>(out + row * out_stride + i) = g;
  }
}

// One warp a head; a head is read twice, the second time from the L1 cache.
template <typename T>
__global__ void __launch_bounds__(kThreads) normalize_heads_of_rows(NormKind kind, float epsilon, const float* weight, T* y, int64_t rows, int heads, int width, int64_t stride) {
  let_next_begin();
  wait_for_previous();
  const int lane = threadIdx.x & 31;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + (threadIdx.x >> 5); i < rows * heads; i += static_cast<int64_t>(gridDim.x) * (kThreads / 32)) {
    T* const head = y + i / heads * stride + i % heads * width;
    float mean = 0;
    if (kind == NormKind::layer) {
      for (int k = lane; k < width; k += 32) mean += to_float(head[k]);
      mean = warp_sum(mean) / static_cast<float>(width);
    }
    float squares = 0;
    for (int k = lane; k < width; k += 32) squares += (to_float(head[k]) - mean) * (to_float(head[k]) - mean);
    const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(width) + epsilon);
    for (int k = lane; k < width; k += 32) head[k] = from_float<T>((to_float(head[k]) - mean) * scale * weight[k]);
  }
}

__global__ void __launch_bounds__(kThreads) add_weighted_rows(const float* logits, const float* values, float* y, int64_t rows, int64_t width) {
  let_next_begin();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= width) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) y[row * width + i] += values[row * width + i] / (1.0f + expf(-logits[row]));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) bias_rows(const float* bias, T* y, int64_t rows, int64_t width, int64_t stride) {
  let_next_begin();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= width) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) y[row * stride + i] = from_float<T>(to_float(y[row * stride + i]) + bias[i]);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) bias_vectors(const float* bias, T* y, int64_t rows, int64_t width, int64_t stride) {
  constexpr int kEach = 16 / sizeof(T);
  let_next_begin();
  wait_for_previous();
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kEach;
  if (i >= width) return;
  alignas(16) float b[kEach];
#pragma unroll
  for (int k = 0; k < kEach; k += 4) *reinterpret_cast<float4*>(b + k) = __ldg(reinterpret_cast<const float4*>(bias + i + k));  // a constant
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    auto* at = reinterpret_cast<Sixteen<T>*>(y + row * stride + i);
    Sixteen<T> v = *at;
#pragma unroll
    for (int k = 0; k < kEach; ++k) v.v[k] = from_float<T>(to_float(v.v[k]) + b[k]);
    *at = v;
  }
}

__device__ __forceinline__ float scaled_and_capped(float v, float scale, float cap) {
  v *= scale;
  return cap > 0 ? cap * tanhf(v / cap) : v;
}
__global__ void __launch_bounds__(kThreads) scale_and_cap_all(float* y, int64_t count, bool quads, float scale, float cap) {
  let_next_begin();
  wait_for_previous();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t whole = quads ? count / 4 : 0;
  for (int64_t q = first; q < whole; q += step) {
    float4 v = reinterpret_cast<float4*>(y)[q];
    v = {scaled_and_capped(v.x, scale, cap), scaled_and_capped(v.y, scale, cap), scaled_and_capped(v.z, scale, cap), scaled_and_capped(v.w, scale, cap)};
    reinterpret_cast<float4*>(y)[q] = v;
  }
  for (int64_t i = whole * 4 + first; i < count; i += step) y[i] = scaled_and_capped(y[i], scale, cap);
}

// Where rows are many, a block takes four of them one after another.
int64_t blocks_of_rows(int64_t rows) { return std::min<int64_t>(rows < 1024 ? rows : (rows + 3) / 4, 65535); }

}  // namespace

void embed(const Launch& how, const EmbedCall& call) {
  if (call.most_rows == 0 || call.hidden == 0) return;
  const bool quads = call.hidden % 4 == 0 && call.table_stride % 4 == 0 && aligned(call.x) && aligned(call.table);
  by_element(call.table_element, [&](auto t) {
    using T = decltype(t);
    if (quads) {
      launch(how, embed_quads<T>, grid_over((call.hidden / 4 + kQuads - 1) / kQuads, call.most_rows), dim3(kThreads), 0, "embedding", call);
    } else {
      launch(how, embed_rows<T>, grid_over(call.hidden, call.most_rows), dim3(kThreads), 0, "embedding", call);
    }
  });
}

void add_positions(const Launch& how, const PositionsCall& call) {
  if (call.most_rows == 0 || call.hidden == 0) return;
  by_element(call.table_element, [&](auto t) {
    launch(how, add_position_rows<decltype(t)>, grid_over(call.hidden, call.most_rows), dim3(kThreads), 0, "positions", call);
  });
}

void normalize_heads(const Launch& how, NormKind kind, float epsilon, const float* weight, void* y, Element element, int64_t rows, int64_t heads, int64_t width,
                     int64_t stride) {
  if (rows == 0 || heads == 0) return;
  by_element(element, [&](auto t) {
    using T = decltype(t);
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((rows * heads + kThreads / 32 - 1) / (kThreads / 32), 65535));
    launch(how, normalize_heads_of_rows<T>, dim3(blocks), dim3(kThreads), 0, "norm of heads", kind, epsilon, weight, static_cast<T*>(y), rows, static_cast<int>(heads),
           static_cast<int>(width), stride);
  });
}

void add_weighted(const Launch& how, const float* logits, const float* values, float* y, int64_t rows, int64_t width) {
  if (rows == 0 || width == 0) return;
  launch(how, add_weighted_rows, grid_over(width, blocks_of_rows(rows)), dim3(kThreads), 0, "weighted sum", logits, values, y, rows, width);
}

void enter(const Launch& how, const EnterCall& call) {
  if (call.rows == 0 || call.hidden == 0) return;
  const bool quads = call.hidden % 4 == 0 && call.hidden <= 4 * 4 * kMostThreads && aligned(call.x) && aligned(call.pending) && aligned(call.h) &&
                     aligned(call.weight) && aligned(call.bias);
  by_element(call.element, [&](auto t) {
    using T = decltype(t);
    if (quads) {  // two quads a thread: enough in flight when rows are many, and a short wait when there is one
      const auto threads = std::clamp<int64_t>((call.hidden / 4 + 63) / 64 * 32, 32, kMostThreads);
      launch(how, call.hidden <= 4 * 2 * kMostThreads ? enter_quads<T, 2> : enter_quads<T, 4>, dim3(static_cast<unsigned>(call.rows)),
             dim3(static_cast<unsigned>(threads)), 0, "norm", call);
    } else {
      launch(how, enter_rows<T>, dim3(static_cast<unsigned>(call.rows)), dim3(kThreads), 0, "norm", call);
    }
  });
}

void activate(const Launch& how, Activation activation, const void* gate, const void* up, void* out, Element element, int64_t rows, int64_t width,
              int64_t in_stride, int64_t out_stride) {
  if (rows == 0 || width == 0) return;
  by_element(element, [&](auto t) {
    using T = decltype(t);
    constexpr int64_t kEach = 16 / sizeof(T);
    const bool vectors = (width | in_stride | out_stride) % kEach == 0 && aligned(gate) && aligned(up) && aligned(out);
    launch(how, vectors ? activate_vectors<T> : activate_rows<T>, grid_over(vectors ? width / kEach : width, blocks_of_rows(rows)), dim3(kThreads), 0, "activation",
           activation, static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(out), rows, width, in_stride, out_stride);
  });
}

void add_bias(const Launch& how, const float* bias, void* y, Element element, int64_t rows, int64_t width, int64_t stride) {
  if (rows == 0 || width == 0) return;
  by_element(element, [&](auto t) {
    using T = decltype(t);
    constexpr int64_t kEach = 16 / sizeof(T);
    const bool vectors = (width | stride) % kEach == 0 && aligned(y) && aligned(bias);
    launch(how, vectors ? bias_vectors<T> : bias_rows<T>, grid_over(vectors ? width / kEach : width, blocks_of_rows(rows)), dim3(kThreads), 0, "bias", bias,
           static_cast<T*>(y), rows, width, stride);
  });
}

void scale_and_cap(const Launch& how, float* y, int64_t count, float scale, float soft_cap) {
  if (count == 0) return;
  launch(how, scale_and_cap_all, dim3(static_cast<unsigned>(std::min<int64_t>((count / 4 + kThreads) / kThreads, 2112))), dim3(kThreads), 0, "logits", y, count,
         aligned(y), scale, soft_cap);
}

}  // namespace tandem::cuda
