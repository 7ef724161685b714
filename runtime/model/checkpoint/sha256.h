// SHA-256 (FIPS 180-4) of a stream of bytes. A value; one thread at a time.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace tandem {

class Sha256 {
 public:
  Sha256& add(std::string_view bytes);
  std::string hex();  // 64 lower-case digits; nothing may be added afterwards

 private:
  void block(const unsigned char* bytes);
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> pending_{};
  uint64_t total_ = 0;  // bytes
};

}  // namespace tandem
