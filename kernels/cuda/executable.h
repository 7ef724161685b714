// A compiled program on a GPU. Every record is lowered in one of two ways: steps of few rows go through fused kernels (a norm rides in
// the product that reads it, a sum into the residual stream in the product that makes it), larger ones through matrix products on
// widened weights. Steps in which every sequence decodes one token replay a graph of the first kind. Owned by the rank's thread; after
// prepare() nothing is allocated, and the host waits only in drawn(), logits() and for the sizes of experts in large steps.
#pragma once
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/peers.h"
#include "kernels/cuda/pinned.h"
#include "kernels/cuda/sample.h"

namespace tandem::cuda {

class CudaExecutable : public Executable {
 public:
  CudaExecutable(const Program& program, std::span<const KvShape> kv, const Bucket& bucket, const Arithmetic& arithmetic,
                 const DeviceInfo& device, cudaStream_t stream, std::shared_ptr<const std::function<void()>> watch);
  ~CudaExecutable() override;

  void bind(WeightId weight, const WeightLayout& layout, const std::byte* resident) override;
  void bind_memory(std::span<std::byte> workspace, std::span<const std::span<std::byte>> kv_groups) override;
  void bind_peers(PeerGroup* peers) override;
  void prepare(const float* hidden_in, float* hidden_out) override;
  void forward(const StepRows& step, const float* hidden_in, float* hidden_out) override;
  void sample(std::span<const SampleRow> rows) override;
  void drawn(std::span<Sampled> out) override;
  bool wait_drawn(const std::atomic<bool>& interrupt) override;
  bool keeps_ids() const override { return true; }
  const float* logits() override;
  void copy_pages(int32_t group, std::span<const std::pair<int32_t, int32_t>> from_to) override;

 private:
  struct Bound {  // a record with its weights found
    BoundProduct products[3];
    BoundProduct projection, shared[2], shared_down, weigh;
    Weight positions;
    const float *norm = nullptr, *norm_bias = nullptr, *head_norm = nullptr, *key_norm = nullptr;  // head_norm: of queries
    RopeOnDevice rope;
    std::vector<Weight> gate, up, down;
    const std::byte* const* experts[3] = {};  // device: gate, up, down
    float epsilon = 0;                        // of that norm
    Buffer in = Buffer::normalized;           // a Contract's input
    bool fused_norm = false;                  // this record takes the norm of the Enter before it
    bool left_to_next = false;                // an Enter whose norm the next record takes
    bool left_to_mixture = false;             // an Enter whose norm of one row the mixture behind it takes
    bool enters = false;                      // that mixture
    bool stays_pending = false;               // makes or takes a whole result that is normalized before it is added: the taker adds it to x
  };
  struct Group {
    KvShape shape;
    std::byte* memory = nullptr;
    uint64_t page_bytes = 0, pages = 0;
  };
  // A pass over the records: the step at hand, or a graph's bucket.
  struct Pass {
    Launch how;
    int64_t rows = 0, heads = 0;
    int32_t sequences = 0, context = 0;
    int32_t singles = 0;                // sequences of one row are among the first so many
    bool decode = false;                // every sequence has one row
    StepView view;
    const int32_t *ids = nullptr, *head_rows = nullptr;  // device
    float* x = nullptr;
    const float* hidden_in = nullptr;
    float* hidden_out = nullptr;
  };

  const Weight& weight(WeightId id, int64_t rows, int64_t cols) const;
  const float* vector(WeightId id, int64_t width) const;
  BoundProduct product(const Product& p, bool first_only = false) const;
  bool takes_norm(const Record& record) const;
  void resolve();
  void check_step(const StepRows& step) const;
  template <typename T>
  T* buffer(Buffer b) const {
    return reinterpret_cast<T*>(workspace_.data() + plan_.plan.offset(static_cast<size_t>(b)));
  }
  void use_buffers(const float* hidden_in, float* hidden_out);
  void send_inputs(const StepRows& step, const InputLayout& layout);
  Pass pass_over(const InputLayout& layout, int64_t rows, int64_t heads, int32_t sequences, int32_t context, bool decode) const;
  void replay(const StepRows& step, int32_t longest);
  cudaGraphExec_t graph_for(int32_t rows, int32_t context);
  void walk(const Pass& pass);
  bool split() const { return peers_ != nullptr && peers_->size() > 1; }
  void finish_pending(const Pass& pass, Pending pending, bool stayed, int64_t rows);
  LinearInput normalized_input(const Bound& b, const Pass& pass) const;
  LinearScratch linear_scratch() const;
  void multiply(const Pass& pass, const BoundProduct& p, const void* x, int64_t x_stride, int64_t rows, void* y, int64_t y_stride, bool y_is_float,
                bool add);
  void product_of_rows(const Pass& pass, const BoundProduct& p, const void* x, int64_t x_stride, int64_t rows, void* y, int64_t y_stride, bool y_is_float,
                       bool add);
  void gated_mlp(const Pass& pass, std::span<const BoundProduct> products, const Bound& b, Activation activation);

  void run(const Embed& r, const Bound& b, const Pass& pass);
  void run(const Enter& r, const Bound& b, const Pass& pass);
  void run(const Normalize& r, const Bound& b, const Pass& pass);
  void run(const ProjectAttention& r, const Bound& b, const Pass& pass);
  void run(const ProjectMlp& r, const Bound& b, const Pass& pass);
  void run(const Attend& r, const Bound& b, const Pass& pass);
  void run(const Contract& r, const Bound& b, const Pass& pass);
  void run(const Moe& r, const Bound& b, const Pass& pass);
  void run(const Leave& r, const Bound& b, const Pass& pass);
  void run(const Head& r, const Bound& b, const Pass& pass);
  void run(const Sample& r, const Bound& b, const Pass& pass);
  void run_many_experts(const Moe& r, const Bound& b, const Pass& pass, const ExpertCall& call);
  void run_shared(const Moe& r, const Bound& b, const Pass& pass, float* y);

  const Program program_;
  const Bucket bucket_;
  const Arithmetic arithmetic_;
  const Element element_;
  const DeviceInfo device_;
  const cudaStream_t stream_;
  const std::shared_ptr<const std::function<void()>> watch_;
  const Workspace plan_;
  const int64_t hidden_;
  std::vector<Group> groups_;
  std::vector<Weight> weights_;
  std::vector<Bound> bound_;
  std::span<std::byte> workspace_;
  DevicePeers* peers_ = nullptr;
  bool ready_ = false;
  std::unique_ptr<Gemm> gemm_;
  std::map<std::pair<int32_t, int32_t>, cudaGraphExec_t> graphs_;  // by rows and context
  float* hidden_in_ = nullptr;   // what the graphs were captured with
  float* hidden_out_ = nullptr;

  PinnedRing inputs_, sample_inputs_, results_;
  std::vector<size_t> undrawn_;  // rows of each sample() that drawn() was not called for
  size_t next_result_ = 0, oldest_result_ = 0;
  std::vector<int32_t> expert_begin_;
  int32_t heads_ = 0;            // of the last forward
  std::vector<float> host_logits_;
};

}  // namespace tandem::cuda
