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

std::span<const LinearKernel* const> linear_kernels(const Features& features) {
  // One list per combination that matters, made once; kernels are constants.
  static const auto make = [](bool vnni, bool avx2) {
    std::vector<const LinearKernel*> list;
    if (vnni) list.insert(list.end(), avx512vnni_kernels().begin(), avx512vnni_kernels().end());
    if (avx2) list.insert(list.end(), avx2_kernels().begin(), avx2_kernels().end());
    list.push_back(&kOracle);
    return list;
  };
  static const std::vector<const LinearKernel*> lists[4] = {make(false, false), make(false, true), make(true, false), make(true, true)};
  return lists[(features.avx512_vnni ? 2 : 0) + (features.avx2 ? 1 : 0)];
}

const LinearKernel& choose_linear(const Format& format, Activations wanted, const Features& features) {
  const auto kernels = linear_kernels(features);
  for (const Activations activations : {wanted, Activations::fp32}) {
    for (const LinearKernel* kernel : kernels) {
      if (kernel->format == format.name() && kernel->activations == activations) return *kernel;
    }
  }
  for (const LinearKernel* kernel : kernels) {
    if (kernel->format.empty()) return *kernel;
  }
  return kOracle;
}

uint64_t int8_rows_bytes(int64_t tokens, int64_t cols) {
  const int64_t blocks = (cols + 31) / 32;
  return static_cast<uint64_t>(tokens * blocks) * (32 + 4 + 4 + 8);
}

Int8Rows int8_rows(std::byte* buffer, int64_t tokens, int64_t cols) {
  const int64_t blocks = (cols + 31) / 32, count = tokens * blocks;
  Int8Rows rows;
  rows.padded_cols = blocks * 32;
  rows.codes = reinterpret_cast<int8_t*>(buffer);
  rows.scales = reinterpret_cast<float*>(buffer + count * 32);
  rows.sums = rows.scales + count;
  rows.offsets = reinterpret_cast<int32_t*>(rows.sums + count);
  return rows;
}

void quantize_rows(const float* x, int64_t stride, int64_t cols, int64_t token_begin, int64_t token_end, const Int8Rows& out,
                   const Features&) {
  constexpr float kLeast = 1e-36f;
  const int64_t blocks = out.padded_cols / 32;
  for (int64_t t = token_begin; t < token_end; ++t) {
    for (int64_t b = 0; b < blocks; ++b) {
      const float* from = x + t * stride + b * 32;
      const int64_t count = std::min<int64_t>(32, cols - b * 32);
      float most = 0;
      for (int64_t i = 0; i < count; ++i) {
        if (!(std::fabs(from[i]) <= most)) most = std::fabs(from[i]);  // a NaN stays
        if (most != most) break;
      }
      // Below kLeast the reciprocal would overflow. Of a block that is not finite only the scale says so: products become NaN.
      const bool usable = most >= kLeast && most <= std::numeric_limits<float>::max();
      const float scale = most < kLeast ? 0.0f : usable ? most / 127.0f : std::numeric_limits<float>::quiet_NaN();
      const float inverse = usable ? 127.0f / most : 0.0f;
      int32_t sums[2] = {0, 0};
      int8_t* codes = out.codes + t * out.padded_cols + b * 32;
      for (int64_t i = 0; i < 32; ++i) {
        codes[i] = usable && i < count ? static_cast<int8_t>(std::nearbyintf(from[i] * inverse)) : 0;
        sums[i / 16] += codes[i];
      }
      const int64_t at = t * blocks + b;
      out.scales[at] = scale;
      out.sums[at] = scale * static_cast<float>(sums[0] + sums[1]);
      out.offsets[at * 2] = -8 * sums[0];
      out.offsets[at * 2 + 1] = -8 * sums[1];
    }
  }
}

}  // namespace tandem::cpu
