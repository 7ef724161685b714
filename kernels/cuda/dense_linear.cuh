// The kernels over row-major weights. Sixteen rows of a weight are the A operand of mma.m16n8k16, eight rows of activations B. The order of
// columns inside a product is free as long as both sides agree: a lane's 16 bytes of a weight row are multiplied as they come, with the
// same 16 bytes of an activation row, so that both are read as they lie and nothing is shuffled.
//
// Blocks stay and go through block tiles: kWarps / k_groups row groups of R * 16 rows, each shared by k_groups warps, which divide every
// chunk of columns among them. Activations are in shared memory, a chunk a stage: all of them when they fit (read once), else they stream
// through behind the weights. Weights go straight to registers, one chunk ahead, also from one block tile to the next.
#pragma once
#include "kernels/base/cuda/element.cuh"
#include "kernels/base/cuda/launch.h"
#include "kernels/base/cuda/mma.cuh"
#include "kernels/base/cuda/reduce.cuh"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/linear.h"

namespace tandem::cuda {

constexpr int kDenseWarps = 8, kDenseThreads = 32 * kDenseWarps;
constexpr int kDenseUnit = 32;         // columns of one step of a warp: 64 bytes of a row
constexpr int kStagePad = 64;          // bytes past each row of a stage: lanes of two rows read different banks
constexpr int kSumStride = 20;         // floats from token to token of a tile's 16 sums, likewise
constexpr int kNormColumns = 8192;     // the most that a block normalizes on the way, kept in registers
constexpr int kPlainRows = 8;          // activation rows at a time without the matrix unit

struct DenseMatrix {
  const std::byte* data = nullptr;
  const std::byte* const* experts = nullptr;  // device, instead of data: of each expert
  const float* bias = nullptr;
  int32_t rows = 0;
  int32_t first_tile = 0;  // its tiles of 16 rows are numbered from here, after those of the products before it
  int32_t first_row = 0;   // its rows of y
};

struct DenseProducts {
  DenseMatrix matrix[3];
  int32_t products = 1, tiles = 0;       // tiles of all products; gated: those of the two products alternate
  int32_t stride = 0;                    // of the weights' rows
  int32_t first_column = 0, cols = 0, readable = 0;  // the columns to multiply; those that may be read, whose padding is zero
  LinearInput input;
  bool aligned = false;                  // rows of the input are read 16 bytes at a time
  int32_t rows = 0;                      // of activations
  const int32_t* begin = nullptr;        // experts: block z has rows [begin[z], begin[z + 1]) instead
  LinearOutput output = LinearOutput::store;
  Activation activation = Activation::none;
  void* y = nullptr;
  int64_t y_stride = 0;
  float scale = 1, soft_cap = 0;
  int32_t k_groups = 8, chunks = 1, stages = 1;
  int32_t block_tiles = 0;
};

template <typename T>
__device__ __forceinline__ void put(const DenseProducts& p, int64_t at, float value, float second) {
  switch (p.output) {
    case LinearOutput::add_f32: static_cast<float*>(p.y)[at] += value; return;
    case LinearOutput::store_f32:
      value *= p.scale;
      static_cast<float*>(p.y)[at] = p.soft_cap > 0 ? p.soft_cap * tanhf(value / p.soft_cap) : value;
      return;
    case LinearOutput::gated: value = activated(p.activation, value) * second; break;
    case LinearOutput::activated: value = activated(p.activation, value); break;
    default: break;
  }
  static_cast<T*>(p.y)[at] = from_float<T>(value);
}

struct DensePlace {  // of a tile in the numbering over all products
  int product, row;
};
__device__ __forceinline__ DensePlace place_of(const DenseProducts& p, int tile) {
  if (p.output == LinearOutput::gated) return {tile & 1, (tile >> 1) * 16};
  int product = 0;
  if (p.products > 1 && tile >= p.matrix[1].first_tile) product = 1;
  if (p.products > 2 && tile >= p.matrix[2].first_tile) product = 2;
  return {product, (tile - p.matrix[product].first_tile) * 16};
}

template <typename T>
__device__ __forceinline__ const T* weights_of(const DenseMatrix& m) {
  return reinterpret_cast<const T*>(m.experts != nullptr ? m.experts[blockIdx.z] : m.data);
}
__device__ __forceinline__ int64_t input_row(const LinearInput& in, int row) { return in.row_of != nullptr ? in.row_of[row] : row; }

__device__ __forceinline__ uint4 load_weights(const void* p) {  // read once: kept out of L1
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {  // 16 bytes, or zeros
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the newest `left` groups have arrived.
__device__ __forceinline__ void wait_groups(int left) {
  if (left == 0) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
  } else if (left == 1) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  } else {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  }
}

// Columns of one chunk of `count` rows, zeros past the last column.
template <typename T>
__device__ __forceinline__ void stage_chunk(const DenseProducts& p, int first, int count, int chunk, int columns, unsigned char* stage) {
  const int stride = columns * 2 + kStagePad, begin = chunk * columns;
  const T* const values = static_cast<const T*>(p.input.values) + p.first_column;
  if (p.aligned) {
    const int pieces = columns / 8, shift = __ffs(pieces) - 1;  // a power of two
    for (int i = threadIdx.x; i < count * pieces; i += kDenseThreads) {
      const int token = i >> shift, piece = i & (pieces - 1), column = begin + piece * 8;
      const bool inside = column < p.cols;
      copy_async(stage + token * stride + piece * 16, values + (inside ? input_row(p.input, first + token) * p.input.stride + column : 0), inside);
    }
  } else {
    for (int token = 0; token < count; ++token) {
      const T* const x = values + input_row(p.input, first + token) * p.input.stride;
      for (int i = threadIdx.x; i < columns; i += kDenseThreads) {
        reinterpret_cast<T*>(stage + token * stride)[i] = begin + i < p.cols ? x[begin + i] : from_float<T>(0.0f);
      }
    }
  }
}

// All chunks of the norm of `count` rows. Columns are a multiple of 4.
template <typename T>
__device__ __forceinline__ void stage_normalized(const DenseProducts& p, int first, int count, int columns, unsigned char* stages, int stage_bytes, float* sums) {
  constexpr int kEach = kNormColumns / 4 / kDenseThreads;
  const int stride = columns * 2 + kStagePad, quads = p.cols / 4, padded = p.chunks * columns / 4;
  for (int token = 0; token < count; ++token) {
    const auto* const x = reinterpret_cast<const float4*>(p.input.residual + input_row(p.input, first + token) * p.input.stride);
    float4 v[kEach];
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = threadIdx.x + k * kDenseThreads;
      v[k] = i < quads ? __ldcg(x + i) : make_float4(0, 0, 0, 0);
      squares += v[k].x * v[k].x + v[k].y * v[k].y + v[k].z * v[k].z + v[k].w * v[k].w;
    }
    const float inverse = rsqrtf(block_sum(squares, sums) / static_cast<float>(p.cols) + p.input.epsilon);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = threadIdx.x + k * kDenseThreads;
      if (i >= padded) break;
      const float4 w = i < quads ? __ldg(reinterpret_cast<const float4*>(p.input.norm_weight) + i) : make_float4(0, 0, 0, 0);
      const int chunk = i * 4 / columns, column = i * 4 % columns;
      T* const to = reinterpret_cast<T*>(stages + chunk * stage_bytes + token * stride) + column;
      to[0] = from_float<T>(v[k].x * inverse * w.x), to[1] = from_float<T>(v[k].y * inverse * w.y);
      to[2] = from_float<T>(v[k].z * inverse * w.z), to[3] = from_float<T>(v[k].w * inverse * w.w);
    }
    for (int i = threadIdx.x + kEach * kDenseThreads; i < padded; i += kDenseThreads) {  // padding of the last chunk
      const int chunk = i * 4 / columns, column = i * 4 % columns;
      T* const to = reinterpret_cast<T*>(stages + chunk * stage_bytes + token * stride) + column;
      for (int k = 0; k < 4; ++k) to[k] = from_float<T>(0.0f);
    }
  }
}

