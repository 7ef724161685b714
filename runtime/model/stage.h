// One rank's part of the model, loaded and bound: weights in one block, KV pages and workspace as the plan says, an executable. Owned
// and used by the rank's thread.
#pragma once
#include <memory>
#include <span>

#include "runtime/model/blueprint.h"
#include "runtime/model/loader.h"
#include "sharding/comm/communicator.h"

namespace tandem {

struct AllocatedRow { std::string name; uint64_t bytes = 0; };  // "weights", "kv", "workspace", "communication"

class Stage {
 public:
  // Loads the weights. `peers`: the stage's group, null when alone; borrowed like everything else.
  // Errors: Code::resource_exhausted naming the row that did not fit, the checkpoint's own.
  Stage(const Blueprint& blueprint, const Plan& plan, int rank, bool all_logits, Backend& backend, PeerGroup* peers,
        const LoadListener& progress);
  ~Stage();
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  Executable& executable() { return *executable_; }
  const StageRange& range() const { return range_; }
  const Bucket& bucket() const { return bucket_; }
  int64_t hidden() const { return hidden_; }
  int64_t vocab() const { return vocab_; }
  float* incoming() { return incoming_; }  // float[bucket.rows, hidden]
  float* outgoing() { return outgoing_; }
  const std::vector<AllocatedRow>& allocated() const { return allocated_; }
  uint64_t weight_bytes() const { return weights_.bytes; }

 private:
  struct Block { std::byte* memory = nullptr; uint64_t bytes = 0; };
  Block take(const char* name, uint64_t bytes);
  void load(const Blueprint& blueprint, const Slicer& slicer, int member, const LoadListener& progress);

  Backend& backend_;
  StageRange range_;
  Bucket bucket_;
  int64_t hidden_ = 0, vocab_ = 0;
  Block weights_, workspace_, communication_;
  std::vector<Block> kv_;
  std::vector<AllocatedRow> allocated_;
  float* incoming_ = nullptr;
  float* outgoing_ = nullptr;
  std::unique_ptr<Executable> executable_;
};

}  // namespace tandem
