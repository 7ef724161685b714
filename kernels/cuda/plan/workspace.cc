#include "kernels/cuda/plan/workspace.h"

#include <algorithm>

namespace tandem::cuda {
namespace {

constexpr const char* kNames[kBuffers] = {"hidden rows",   "pending",           "normalized",   "queries, keys, values", "attended",
                                          "gate and up",   "gated",             "widened weights", "matrix products",    "split products",
                                          "attention splits", "router logits",  "expert lists", "expert rows",           "expert gate and up",
                                          "expert gated",  "expert results",    "head rows",    "word rows",   "words",        "logits part",           "logits",
                                          "sampling",      "drawn",             "last ids",     "step inputs",           "sample inputs",
                                          "constants"};
constexpr uint64_t kSequenceBytes = 16 + sizeof(int32_t) * kMaxKvGroups;

int64_t whole_tiles(int64_t rows) { return (rows + kRowTile - 1) / kRowTile * kRowTile; }
uint64_t aligned(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

class Planner {
 public:
  Planner(const Program& program, const Bucket& bucket, const Arithmetic& arithmetic)
      : records_(program.records()), bucket_(bucket), element_(static_cast<uint64_t>(size(element_of(arithmetic.compute)))), hidden_(program.hidden()) {
    many_ = bucket_.rows > kFewRows;
    if (many_) bucket_.rows = static_cast<int32_t>(whole_tiles(bucket_.rows));
    if (bucket_.heads > kFewRows) bucket_.heads = static_cast<int32_t>(whole_tiles(bucket_.heads));
    out_.buffers.resize(kBuffers);
    for (size_t b = 0; b < kBuffers; ++b) out_.buffers[b].name = kNames[b];
  }

  Workspace plan(const Program& program) {
    last_ = std::max<int32_t>(0, static_cast<int32_t>(records_.size()) - 1);
    keep(Buffer::x, floats(bucket_.rows, hidden_));
    for (at_ = 0; at_ <= last_ && !records_.empty(); ++at_) std::visit(*this, records_[static_cast<size_t>(at_)]);
    if (many_) {
      keep(Buffer::widened, std::min(kWidenedBytes, aligned(widest_)));
      keep(Buffer::gemm, kGemmWorkspaceBytes);
    }
    keep(Buffer::linear_scratch, linear_scratch_bytes(tallest_));
    keep(Buffer::inputs, input_layout(bucket_.rows, bucket_.sequences, bucket_.heads, most_page_entries(bucket_)).bytes);
    keep(Buffer::last_ids, sizeof(int32_t) * static_cast<uint64_t>(bucket_.sequences));
    keep(Buffer::constants, aligned(constants_));
    if (program.has_head()) {
      keep(Buffer::sampling, sample_scratch_bytes(bucket_.sequences, program.vocab()));
      keep(Buffer::drawn, sizeof(Sampled) * static_cast<uint64_t>(bucket_.sequences));
      keep(Buffer::sample_inputs, sample_input_bytes(bucket_, program.vocab()));
    }
    out_.plan = plan_arena(out_.buffers);
    return std::move(out_);
  }

  void operator()(const Embed& r) {
    if (r.partial) pending();
    if (r.projection.weight == kNoWeight) return;
    want(Buffer::word_rows, floats(bucket_.rows, r.width()), at_, at_);
    want(Buffer::words, elements(bucket_.rows, r.width()), at_, at_);
    see(r.projection);
  }
  void operator()(const Normalize&) {}
  void operator()(const Enter&) { want(Buffer::normalized, elements(bucket_.rows, hidden_), at_, next()); }
  void operator()(const ProjectAttention& r) {
    want(Buffer::qkv, elements(bucket_.rows, r.q.out + r.k.out + r.v.out), at_, next());
    constants_ += sizeof(float) * r.rope.inverse_frequency.size() + 256;
    for (const Product* p : {&r.q, &r.k, &r.v}) see(*p);
  }
  void operator()(const ProjectMlp& r) {
    want(Buffer::gated, elements(bucket_.rows, r.up.out), at_, next());
    if (many_) want(Buffer::gate_up, elements(bucket_.rows, (r.gated ? 2 : 1) * r.up.out), at_, at_);
    if (r.gated) see(r.gate);
    see(r.up);
  }
  void operator()(const Attend& r) {
    want(Buffer::attended, elements(bucket_.rows, r.shape.heads * r.shape.head_dim), at_, next());
    keep(Buffer::attention_scratch, cuda::attention_scratch_bytes(r.shape, bucket_.sequences, bucket_.context));
  }
  void operator()(const Contract& r) {
    see(r.product);
    if (r.partial || normalized_next()) pending();
  }
  void operator()(const Moe& r) {
    const int64_t rows = bucket_.rows, ffn = r.gate[0].out, local = static_cast<int64_t>(r.gate.size());
    const int64_t pairs = rows * std::min<int64_t>(r.top_k, local) + kRowTile;
    want(Buffer::router_logits, floats(rows, r.experts), at_, at_);
    want(Buffer::expert_lists, expert_list_layout(rows, local, r.top_k).bytes, at_, at_);
    if (many_) {
      want(Buffer::expert_rows, elements(pairs, hidden_), at_, at_);
      want(Buffer::expert_gate_up, elements(pairs, 2 * ffn), at_, at_);
    }
    want(Buffer::expert_gated, elements(pairs, ffn), at_, at_);
    want(Buffer::expert_results, floats(pairs, hidden_), at_, at_);
    constants_ += 3 * (sizeof(void*) * static_cast<uint64_t>(local) + 256);
    see(r.router);
    for (const auto* list : {&r.gate, &r.up, &r.down}) see((*list)[0]);
    if (r.has_shared()) {
      want(Buffer::gated, elements(rows, r.shared.up.out), at_, at_);
      if (many_) want(Buffer::gate_up, elements(rows, 2 * r.shared.up.out), at_, at_);
      for (const Product* p : {&r.shared.gate, &r.shared.up, &r.shared.down, &r.shared.weigh}) see(*p);
    }
    if (r.partial || normalized_next()) pending();
  }
  void operator()(const Leave&) {}
  void operator()(const Head& r) {
    want(Buffer::head_rows, elements(bucket_.heads, hidden_), at_, at_);
    if (!r.parts.empty()) want(Buffer::logits_part, floats(bucket_.heads, r.product.out + r.vocab), at_, at_);
    keep(Buffer::logits, floats(bucket_.heads, r.vocab));
    see(r.product);
    if (r.projection.weight == kNoWeight) return;
    want(Buffer::words, elements(bucket_.heads, r.projection.out), at_, at_);
    see(r.projection);
  }
  void operator()(const Sample&) {}

 private:
  static uint64_t floats(int64_t rows, int64_t width) { return aligned(sizeof(float) * static_cast<uint64_t>(rows * width)); }
  uint64_t elements(int64_t rows, int64_t width) const { return aligned(element_ * static_cast<uint64_t>(rows * ((width + 7) / 8 * 8))); }
  void want(Buffer buffer, uint64_t bytes, int32_t first, int32_t last) {
    ArenaBuffer& b = out_.buffers[static_cast<size_t>(buffer)];
    b.bytes = std::max(b.bytes, bytes);
    b.lives.push_back({first, last});
  }
  void keep(Buffer buffer, uint64_t bytes) { want(buffer, aligned(bytes), 0, last_ + 1); }
  int32_t next() const { return std::min(at_ + 1, last_); }
  bool normalized_next() const { return at_ < last_ && std::holds_alternative<Normalize>(records_[static_cast<size_t>(at_) + 1]); }
  void pending() {  // lives until the next record that takes it
    auto taker = at_ + 1;
    const auto takes = [](const Record& r) {
      return std::holds_alternative<Enter>(r) || std::holds_alternative<Leave>(r) || std::holds_alternative<Head>(r);
    };
    while (taker < last_ && !takes(records_[static_cast<size_t>(taker)])) ++taker;
    want(Buffer::pending, floats(bucket_.rows, hidden_), at_, taker);
  }
  void see(const Product& p) {
    tallest_ = std::max(tallest_, p.out);
    widest_ = std::max(widest_, element_ * static_cast<uint64_t>((p.out + 15) / 16 * 16 * dense_stride(p.in)));
  }

  const std::vector<Record>& records_;
  Bucket bucket_;
  const uint64_t element_;
  const int64_t hidden_;
  bool many_ = false;
  int32_t at_ = 0, last_ = 0;
  int64_t tallest_ = 1;
  uint64_t widest_ = 0, constants_ = 256;
  Workspace out_;
};

}  // namespace

Workspace plan_workspace(const Program& program, const Bucket& bucket, const Arithmetic& arithmetic) {
  return Planner(program, bucket, arithmetic).plan(program);
}

InputLayout input_layout(int64_t rows, int64_t sequences, int64_t heads, int64_t page_entries) {
  InputLayout layout;
  uint64_t at = 0;
  const auto place = [&at](uint64_t& offset, uint64_t bytes) {
    offset = at;
    at += (bytes + 63) / 64 * 64;
  };
  const auto ints = [](int64_t count) { return sizeof(int32_t) * static_cast<uint64_t>(count); };
  place(layout.counts, ints(8));
  place(layout.sequences, kSequenceBytes * static_cast<uint64_t>(sequences));
  place(layout.positions, ints(rows));
  place(layout.sequence_of, ints(rows));
  place(layout.ids, ints(rows));
  place(layout.heads, ints(heads));
  place(layout.pages, ints(page_entries));
  layout.bytes = at;
  return layout;
}

uint64_t sample_input_bytes(const Bucket& bucket, int64_t vocab) {
  const auto seen = static_cast<uint64_t>(std::min<int64_t>(bucket.context, vocab));  // ids that are counted, and that may be forbidden
  return 65536 + static_cast<uint64_t>(bucket.sequences) * 512 + (sizeof(TokenCount) + sizeof(int32_t)) * seen + static_cast<uint64_t>(vocab) / 8;
}

int64_t most_page_entries(const Bucket& bucket) {
  return static_cast<int64_t>(bucket.sequences) * kMaxKvGroups * ((bucket.context + bucket.page_tokens - 1) / bucket.page_tokens + 1);
}

ExpertListLayout expert_list_layout(int64_t rows, int64_t local_experts, int64_t top_k) {
  ExpertListLayout layout;
  const auto ints = [](int64_t count) { return (sizeof(int32_t) * static_cast<uint64_t>(count) + 255) / 256 * 256; };
  layout.row_of = ints(local_experts + 1);
  layout.pair_of = layout.row_of + ints(rows * top_k);
  layout.weight = layout.pair_of + ints(rows * top_k);
  layout.bytes = layout.weight + ints(rows * top_k);
  return layout;
}

}  // namespace tandem::cuda
