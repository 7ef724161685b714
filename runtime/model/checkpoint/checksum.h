// XXH64 (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md) of a stream of bytes: finds what was damaged, keeps nobody out. A value.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace tandem {

class Checksum {
 public:
  Checksum& add(std::span<const std::byte> bytes);
  uint64_t value() const;  // of all bytes so far

 private:
  static constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F;
  uint64_t lanes_[4] = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
  std::byte pending_[32] = {};
  uint64_t total_ = 0;  // bytes
};

}  // namespace tandem