// N: tiles of 8 activation rows; block y has rows from 8 N y on. R: tiles of 16 weight rows of a warp. D: units of a warp in a chunk.
template <typename T, int N, int R, int D>
__global__ void __launch_bounds__(kDenseThreads, N <= 2 ? 2 : 1) multiply_dense(const __grid_constant__ DenseProducts p) {
  constexpr int kTogether = N < 2 ? N : 2, kGroups = N / kTogether;
  constexpr int kSums = R * N * 8 * kSumStride, kSumBuffers = N <= 2 ? 2 : 1;  // floats of a warp's sums
  extern __shared__ __align__(128) unsigned char shared[];
  float* const sums = reinterpret_cast<float*>(shared);
  unsigned char* const stages = shared + sizeof(float) * kSums * kDenseWarps * kSumBuffers;
  let_next_begin();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
  const int k_group = warp % p.k_groups, row_group = warp / p.k_groups, row_groups = kDenseWarps / p.k_groups;
  const int columns = p.k_groups * D * kDenseUnit;

  // The next chunk of weights: pointers to it, and how far they may be followed.
  const T* row[R][2];
  int limit[R][2];
  const int own = k_group * D * kDenseUnit + 8 * q;
  const auto enter_tile = [&](int block_tile) {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const int tile = (block_tile * row_groups + row_group) * R + i;
      const bool there = block_tile < p.block_tiles && tile < p.tiles;
      const DensePlace place = place_of(p, there ? tile : 0);
      const DenseMatrix& m = p.matrix[place.product];
      const T* const data = weights_of<T>(m);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int at = place.row + r + 8 * h;
        limit[i][h] = there && at < m.rows ? p.readable : 0;
        row[i][h] = data + static_cast<int64_t>(at) * p.stride + p.first_column;
      }
    }
  };
  uint4 ahead[D][R][2];
  const auto load = [&](int j, int chunk_begin) {
    const int column = chunk_begin + own + j * kDenseUnit;
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) ahead[j][i][h] = column < limit[i][h] ? load_weights(row[i][h] + column) : make_uint4(0, 0, 0, 0);
    }
  };
  int block_tile = blockIdx.x;
  int first = 0, rows = p.rows;
  if (p.begin != nullptr) {  // which experts are wanted is only known now
    wait_for_previous();
    first = p.begin[blockIdx.z], rows = p.begin[blockIdx.z + 1];
  }
  first += static_cast<int>(blockIdx.y) * N * 8;
  const int count = min(N * 8, rows - first);
  if (count <= 0) return wait_for_previous();
  enter_tile(block_tile);
