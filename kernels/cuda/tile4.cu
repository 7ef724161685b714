// Which kernel multiplies with 4-bit tiles, and the norm ahead of those for several rows.
#include "kernels/cuda/tile4.h"

#include <algorithm>

#include "kernels/cuda/tile4_launch.h"

namespace tandem::cuda {
namespace {

// One block a row: h = norm(x) as bf16. [rows, cols]
__global__ void __launch_bounds__(512) normalize(const LinearInput in, const int cols, bf16* __restrict__ out) {
  __shared__ float warp_sums[16];
  let_next_begin();
  wait_for_previous();
  const int64_t row = in.row_of != nullptr ? in.row_of[blockIdx.x] : blockIdx.x;
  const auto* const x = reinterpret_cast<const float4*>(in.residual + row * in.stride);
  float squares = 0;
  for (int i = threadIdx.x; i < cols / 4; i += 512) {
    const float4 v = __ldcg(x + i);
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  for (int mask = 16; mask > 0; mask >>= 1) squares += __shfl_xor_sync(~0u, squares, mask);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < 16; ++i) total += warp_sums[i];
  const float inverse = rsqrtf(total / static_cast<float>(cols) + in.epsilon);
  for (int i = threadIdx.x; i < cols / 4; i += 512) {
    const float4 v = __ldcg(x + i), n = __ldg(reinterpret_cast<const float4*>(in.norm_weight) + i);
    reinterpret_cast<uint2*>(out + static_cast<int64_t>(blockIdx.x) * cols)[i] =
        make_uint2(pair_of<bf16>(v.x * inverse * n.x, v.y * inverse * n.y), pair_of<bf16>(v.z * inverse * n.z, v.w * inverse * n.w));
  }
}

}  // namespace

void tile4_linear(const Launch& how, const LinearCall& call, const LinearScratch& scratch) {
  if (call.input.element != Element::bf16) fail(Code::internal, "tile4_linear", "activations must be bf16");
  TileProducts p;
  p.products = static_cast<int32_t>(call.products.size());
  bool nested = false;
  int32_t row = 0;
  for (int i = 0; i < p.products; ++i) {
    const BoundProduct& product = call.products[i];
    const Tile4 shape = tile4(*product.weight.format, product.weight.rows, product.weight.cols);
    TileMatrix& m = p.matrix[i];
    m.data = product.weight.data, m.bias = product.bias;
    m.scales_offset = shape.scales_offset, m.nested_offset = shape.nested_offset, m.map_offset = shape.map_offset;
    m.rows = static_cast<int32_t>(shape.rows);
    m.first_tile = p.tiles, m.first_row = row;
    p.tiles += static_cast<int32_t>(shape.row_tiles), row += m.rows;
    if (i > 0 && (shape.nested != nested || product.weight.format != call.products[0].weight.format)) {
      fail(Code::internal, "tile4_linear", "products of one call have different formats");
    }
    nested = shape.nested;
    p.slices = static_cast<int32_t>(shape.slices), p.cols = static_cast<int32_t>(shape.cols);
  }
  p.rows = static_cast<int32_t>(call.rows);
  p.output = call.output, p.activation = call.activation;
  p.gated = call.output == LinearOutput::gated;
  p.y = call.y, p.y_stride = call.y_stride, p.scale = call.scale, p.soft_cap = call.soft_cap;
  if (call.rows == 1 && one_row_takes(*how.device, p, call.input)) return multiply_one_row(how, p, call.input, nested);
  LinearInput input = call.input;
  if (input.residual != nullptr) {
    if (static_cast<uint64_t>(call.rows * p.cols) * sizeof(bf16) > kTile4InputBytes || scratch.bytes < kTile4CounterBytes + kTile4InputBytes) {
      fail(Code::internal, "tile4_linear", "scratch is too small for the normalized rows");
    }
    auto* const normalized = reinterpret_cast<bf16*>(scratch.memory + kTile4CounterBytes);
    launch(how, normalize, static_cast<unsigned>(call.rows), 512, 0, "tile4_normalize", input, p.cols, normalized);
    input.values = normalized, input.residual = nullptr, input.stride = p.cols, input.row_of = nullptr;
  }
  // At most 32 rows a launch: 64 rows' activations leave no room beside the table for a useful run of columns.
  const int32_t all = p.rows, each = all <= 32 ? all : (all + 1) / 2;
  const int64_t y_size = p.output == LinearOutput::add_f32 || p.output == LinearOutput::store_f32 ? 4 : 2;
  for (int32_t begin = 0; begin < all; begin += each) {
    TileProducts part = p;
    LinearInput rows = input;
    part.rows = std::min(each, all - begin);
    part.y = static_cast<std::byte*>(p.y) + begin * p.y_stride * y_size;
    if (input.row_of != nullptr) {
      rows.row_of = input.row_of + begin;
    } else {
      rows.values = static_cast<const bf16*>(input.values) + begin * input.stride;
    }
    has_wgmma(*how.device) ? multiply_group_rows(how, part, rows, nested, scratch) : multiply_rows(how, part, rows, nested, scratch);
  }
}

}  // namespace tandem::cuda
