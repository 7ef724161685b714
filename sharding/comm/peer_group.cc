#include "sharding/comm/comms.h"

namespace tandem {
namespace {

class StagePeers final : public PeerGroup {
 public:
  StagePeers(Communicator& communicator, const Mesh& mesh)
      : communicator_(communicator),
        members_(mesh.stage_ranks(mesh.stage(communicator.rank()))),
        index_(mesh.member(communicator.rank())) {}
  int index() const override { return index_; }
  int size() const override { return static_cast<int>(members_.size()); }
  void all_reduce(float* values, size_t count) override { communicator_.all_reduce(members_, values, count); }
  void all_gather(const float* mine, std::span<const size_t> counts, float* all) override {
    communicator_.all_gather(members_, mine, counts, all);
  }

 private:
  Communicator& communicator_;
  std::vector<int> members_;
  int index_;
};

}  // namespace

std::unique_ptr<PeerGroup> make_peer_group(Communicator& communicator, const Mesh& mesh) {
  if (mesh.group_size() == 1) return nullptr;
  return std::make_unique<StagePeers>(communicator, mesh);
}

}  // namespace tandem