#pragma unroll
  for (int j = 0; j < D; ++j) load(j, 0);
  if (p.begin == nullptr) wait_for_previous();

  const int token_stride = columns * 2 + kStagePad, stage_bytes = count * token_stride;
  const bool resident = p.chunks <= p.stages;
  if (p.input.residual != nullptr) {
    stage_normalized<T>(p, first, count, columns, stages, stage_bytes, sums);
  } else {
    for (int c = 0; c < (resident ? p.chunks : p.stages - 1); ++c) {
      stage_chunk<T>(p, first, count, c % p.chunks, columns, stages + c * stage_bytes);
      end_group();
    }
  }
  if (resident) {
    wait_groups(0);
    __syncthreads();
  }
  int token_at[N];
#pragma unroll
  for (int n = 0; n < N; ++n) token_at[n] = min(n * 8 + r, count - 1) * token_stride + own * 2;  // past the last row: again it, for nothing

  int left = (p.block_tiles - block_tile + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x) * p.chunks;  // chunks to come
  int slot = 0, incoming = (p.stages - 1) % p.chunks;  // streaming: the stage now read, the chunk next asked for
  int buffer = 0;
  for (; block_tile < p.block_tiles; block_tile += gridDim.x) {
    float sum[R][N][4] = {};
    for (int chunk = 0; chunk < p.chunks; ++chunk, --left) {
      if (!resident) {
        wait_groups(p.stages - 2);
        __syncthreads();
        if (left >= p.stages) {
          const int to = slot == 0 ? p.stages - 1 : slot - 1;
          stage_chunk<T>(p, first, count, incoming, columns, stages + to * stage_bytes);
          incoming = incoming + 1 == p.chunks ? 0 : incoming + 1;
        }
        end_group();
      } else {
        slot = chunk;
      }
      const unsigned char* const stage = stages + slot * stage_bytes;
      const bool last = chunk + 1 == p.chunks;
      if (last) enter_tile(block_tile + static_cast<int>(gridDim.x));
      const int next_begin = last ? 0 : (chunk + 1) * columns;
      const int units = p.cols - chunk * columns - k_group * D * kDenseUnit;  // columns of this warp's units: past them all is zero
      uint4 x[2][kTogether];
      const auto read = [&](int group, uint4 (&to)[kTogether]) {  // activations of one unit, kTogether tiles of them
#pragma unroll
        for (int n = 0; n < kTogether; ++n) {
          to[n] = *reinterpret_cast<const uint4*>(stage + token_at[group % kGroups * kTogether + n] + group / kGroups * kDenseUnit * 2);
        }
      };
      read(0, x[0]);
#pragma unroll
      for (int j = 0; j < D; ++j) {
#pragma unroll
        for (int part = 0; part < kGroups; ++part) {
          const int group = j * kGroups + part;
          if (group + 1 < D * kGroups) read(group + 1, x[(group + 1) % 2]);
          if (j * kDenseUnit >= units) continue;
          const uint4(&b)[kTogether] = x[group % 2];
#pragma unroll
          for (int n = 0; n < kTogether; ++n) {  // sums that do not wait for one another, one after the other
#pragma unroll
            for (int i = 0; i < R; ++i) mma(sum[i][part * kTogether + n], ahead[j][i][0].x, ahead[j][i][1].x, ahead[j][i][0].y, ahead[j][i][1].y, b[n].x, b[n].y, T{});
          }
#pragma unroll
          for (int n = 0; n < kTogether; ++n) {
#pragma unroll
            for (int i = 0; i < R; ++i) mma(sum[i][part * kTogether + n], ahead[j][i][0].z, ahead[j][i][1].z, ahead[j][i][0].w, ahead[j][i][1].w, b[n].z, b[n].w, T{});
          }
        }
        load(j, next_begin);
      }
      if (!resident) slot = slot + 1 == p.stages ? 0 : slot + 1;
    }

    // Sums of a row group's warps meet in shared memory: [row group][k group][R][token][16 rows].
    float* const mine = sums + (buffer * kDenseWarps + warp) * kSums;
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) mine[((i * N + n) * 8 + 2 * q + k % 2) * kSumStride + r + k / 2 * 8] = sum[i][n][k];
      }
    }
    __syncthreads();
    const bool gated = p.output == LinearOutput::gated;
    const int height = row_groups * R * 16 / (gated ? 2 : 1), shift = __ffs(height) - 1;
    const auto total = [&](int tile, int token, int out) {
      const float* from = sums + (buffer * kDenseWarps + tile / R * p.k_groups) * kSums + (tile % R * N * 8 + token) * kSumStride + out;
      float value = 0;
      for (int g = 0; g < p.k_groups; ++g) value += from[g * kSums];
      return value;
    };
    for (int i = threadIdx.x; i < height * count; i += kDenseThreads) {
      const int token = i >> shift, out = i & (height - 1), tile = out / 16 * (gated ? 2 : 1);
      if (block_tile * row_groups * R + tile >= p.tiles) continue;
      const DensePlace place = place_of(p, block_tile * row_groups * R + tile);
      const DenseMatrix& m = p.matrix[place.product];
      const int at = place.row + out % 16;
      if (at >= m.rows) continue;
      float value = total(tile, token, out % 16), second = 0;
      if (m.bias != nullptr) value += m.bias[at];
      if (gated) {
        second = total(tile + 1, token, out % 16);
        if (p.matrix[1].bias != nullptr) second += p.matrix[1].bias[at];
      }
      put<T>(p, (first + token) * p.y_stride + m.first_row + at, value, second);
    }
    if constexpr (kSumBuffers == 2) {
      buffer ^= 1;
    } else {
      __syncthreads();
    }
  }
}

