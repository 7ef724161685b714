// A compiled program on CPUs: the whole team walks the records together, each member doing its share of every one, a barrier after
// what the next step reads from others. Owned by the rank's thread, which is member 0. After the first forward() nothing is allocated.
#pragma once
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cpu/products.h"
#include "kernels/cpu/workspace.h"

namespace tandem::cpu {

class Interpreter : public Executable {
 public:
  // poison: what is dead is overwritten with NaN. The team outlives the executable.
  Interpreter(const Program& program, std::span<const KvShape> kv, const Bucket& bucket, const Arithmetic& arithmetic,
              const Features& features, Team& team, bool poison);

  void bind(WeightId weight, const WeightLayout& layout, const std::byte* resident) override;
  void bind_memory(std::span<std::byte> workspace, std::span<const std::span<std::byte>> kv_groups) override;
  void bind_peers(PeerGroup* peers) override;
  void forward(const StepRows& step, const float* hidden_in, float* hidden_out) override;
  void sample(std::span<const SampleRow> rows) override;
  void drawn(std::span<Sampled> out) override;
  const float* logits() override;
  void copy_pages(int32_t group, std::span<const std::pair<int32_t, int32_t>> from_to) override;

 private:
  struct Bound {  // a record with its weights found and its values placed
    BoundProduct products[3];
    BoundProduct projection, shared_down, weigh;
    const BoundWeight* positions = nullptr;
    std::vector<BoundProduct> gate, up, down;
    Division division, projection_division;
    int64_t unit = 0, down_unit = 0;  // rows of a product that one share of work is a multiple of
    const float *norm = nullptr, *norm_bias = nullptr, *key_norm = nullptr;
    Value in, out, third, shared;  // out: with what its readers want
    const float* angles = nullptr;
    AttentionShape attention;
    bool fused_preparation = false;
  };
  struct Group {
    KvShape shape;
    std::byte* memory = nullptr;
    uint64_t page_bytes = 0, pages = 0;
  };

  void ready();  // resolves what was bound
  const BoundWeight& weight(WeightId id, int64_t rows, int64_t cols) const;
  const float* vector(WeightId id, int64_t width) const;
  BoundProduct product(const Product& p, bool first_only = false) const;  // of no weight: none
  Division division(const BoundProduct& one) const;
  Preparation preparation(std::span<const BoundProduct> readers) const;
  void check(const StepRows& step) const;
  template <typename T>
  T* buffer(Buffer b, uint64_t offset = 0) const {
    return reinterpret_cast<T*>(workspace_.data() + plan_.plan.offset(static_cast<size_t>(b)) + offset);
  }
  Value value(Buffer values, Buffer prepared, int64_t rows, int64_t width, const Preparation& p) const;
  HeadPages head_pages(const KvLayer& kv, const AttentionShape& shape, int64_t head, const SequenceRows& sequence) const;

  void walk(int member);
  void begin(int member);
  void project_rows(const Bound& b, int64_t rows, const Value& in, float* out, int64_t width, int member);
  void finish_pending(Pending pending, int member, int64_t rows);  // sums over the peers
  void poison_dead(int32_t record, int member);
  // One for each record; `member` of team_->size() does its share. Each ends with what it wrote visible to all.
  void run(const Embed& r, const Bound& b, int member);
  void run(const Enter& r, const Bound& b, int member);
  void run(const Normalize& r, const Bound& b, int member);
  void run(const ProjectAttention& r, const Bound& b, int member);
  void run(const ProjectMlp& r, const Bound& b, int member);
  void run(const Attend& r, const Bound& b, int member);
  void run(const Contract& r, const Bound& b, int member);
  void run(const Moe& r, const Bound& b, int member);
  void run(const Leave& r, const Bound& b, int member);
  void run(const Head& r, const Bound& b, int member);
  void run(const Sample& r, const Bound& b, int member);
  void run_shared(const Moe& r, const Bound& b, int member);
  void attend_blocks(const Attend& r, const Bound& b, int member);
  void attend_splits(const Attend& r, const Bound& b, int member);

  const Program program_;
  const Bucket bucket_;
  const Arithmetic arithmetic_;
  const Features features_;
  Team* const team_;
  const bool poison_;
  Workspace plan_;
  std::vector<Group> groups_;
  std::vector<BoundWeight> weights_;
  std::vector<Bound> bound_;
  std::span<std::byte> workspace_;
  PeerGroup* peers_ = nullptr;
  bool ready_ = false;
  int64_t hidden_ = 0;

  // Of the step in progress.
  StepRows step_;
  const float* hidden_in_ = nullptr;
  float* hidden_out_ = nullptr;
  std::span<const SampleRow> sample_rows_;
  std::span<Sampled> drawing_;    // of the sample under way
  std::vector<Sampled> sampled_;  // of all samples that drawn() was not called for, the oldest first
};

}  // namespace tandem::cpu
