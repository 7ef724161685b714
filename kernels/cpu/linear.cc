#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/linear_isa.h"

namespace tandem::cpu {
namespace {

// The oracle: weights dequantized when they are packed, row-major, products accumulated in double.
constexpr int kOracleTile = 16;

LinearKernel::Bytes oracle_resident(const Format&, int64_t rows, int64_t cols) {
  const int64_t tiles = (rows + kOracleTile - 1) / kOracleTile;
  return {static_cast<uint64_t>(tiles * kOracleTile * cols) * sizeof(float), 0};
}
void oracle_pack(const QuantizedView& slice, int64_t tile_begin, int64_t tile_end, std::byte* destination) {
  auto* out = reinterpret_cast<float*>(destination);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t row = tile * kOracleTile, rows = std::min<int64_t>(kOracleTile, slice.rows - row);
    slice.format->dequantize(slice, row, rows, out + row * slice.cols);
    std::fill_n(out + (row + rows) * slice.cols, (kOracleTile - rows) * slice.cols, 0.0f);
  }
}
void oracle_multiply(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens, int64_t tile_begin,
                     int64_t tile_end, float* y, int64_t y_stride) {
  const auto* w = reinterpret_cast<const float*>(resident);
  const int64_t end = std::min(rows, tile_end * kOracleTile);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = tile_begin * kOracleTile; r < end; ++r) {
      double sum = 0;
      for (int64_t k = 0; k < cols; ++k) sum += static_cast<double>(w[r * cols + k]) * x.values[t * x.stride + k];
      y[t * y_stride + r] = static_cast<float>(sum);
    }
  }
}
void oracle_row(const std::byte* resident, int64_t, int64_t cols, int64_t r, float* out) {
  std::memcpy(out, reinterpret_cast<const float*>(resident) + r * cols, static_cast<size_t>(cols) * sizeof(float));
}
constexpr LinearKernel kOracle = {"any_fp32_oracle", "",          Activations::fp32, kOracleTile,
                                  oracle_resident,   oracle_pack, oracle_multiply,   oracle_row};

}  // namespace

Features detect_features() {
  Features f;
#if defined(__x86_64__)
  __builtin_cpu_init();
  f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
  f.avx512_vnni = f.avx512 && __builtin_cpu_supports("avx512vnni");
  f.avx512_bf16 = f.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return f;
}

namespace {

// One list per combination that matters, made when it is first asked for: the tables of an instruction set are compiled for it and run
// on no other machine.
template <bool vnni, bool avx2>
std::span<const LinearKernel* const> kernel_list() {
  static const std::vector<const LinearKernel*> made = [] {
    std::vector<const LinearKernel*> list;
    if (vnni) list.insert(list.end(), avx512vnni_kernels().begin(), avx512vnni_kernels().end());
    if (avx2) list.insert(list.end(), avx2_kernels().begin(), avx2_kernels().end());
    list.push_back(&kOracle);
    return list;
  }();
  return made;
}

}  // namespace

std::span<const LinearKernel* const> linear_kernels(const Features& features) {
  constexpr std::span<const LinearKernel* const> (*kLists[])() = {kernel_list<false, false>, kernel_list<false, true>, kernel_list<true, false>,
                                                                  kernel_list<true, true>};
  return kLists[(features.avx512_vnni ? 2 : 0) + (features.avx2 ? 1 : 0)]();
}

const LinearKernel& choose_linear(const Format& format, Activations wanted, const Features& features) {
  const auto kernels = linear_kernels(features);
  for (const Activations activations : {wanted, Activations::fp32}) {
    for (const LinearKernel* kernel : kernels) {
      if (kernel->format == family(format) && kernel->activations == activations) return *kernel;
    }
  }
  for (const LinearKernel* kernel : kernels) {
    if (kernel->format.empty()) return *kernel;
  }
  return kOracle;
}

void quantize_rows(const float* x, int64_t stride, int64_t cols, int64_t token_begin, int64_t token_end, Int8Block* out,
                   const Features& features) {
  using Quantize = void (*)(const float*, int64_t, Int8Block*);
  const Quantize quantize = features.avx512_vnni ? avx512vnni_quantize_row : features.avx2 ? avx2_quantize_row : quantize_row;
  for (int64_t t = token_begin; t < token_end; ++t) quantize(x + t * stride, cols, out + t * int8_blocks(cols));
}

void quantize_block(const float* x, int64_t count, Int8Block* out) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!(std::fabs(x[i]) <= most)) most = std::fabs(x[i]);  // a NaN stays
    if (most != most) break;
  }
  // Below kLeast the reciprocal would overflow. Of a block that is not finite only the scale says so: products become NaN.
  constexpr float kLeast = 1e-36f;
  const bool usable = most >= kLeast && most <= std::numeric_limits<float>::max();
  out->scale = most < kLeast ? 0.0f : usable ? most / 127.0f : std::numeric_limits<float>::quiet_NaN();
  const float inverse = usable ? 127.0f / most : 0.0f;
  int32_t sums[2] = {0, 0};
  for (int64_t i = 0; i < 32; ++i) {
    out->codes[i] = usable && i < count ? static_cast<int8_t>(std::nearbyintf(x[i] * inverse)) : 0;
    sums[i / 16] += out->codes[i];
  }
  out->sum = out->scale * static_cast<float>(sums[0] + sums[1]);
  out->offset[0] = -8 * sums[0];
  out->offset[1] = -8 * sums[1];
}

void quantize_row(const float* x, int64_t cols, Int8Block* out) {
  for (int64_t k = 0; k < cols; k += 32) quantize_block(x + k, std::min<int64_t>(32, cols - k), out++);
}

}  // namespace tandem::cpu