// Without the matrix unit: fp32. A warp has two rows of the weights (of both products when gated), kPlainRows rows of activations.
static __global__ void __launch_bounds__(kDenseThreads) multiply_plain(const __grid_constant__ DenseProducts p) {
  let_next_begin();
  wait_for_previous();
  const int lane = threadIdx.x % 32, unit = static_cast<int>(blockIdx.x) * kDenseWarps + threadIdx.x / 32;
  const bool gated = p.output == LinearOutput::gated;
  int first = 0, rows = p.rows;
  if (p.begin != nullptr) first = p.begin[blockIdx.z], rows = p.begin[blockIdx.z + 1];
  first += static_cast<int>(blockIdx.y) * kPlainRows;
  const int count = min(kPlainRows, rows - first);
  const int tile = gated ? unit / 16 * 2 : unit / 8;
  if (count <= 0 || tile >= p.tiles) return;
  const DensePlace place = place_of(p, tile);
  const DenseMatrix &m0 = p.matrix[place.product], &m1 = p.matrix[gated ? 1 : place.product];
  const int row0 = place.row + (gated ? unit % 16 : unit % 8), row1 = gated ? row0 : row0 + 8;
  if (row0 >= m0.rows) return;
  const float* const w0 = weights_of<float>(m0) + static_cast<int64_t>(row0) * p.stride;
  const float* const w1 = weights_of<float>(m1) + static_cast<int64_t>(min(row1, m1.rows - 1)) * p.stride;
  const float* x[kPlainRows];
#pragma unroll
  for (int t = 0; t < kPlainRows; ++t) x[t] = static_cast<const float*>(p.input.values) + input_row(p.input, first + min(t, count - 1)) * p.input.stride;
  float sum[kPlainRows][2] = {};
  if (p.aligned) {
    for (int i = lane * 4; i < p.cols; i += 128) {
      const float4 a = __ldg(reinterpret_cast<const float4*>(w0 + i)), b = __ldg(reinterpret_cast<const float4*>(w1 + i));
#pragma unroll
      for (int t = 0; t < kPlainRows; ++t) {
        const float4 v = *reinterpret_cast<const float4*>(x[t] + i);
        sum[t][0] += a.x * v.x + a.y * v.y + a.z * v.z + a.w * v.w;
        sum[t][1] += b.x * v.x + b.y * v.y + b.z * v.z + b.w * v.w;
      }
    }
  } else {
    for (int i = lane; i < p.cols; i += 32) {
      const float a = __ldg(w0 + i), b = __ldg(w1 + i);
#pragma unroll
      for (int t = 0; t < kPlainRows; ++t) sum[t][0] += a * x[t][i], sum[t][1] += b * x[t][i];
    }
  }
#pragma unroll
  for (int t = 0; t < kPlainRows; ++t) {
    const float s0 = warp_sum(sum[t][0]), s1 = warp_sum(sum[t][1]);
    if (lane != 0 || t >= count) continue;
    const float value = s0 + (m0.bias != nullptr ? m0.bias[row0] : 0.0f);
    const float second = s1 + (m1.bias != nullptr && row1 < m1.rows ? m1.bias[row1] : 0.0f);
    const int64_t at = (first + t) * p.y_stride + m0.first_row;
    put<float>(p, at + row0, value, second);
    if (!gated && row1 < m1.rows) put<float>(p, at + row1, second, 0);
  }
}

// One block a row: the norm as T, [rows, dense_stride(cols)], the padding zero.
template <typename T>
__global__ void __launch_bounds__(kDenseThreads) normalize_rows(const LinearInput in, const int cols, const int out_stride, T* __restrict__ out) {
  __shared__ float sums[32];
  let_next_begin();
  wait_for_previous();
  const float* const x = in.residual + input_row(in, blockIdx.x) * in.stride;
  float squares = 0;
  for (int i = threadIdx.x; i < cols; i += kDenseThreads) squares += x[i] * x[i];
  const float inverse = rsqrtf(block_sum(squares, sums) / static_cast<float>(cols) + in.epsilon);
  for (int i = threadIdx.x; i < out_stride; i += kDenseThreads) {
    out[static_cast<int64_t>(blockIdx.x) * out_stride + i] = from_float<T>(i < cols ? x[i] * inverse * in.norm_weight[i] : 0.0f);
  }
}

}  // namespace tandem::cuda
