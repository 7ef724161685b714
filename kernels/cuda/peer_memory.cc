#include "kernels/cuda/peer_memory.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <random>

#include "kernels/base/cuda/check.h"

namespace tandem::cuda {
namespace {

struct Card {
  uint64_t host = 0, process = 0;
  int32_t device = 0, shareable = 0;
  uint64_t bytes = 0;
  const std::shared_ptr<std::byte>* block = nullptr;  // for the same process
  cudaIpcMemHandle_t handle{};
};

uint64_t this_host() {
  std::string boot, name(256, '\0');
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  gethostname(name.data(), name.size() - 1);
  return std::hash<std::string>()(boot + name.c_str());
}

// A process id alone may be taken again, or by another container.
uint64_t this_process() {
  static const uint64_t mark = (uint64_t{std::random_device()()} << 32 | std::random_device()()) ^ static_cast<uint64_t>(getpid());
  return mark;
}

}  // namespace

PeerMemory::PeerMemory(int device, int index, const PeerBlock& layout) : device_(device), index_(index), layout_(layout) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, layout.bytes()), "peer memory");
  held_[index].reset(static_cast<std::byte*>(memory), [](std::byte* block) { cudaFree(block); });
  blocks_[index] = held_[index].get();
  check(cudaMemset(memory, 0, layout.bytes()), "peer memory");
  check(cudaDeviceSynchronize(), "peer memory");
}

PeerMemory::~PeerMemory() {
  for (int member = 0; member < layout_.size; ++member) {
    if (opened_[member]) cudaIpcCloseMemHandle(blocks_[member]);
  }
}

std::string PeerMemory::card() const {
  Card card{this_host(), this_process(), device_, 0, layout_.bytes(), &held_[index_], {}};
  card.shareable = cudaIpcGetMemHandle(&card.handle, blocks_[index_]) == cudaSuccess;
  if (!card.shareable) cudaGetLastError();  // it would be taken for a later call's
  return {reinterpret_cast<const char*>(&card), sizeof card};
}

std::string PeerMemory::reach(const std::vector<std::string>& cards) {
  if (static_cast<int>(cards.size()) != layout_.size) fail(Code::internal, "peer memory", "one card a member is needed");
  for (int member = 0; member < layout_.size; ++member) {
    if (member == index_) continue;
    const std::string why = open(member, cards[static_cast<size_t>(member)]);
    if (!why.empty()) return "member " + std::to_string(member) + "'s memory: " + why;
  }
  return {};
}

std::string PeerMemory::open(int member, std::string_view text) {
  Card card;
  if (text.size() != sizeof card) fail(Code::internal, "peer memory", "a card of " + std::to_string(text.size()) + " bytes");
  std::memcpy(&card, text.data(), sizeof card);
  if (card.bytes != layout_.bytes()) fail(Code::internal, "peer memory", "blocks of different sizes");
  if (card.host != this_host()) return "on another host";
  if (card.process == this_process()) {
    if (card.device != device_) {
      int can = 0;
      if (cudaDeviceCanAccessPeer(&can, device_, card.device) != cudaSuccess || !can) {
        cudaGetLastError();
        return "no P2P from device " + std::to_string(device_) + " to device " + std::to_string(card.device);
      }
      const cudaError_t error = cudaDeviceEnablePeerAccess(card.device, 0);
      if (error != cudaSuccess) cudaGetLastError();
      if (error != cudaSuccess && error != cudaErrorPeerAccessAlreadyEnabled) return cudaGetErrorString(error);
    }
    held_[member] = *card.block;
    blocks_[member] = held_[member].get();
    return {};
  }
  if (!card.shareable) return "it cannot be shared with another process";
  void* memory = nullptr;
  const cudaError_t error = cudaIpcOpenMemHandle(&memory, card.handle, cudaIpcMemLazyEnablePeerAccess);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return cudaGetErrorString(error);
  }
  blocks_[member] = static_cast<std::byte*>(memory);
  opened_[member] = true;
  return {};
}

}  // namespace tandem::cuda
