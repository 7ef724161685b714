// A plain loop compiled for the vectors that this machine has: the same source, the same operations in the same order an element, so
// the same bits everywhere. The body is a lambda marked TANDEM_INLINE.
#pragma once

#define TANDEM_INLINE __attribute__((always_inline))

namespace tandem {

#if defined(__x86_64__)
template <typename Body>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2"))) void in_512_bits(const Body& body) {
  body();
}
template <typename Body>
__attribute__((target("avx2"))) void in_256_bits(const Body& body) {
  body();
}
inline int vector_bits() {
  static const int bits = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) return 512;
    return __builtin_cpu_supports("avx2") ? 256 : 128;
  }();
  return bits;
}
template <typename Body>
void in_wide_vectors(const Body& body) {
  switch (vector_bits()) {
    case 512:
      return in_512_bits(body);
    case 256:
      return in_256_bits(body);
    default:
      return body();
  }
}
#else
template <typename Body>
void in_wide_vectors(const Body& body) {
  body();
}
#endif

// To the nearest whole number, ties to even, of |x| < 2^22; without a call where there is no instruction.
TANDEM_INLINE inline float round_even(float x) {
  constexpr float kWhole = 0x1.8p23f;
  return (x + kWhole) - kWhole;
}

}  // namespace tandem
