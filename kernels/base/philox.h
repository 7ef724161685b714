// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random words as a pure function of key and
// counter. Every device draws a token's random number with it, so that a draw depends on the request and the position only.
#pragma once
#include <array>
#include <cstdint>

namespace tandem {

using PhiloxCounter = std::array<uint32_t, 4>;

constexpr PhiloxCounter philox4x32_10(PhiloxCounter counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
  }
  return counter;
}

// The random number in [0, 1) of one draw, 53 bits: key = the request's seed, counter = (absolute position of the token, draw, choice
// index, 0); the first word's upper 27 bits, then the second's upper 26.
constexpr double philox_uniform(uint64_t seed, uint32_t position, uint32_t draw, uint32_t choice) {
  const PhiloxCounter words = philox4x32_10({position, draw, choice, 0}, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (static_cast<double>(words[0] >> 5) * 0x1p26 + static_cast<double>(words[1] >> 6)) * 0x1p-53;
}

}  // namespace tandem
