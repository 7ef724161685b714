// AVX2: a tile's 16 rows are two vectors.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/linear_isa.h"
#include "kernels/cpu/linear_layout.h"
#include "kernels/formats/int8.h"

namespace tandem::cpu {
namespace {

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};
using Table = F;
constexpr int kMaxTokens = 2;  // sixteen registers

inline F zero_f() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F load_f(const void* p) {
  return {_mm256_loadu_ps(static_cast<const float*>(p)), _mm256_loadu_ps(static_cast<const float*>(p) + 8)};
}
inline F load_half(const void* p) {
  const auto* h = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
inline F splat(const float* p) {
  const __m256 x = _mm256_broadcast_ss(p);
  return {x, x};
}
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F fms(F x, F y, F z) { return {_mm256_fmsub_ps(x.a, y.a, z.a), _mm256_fmsub_ps(x.b, y.b, z.b)}; }
inline F round_here(F x) {
  asm("" : "+x"(x.a), "+x"(x.b));
  return x;
}
inline __m256i first_lanes(int lanes) {  // all ones in the first `lanes` of eight
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F load_some(const float* p, int lanes) {
  return {_mm256_maskload_ps(p, first_lanes(lanes)), lanes > 8 ? _mm256_maskload_ps(p + 8, first_lanes(lanes - 8)) : _mm256_setzero_ps()};
}
inline void store(float* p, F x, int lanes) {
  if (lanes >= 16) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
    return;
  }
  _mm256_maskstore_ps(p, first_lanes(lanes), x.a);
  if (lanes > 8) _mm256_maskstore_ps(p + 8, first_lanes(lanes - 8), x.b);
}

inline I load_i(const void* p) {
  const auto* v = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
inline I set(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I splat_i(const int32_t* p) { return set(*p); }
inline I and_(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline I or_(I x, I y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline I add_i(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
template <int n>
inline I srl(I x) {
  return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}
template <int n>
inline I sll(I x) {
  return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
inline I srl(I x, int n) {
  const __m128i count = _mm_cvtsi32_si128(n);
  return {_mm256_srl_epi32(x.a, count), _mm256_srl_epi32(x.b, count)};
}
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline F as_float(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline I bytes_u(const void* p) {
  const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
inline I bytes_s(const void* p) {
  const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}
inline I lanes_i() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)}; }
inline I less_32(I x) {
  const __m256i c = _mm256_set1_epi8(32);
  return {_mm256_sub_epi8(x.a, c), _mm256_sub_epi8(x.b, c)};
}
inline Table table(const float* p) { return load_f(p); }
inline __m256 look_up_8(Table t, __m256i index) {  // bit 3 of the index, moved to the sign, picks the half of the table
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.a, index), _mm256_permutevar8x32_ps(t.b, index),
                          _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
inline F look_up(Table t, I index) { return {look_up_8(t, index.a), look_up_8(t, index.b)}; }
inline F gather(const float* base, I index) { return {_mm256_i32gather_ps(base, index.a, 4), _mm256_i32gather_ps(base, index.b, 4)}; }
inline F look_up_256(const float* p, I index) { return gather(p, index); }
inline bool differ(I x, I y) {
  return _mm256_movemask_epi8(_mm256_and_si256(_mm256_cmpeq_epi32(x.a, y.a), _mm256_cmpeq_epi32(x.b, y.b))) != -1;
}
template <int n>
inline I top_byte(I x) {
  constexpr char k = static_cast<char>(-128);
  const __m256i at = _mm256_setr_epi8(k, k, k, n, k, k, k, n + 4, k, k, k, n + 8, k, k, k, n + 12, k, k, k, n, k, k, k, n + 4, k, k, k,
                                      n + 8, k, k, k, n + 12);
  return {_mm256_shuffle_epi8(x.a, at), _mm256_shuffle_epi8(x.b, at)};
}

inline __m256i four(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}
// Codes up to 63 keep the 16-bit sums of two products within range.
inline __m256i dot_8(__m256i sum, __m256i codes, __m256i x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
}
inline I dot(I sum, I codes, const int8_t* p) {
  const __m256i x = four(p);
  return {dot_8(sum.a, codes.a, x), dot_8(sum.b, codes.b, x)};
}
// Signed codes: |code| times the activation with the code's sign; 128 * 127 * 2 is still within 16 bits.
inline I prepare_signed(I codes) { return codes; }
inline I signed_start(const int32_t*) { return set(0); }
inline I dot_signed(I sum, I codes, const int8_t* p) {
  const __m256i x = four(p);
  return {dot_8(sum.a, _mm256_abs_epi8(codes.a), _mm256_sign_epi8(x, codes.a)),
          dot_8(sum.b, _mm256_abs_epi8(codes.b), _mm256_sign_epi8(x, codes.b))};
}

inline float reduce_max(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
inline int32_t reduce_add(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline void quantize_32(const float* x, Int8Block* out) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const F p = load_f(x), q = load_f(x + 16);
  const __m256 most_lanes = _mm256_max_ps(_mm256_max_ps(_mm256_and_ps(p.a, magnitude), _mm256_and_ps(p.b, magnitude)),
                                          _mm256_max_ps(_mm256_and_ps(q.a, magnitude), _mm256_and_ps(q.b, magnitude)));
  const float most = reduce_max(most_lanes);
  const __m256 odd = _mm256_or_ps(_mm256_cmp_ps(p.a, p.b, _CMP_UNORD_Q), _mm256_cmp_ps(q.a, q.b, _CMP_UNORD_Q));
  if (_mm256_movemask_ps(odd) != 0 || !(most >= 1e-36f && most <= 3e38f)) return quantize_block(x, 32, out);
  const __m256 inverse = _mm256_set1_ps(127.0f / most);
  const __m256i v[4] = {_mm256_cvtps_epi32(_mm256_mul_ps(p.a, inverse)), _mm256_cvtps_epi32(_mm256_mul_ps(p.b, inverse)),
                        _mm256_cvtps_epi32(_mm256_mul_ps(q.a, inverse)), _mm256_cvtps_epi32(_mm256_mul_ps(q.b, inverse))};
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out->codes),
                      _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  const int32_t near = reduce_add(_mm256_add_epi32(v[0], v[1])), far = reduce_add(_mm256_add_epi32(v[2], v[3]));
  out->scale = most / 127.0f;
  out->sum = out->scale * static_cast<float>(near + far);
  out->offset[0] = -8 * near;
  out->offset[1] = -8 * far;
}

#include "kernels/cpu/linear_tile.h"

}  // namespace

std::span<const LinearKernel* const> avx2_kernels() {
  static const LinearKernel kernels[] = TANDEM_KERNELS("avx2");
  static const auto list = pointers(kernels);
  return list;
}

void avx2_quantize_row(const float* x, int64_t cols, Int8Block* out) { quantize_row_here(x, cols, out); }

}  // namespace tandem::cpu
