#include "runtime/model/checkpoint/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace tandem {
namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F, kPrime3 = 0x165667B19E3779F9, kPrime4 = 0x85EBCA77C2B2AE63,
                   kPrime5 = 0x27D4EB2F165667C5;
constexpr size_t kStripe = 32;

uint64_t word(const std::byte* at) {
  uint64_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
uint64_t round(uint64_t lane, uint64_t input) { return std::rotl(lane + input * kPrime2, 31) * kPrime1; }
void stripe(uint64_t* lanes, const std::byte* at) {
  for (size_t i = 0; i < 4; ++i) lanes[i] = round(lanes[i], word(at + i * 8));
}

}  // namespace

Checksum& Checksum::add(std::span<const std::byte> bytes) {
  const std::byte* at = bytes.data();
  size_t left = bytes.size();
  const size_t held = total_ % kStripe;
  total_ += left;
  if (held > 0) {
    const size_t more = std::min(left, kStripe - held);
    std::memcpy(pending_ + held, at, more);
    at += more, left -= more;
    if (held + more < kStripe) return *this;
    stripe(lanes_, pending_);
  }
  for (; left >= kStripe; at += kStripe, left -= kStripe) stripe(lanes_, at);
  if (left > 0) std::memcpy(pending_, at, left);
  return *this;
}

uint64_t Checksum::value() const {
  uint64_t hash = kPrime5;
  if (total_ >= kStripe) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) + std::rotl(lanes_[3], 18);
    for (const uint64_t lane : lanes_) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += total_;
  size_t i = 0;
  const size_t end = total_ % kStripe;
  for (; i + 8 <= end; i += 8) hash = std::rotl(hash ^ round(0, word(pending_ + i)), 27) * kPrime1 + kPrime4;
  if (i + 4 <= end) {
    uint32_t half;
    std::memcpy(&half, pending_ + i, sizeof half);
    hash = std::rotl(hash ^ half * kPrime1, 23) * kPrime2 + kPrime3;
    i += 4;
  }
  for (; i < end; ++i) hash = std::rotl(hash ^ static_cast<uint64_t>(pending_[i]) * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

}  // namespace tandem
