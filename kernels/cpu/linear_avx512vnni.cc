// AVX-512 with VNNI: a vector is a tile's 16 rows.
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12's own headers (bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/linear_isa.h"
#include "kernels/cpu/linear_layout.h"
#include "kernels/formats/int8.h"

namespace tandem::cpu {
namespace {

using F = __m512;
using I = __m512i;
using Table = __m512;
constexpr int kMaxTokens = 8;

inline F zero_f() { return _mm512_setzero_ps(); }
inline F load_f(const void* p) { return _mm512_loadu_ps(p); }
inline F load_half(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline F splat(const float* p) { return _mm512_set1_ps(*p); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
inline F round_here(F a) {
  asm("" : "+v"(a));
  return a;
}
inline F load_some(const float* p, int lanes) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), p); }
inline void store(float* p, F a, int lanes) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << lanes) - 1), a); }

inline I load_i(const void* p) { return _mm512_loadu_si512(p); }
inline I set(int x) { return _mm512_set1_epi32(x); }
inline I splat_i(const int32_t* p) { return _mm512_set1_epi32(*p); }
inline I and_(I a, I b) { return _mm512_and_si512(a, b); }
inline I or_(I a, I b) { return _mm512_or_si512(a, b); }
inline I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
template <int n>
inline I srl(I a) {
  return _mm512_srli_epi32(a, n);
}
template <int n>
inline I sll(I a) {
  return _mm512_slli_epi32(a, n);
}
inline I srl(I a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline F as_float(I a) { return _mm512_castsi512_ps(a); }
inline I bytes_u(const void* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline I bytes_s(const void* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline I lanes_i() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
inline I less_32(I a) { return _mm512_sub_epi8(a, _mm512_set1_epi8(32)); }
inline Table table(const float* p) { return _mm512_loadu_ps(p); }
inline F look_up(Table t, I index) { return _mm512_permutexvar_ps(index, t); }
inline F look_up_256(const float* p, I index) {  // 32 entries at a time, then by bits 5, 6 and 7
  const __mmask16 bit5 = _mm512_test_epi32_mask(index, set(32)), bit6 = _mm512_test_epi32_mask(index, set(64));
  F quarter[4];
  for (int i = 0; i < 4; ++i) {
    const float* at = p + 64 * i;
    const F even = _mm512_permutex2var_ps(load_f(at), index, load_f(at + 16));
    quarter[i] = _mm512_mask_mov_ps(even, bit5, _mm512_permutex2var_ps(load_f(at + 32), index, load_f(at + 48)));
  }
  const F low = _mm512_mask_mov_ps(quarter[0], bit6, quarter[1]), high = _mm512_mask_mov_ps(quarter[2], bit6, quarter[3]);
  return _mm512_mask_mov_ps(low, _mm512_test_epi32_mask(index, set(128)), high);
}
inline bool differ(I a, I b) { return _mm512_cmpneq_epi32_mask(a, b) != 0; }
inline F gather(const float* base, I index) { return _mm512_i32gather_ps(index, base, 4); }
template <int n>
inline I top_byte(I a) {
  constexpr int kOff = static_cast<int>(0x00808080u | static_cast<uint32_t>(n) << 24);
  return _mm512_shuffle_epi8(a, _mm512_add_epi8(_mm512_set1_epi32(kOff), _mm512_set4_epi32(0x0c000000, 0x08000000, 0x04000000, 0)));
}

inline I four(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}
inline I dot(I sum, I codes, const int8_t* p) { return _mm512_dpbusd_epi32(sum, codes, four(p)); }
// Signed codes are taken as code + 128, so sums start at -128 times the sum of the activations.
inline I prepare_signed(I codes) { return _mm512_xor_si512(codes, _mm512_set1_epi8(-128)); }
inline I signed_start(const int32_t* offset) { return _mm512_slli_epi32(splat_i(offset), 4); }
inline I dot_signed(I sum, I codes, const int8_t* p) { return dot(sum, codes, p); }

inline void quantize_32(const float* x, Int8Block* out) {
  const F a = load_f(x), b = load_f(x + 16);
  const F most_lanes = _mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b));
  const float most = _mm512_reduce_max_ps(most_lanes);
  // max drops a NaN in its first operand; unordered compares do not. What is odd goes the plain way.
  const bool odd = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) != 0 || !(most >= 1e-36f && most <= 3e38f);
  if (odd) return quantize_block(x, 32, out);
  const F inverse = _mm512_set1_ps(127.0f / most);
  const I p = _mm512_cvtps_epi32(mul(a, inverse)), q = _mm512_cvtps_epi32(mul(b, inverse));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out->codes), _mm512_cvtepi32_epi8(p));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out->codes + 16), _mm512_cvtepi32_epi8(q));
  const int32_t near = _mm512_reduce_add_epi32(p), far = _mm512_reduce_add_epi32(q);
  out->scale = most / 127.0f;
  out->sum = out->scale * static_cast<float>(near + far);
  out->offset[0] = -8 * near;
  out->offset[1] = -8 * far;
}

#include "kernels/cpu/linear_tile.h"

}  // namespace

std::span<const LinearKernel* const> avx512vnni_kernels() {
  static const LinearKernel kernels[] = TANDEM_KERNELS("avx512vnni");
  static const auto list = pointers(kernels);
  return list;
}

void avx512vnni_quantize_row(const float* x, int64_t cols, Int8Block* out) { quantize_row_here(x, cols, out); }

}  // namespace tandem::cpu
