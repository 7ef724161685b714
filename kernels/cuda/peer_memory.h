// One block of this device's memory that other members of a stage may read and write, and the addresses of theirs: raw pointers between
// threads of a process, which own it together (it is freed when the last of them lets go), IPC handles between processes of a host. One
// thread each.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/plan/peer_block.h"

namespace tandem::cuda {

class PeerMemory {
 public:
  // On the current device, cleared. Errors: Code::resource_exhausted.
  PeerMemory(int device, int index, const PeerBlock& layout);
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  std::string card() const;  // all that another member needs; the same length on every member
  // Cards of all, in member order, while all of those blocks are held. Empty when every one can be reached from here, else why not.
  std::string reach(const std::vector<std::string>& cards);

  const PeerBlock& layout() const { return layout_; }
  std::byte* block(int member) const { return blocks_[member]; }

 private:
  std::string open(int member, std::string_view card);

  int device_, index_;
  PeerBlock layout_;
  std::shared_ptr<std::byte> held_[kMostPeers];  // this member's, and those of the same process
  std::byte* blocks_[kMostPeers] = {};
  bool opened_[kMostPeers] = {};  // by IPC
};

}  // namespace tandem::cuda
