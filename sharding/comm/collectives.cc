#include "sharding/comm/collectives.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/base/error.h"

namespace tandem {
namespace {

// Below, everyone sends everything to everyone: one wait. Above, each member sums one part and hands it round: fewer bytes.
constexpr size_t kOneShotBytes = 64 << 10;
constexpr size_t kTile = 1024;  // floats summed at a time, so that the sum stays in the nearest cache

std::pair<size_t, size_t> share(size_t count, size_t index, size_t parts) { return {count * index / parts, count * (index + 1) / parts}; }

}  // namespace

void check_channel(int peer, int size, int channel) {
  if (peer >= 0 && peer < size && channel >= 0 && channel < kChannels) return;
  fail(Code::internal, "communicator",
       "no rank " + std::to_string(peer) + " or no channel " + std::to_string(channel) + " (" + std::to_string(size) + " ranks, " +
           std::to_string(kChannels) + " channels)");
}

size_t MessageCommunicator::position(std::span<const int> members) const {
  const auto me = std::find(members.begin(), members.end(), rank());
  if (me == members.end()) fail(Code::internal, "communicator", "rank " + std::to_string(rank()) + " is not a member of the group");
  return me - members.begin();
}

void MessageCommunicator::sum(std::span<const int> members, size_t me, float* values, size_t count) {
  terms_.assign(members.size(), values);
  for (size_t i = 0; i < members.size(); ++i) {
    if (i != me) terms_[i] = reinterpret_cast<const float*>(hold(members[i], count * sizeof(float)));
  }
  float tile[kTile];
  for (size_t begin = 0; begin < count; begin += kTile) {
    const size_t size = std::min(kTile, count - begin);
    std::memcpy(tile, terms_[0] + begin, size * sizeof(float));
    for (size_t i = 1; i < members.size(); ++i) {
      const float* term = terms_[i] + begin;
      for (size_t k = 0; k < size; ++k) tile[k] += term[k];
    }
    std::memcpy(values + begin, tile, size * sizeof(float));
  }
  for (size_t i = 0; i < members.size(); ++i) {
    if (i != me) release(members[i]);
  }
}

void MessageCommunicator::all_reduce(std::span<const int> members, float* values, size_t count) {
  const size_t me = position(members), size = members.size();
  if (size == 1 || count == 0) return;
  if (count * sizeof(float) <= kOneShotBytes) {
    for (size_t k = 1; k < size; ++k) send(members[(me + k) % size], kGroupChannel, values, count * sizeof(float));
    sum(members, me, values, count);
    return;
  }
  for (size_t k = 1; k < size; ++k) {
    const auto [begin, end] = share(count, (me + k) % size, size);
    send(members[(me + k) % size], kGroupChannel, values + begin, (end - begin) * sizeof(float));
  }
  const auto [begin, end] = share(count, me, size);
  sum(members, me, values + begin, end - begin);
  for (size_t k = 1; k < size; ++k) send(members[(me + k) % size], kGroupChannel, values + begin, (end - begin) * sizeof(float));
  for (size_t k = 1; k < size; ++k) {
    const size_t i = (me + k) % size;
    const auto [from, to] = share(count, i, size);
    receive(members[i], kGroupChannel, values + from, (to - from) * sizeof(float));
  }
}

void MessageCommunicator::all_gather(std::span<const int> members, const float* mine, std::span<const size_t> counts, float* all) {
  const size_t me = position(members), size = members.size();
  if (counts.size() != size) fail(Code::internal, "all_gather", "one count a member is needed");
  if (counts[me] > 0) {
    for (size_t k = 1; k < size; ++k) send(members[(me + k) % size], kGroupChannel, mine, counts[me] * sizeof(float));
  }
  for (size_t i = 0; i < size; all += counts[i], ++i) {
    if (counts[i] == 0) continue;
    if (i == me) {
      std::memmove(all, mine, counts[i] * sizeof(float));
    } else {
      receive(members[i], kGroupChannel, all, counts[i] * sizeof(float));
    }
  }
}

void MessageCommunicator::broadcast(std::span<const int> members, int root, void* data, size_t bytes) {
  position(members);
  if (std::find(members.begin(), members.end(), root) == members.end()) fail(Code::internal, "broadcast", "the root is not a member");
  if (rank() != root) return receive(root, kGroupChannel, data, bytes);
  for (const int member : members) {
    if (member != root) send(member, kGroupChannel, data, bytes);
  }
}

void MessageCommunicator::barrier(std::span<const int> members) {
  position(members);
  for (const int member : members) {
    if (member != rank()) send(member, kGroupChannel, nullptr, 0);
  }
  for (const int member : members) {
    if (member != rank()) receive(member, kGroupChannel, nullptr, 0);
  }
}

}  // namespace tandem
