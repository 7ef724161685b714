#include "kernels/cpu/workspace.h"

#include <algorithm>

#include "kernels/cpu/products.h"
#include "kernels/cpu/sample.h"

namespace tandem::cpu {
namespace {

constexpr const char* kNames[kBuffers] = {"hidden rows",
                                          "pending",
                                          "word rows",
                                          "word rows prepared",
                                          "normalized",
                                          "normalized prepared",
                                          "queries",
                                          "keys",
                                          "values",
                                          "attended",
                                          "attended prepared",
                                          "gated",
                                          "up",
                                          "gated prepared",
                                          "rope angles",
                                          "attention scratch",
                                          "attention states",
                                          "router logits",
                                          "routing",
                                          "expert lists",
                                          "expert rows",
                                          "expert rows prepared",
                                          "expert gated",
                                          "expert up",
                                          "expert gated prepared",
                                          "expert results",
                                          "head rows",
                                          "head rows prepared",
                                          "logits part",
                                          "logits",
                                          "sampling"};

uint64_t floats(int64_t rows, int64_t width) { return sizeof(float) * static_cast<uint64_t>(rows * width); }
uint64_t aligned(uint64_t bytes) { return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

class Planner {
 public:
  Planner(const Program& program, const Bucket& bucket, const Arithmetic& arithmetic, int members)
      : records_(program.records()), bucket_(bucket), arithmetic_(arithmetic), members_(members), hidden_(program.hidden()) {
    out_.buffers.resize(kBuffers);
    for (size_t b = 0; b < kBuffers; ++b) out_.buffers[b].name = kNames[b];
  }

  Workspace plan() {
    const auto last = static_cast<int32_t>(records_.size()) - 1;
    want(Buffer::x, floats(bucket_.rows, hidden_), 0, last);
    for (at_ = 0; at_ <= last; ++at_) std::visit(*this, records_[at_]);
    uint64_t angles = 0;
    for (const Rope* rope : out_.ropes) angles += floats(bucket_.rows, rope->rotary);
    want(Buffer::angles, angles, 0, last);
    out_.plan = plan_arena(out_.buffers);
    return std::move(out_);
  }

  void operator()(const Embed& r) {
    if (r.partial) {
      pending();
    } else if (r.positions.table != kNoWeight) {
      want(Buffer::pending, floats(bucket_.rows, hidden_), at_, at_);
    }
    if (r.projection.weight != kNoWeight) word_rows(bucket_.rows, r.projection.in);
  }
  void operator()(const Normalize&) {}
  void operator()(const Enter&) {
    // What replaced x is entered again by the next layer, which writes the same buffer: nothing of this one is read.
    const int32_t last = std::holds_alternative<Enter>(records_[static_cast<size_t>(next())]) ? at_ : next();
    want(Buffer::normalized, floats(bucket_.rows, hidden_), at_, last);
    want(Buffer::normalized_prepared, prepared_bytes(bucket_.rows, hidden_, arithmetic_), at_, last);
  }
  void operator()(const ProjectAttention& r) {
    want(Buffer::queries, floats(bucket_.rows, r.q.out), at_, next());
    want(Buffer::keys, floats(bucket_.rows, r.k.out), at_, at_);
    want(Buffer::values, floats(bucket_.rows, r.v.out), at_, at_);
    if (r.rope.rotary == 0) return;
    const auto same = [&](const Rope* other) { return same_rope(*other, r.rope); };
    if (std::none_of(out_.ropes.begin(), out_.ropes.end(), same)) out_.ropes.push_back(&r.rope);
  }
  void operator()(const ProjectMlp& r) { gated(r.up.out, r.gated, next()); }
  void operator()(const Attend& r) {
    const int64_t width = r.shape.heads * r.shape.head_dim;
    const AttentionShape shape = attention_shape(r, bucket_, arithmetic_.kv);
    const uint64_t split =
        floats(split_rows(r.shape, bucket_, members_) * r.shape.heads * (most_splits(shape, bucket_) + 1), state_floats(shape));
    want(Buffer::attended, floats(bucket_.rows, width), at_, next());
    want(Buffer::attended_prepared, prepared_bytes(bucket_.rows, width, arithmetic_), at_, next());
    want(Buffer::attention_scratch, members_ * attention_scratch_stride(shape), at_, at_);
    want(Buffer::attention_states, std::max(members_ * block_state_bytes(shape), split), at_, at_);
  }
  void operator()(const Contract&) { pending(); }
  void operator()(const Moe& r) {
    const int64_t rows = bucket_.rows, ffn = r.gate[0].out;
    const int64_t pairs = rows * std::min<int64_t>(r.top_k, static_cast<int64_t>(r.gate.size()));
    want(Buffer::router_logits, floats(rows, r.experts), at_, at_);
    want(Buffer::routing, 2 * floats(rows, r.top_k), at_, at_);
    want(Buffer::grouping, members_ * grouping_bytes(r, rows), at_, at_);
    if (rows > 1) {  // a single row is read where it is
      want(Buffer::expert_rows, floats(pairs, hidden_), at_, at_);
      want(Buffer::expert_rows_prepared, prepared_bytes(pairs, hidden_, arithmetic_), at_, at_);
    }
    want(Buffer::expert_gated, floats(pairs, ffn), at_, at_);
    want(Buffer::expert_up, floats(pairs, ffn), at_, at_);
    want(Buffer::expert_gated_prepared, prepared_bytes(pairs, ffn, arithmetic_), at_, at_);
    want(Buffer::expert_results, floats(pairs, hidden_), at_, at_);
    if (r.has_shared()) gated(r.shared.up.out, true, at_);
    pending();
  }
  void operator()(const Leave&) {}
  void operator()(const Head& r) {
    const auto after = static_cast<int32_t>(records_.size());
    want(Buffer::head_rows, floats(bucket_.heads, hidden_), at_, at_);
    want(Buffer::head_rows_prepared, prepared_bytes(bucket_.heads, hidden_, arithmetic_), at_, at_);
    if (r.projection.weight != kNoWeight) word_rows(bucket_.heads, r.projection.out);
    if (!r.parts.empty()) want(Buffer::logits_part, floats(bucket_.heads, r.product.out + r.vocab), at_, at_);
    want(Buffer::logits, floats(bucket_.heads, r.vocab), at_, after);
  }
  void operator()(const Sample& r) {
    want(Buffer::sampling, std::min<uint64_t>(members_, bucket_.heads) * sample_scratch_bytes(r.vocab), at_, at_);
  }

 private:
  void want(Buffer buffer, uint64_t bytes, int32_t first, int32_t last) {
    ArenaBuffer& b = out_.buffers[static_cast<size_t>(buffer)];
    b.bytes = std::max(b.bytes, bytes);
    b.lives.push_back({first, last});
  }
  void gated(int64_t width, bool has_gate, int32_t last) {
    want(Buffer::gated, floats(bucket_.rows, width), at_, last);
    if (has_gate) want(Buffer::up, floats(bucket_.rows, width), at_, at_);
    want(Buffer::gated_prepared, prepared_bytes(bucket_.rows, width, arithmetic_), at_, last);
  }
  void word_rows(int64_t rows, int64_t width) {
    want(Buffer::word_rows, floats(rows, width), at_, at_);
    want(Buffer::word_rows_prepared, prepared_bytes(rows, width, arithmetic_), at_, at_);
  }
  int32_t next() const { return std::min(at_ + 1, static_cast<int32_t>(records_.size()) - 1); }
  void pending() {  // lives until the next record that takes it
    auto taker = at_ + 1;
    const auto takes = [](const Record& r) {
      return std::holds_alternative<Enter>(r) || std::holds_alternative<Leave>(r) || std::holds_alternative<Head>(r);
    };
    while (taker + 1 < static_cast<int32_t>(records_.size()) && !takes(records_[taker])) ++taker;
    want(Buffer::pending, floats(bucket_.rows, hidden_), at_, taker);
  }

  const std::vector<Record>& records_;
  const Bucket& bucket_;
  const Arithmetic& arithmetic_;
  int members_;
  int64_t hidden_;
  int32_t at_ = 0;
  Workspace out_;
};

}  // namespace

Workspace plan_workspace(const Program& program, const Bucket& bucket, const Arithmetic& arithmetic, int members) {
  return Planner(program, bucket, arithmetic, members).plan();
}

AttentionShape attention_shape(const Attend& record, const Bucket& bucket, KvType type) {
  return {record.shape.heads / record.shape.kv_heads,
          record.shape.head_dim,
          bucket.page_tokens,
          split_pages(bucket.page_tokens),
          record.window,
          record.scale,
          record.soft_cap,
          type};
}

int64_t split_rows(const HeadShape& shape, const Bucket& bucket, int members) {
  if (members == 1) return 0;
  return std::min<int64_t>(bucket.rows, std::max<int64_t>(1, 4 * members / shape.kv_heads));
}

int64_t most_splits(const AttentionShape& shape, const Bucket& bucket) {
  return (std::max<int64_t>(1, bucket.context) + shape.split_tokens() - 1) / shape.split_tokens();
}

uint64_t attention_scratch_stride(const AttentionShape& shape) { return aligned(attention_scratch_bytes(shape)); }

uint64_t block_state_bytes(const AttentionShape& shape) {
  return aligned(2 * floats(block_rows(shape) * shape.group, state_floats(shape)));
}

uint64_t grouping_bytes(const Moe& record, int64_t rows) {
  return aligned(sizeof(int32_t) * (record.gate.size() + 1 + 2 * static_cast<uint64_t>(rows * record.top_k)));
}

bool same_rope(const Rope& a, const Rope& b) {
  return a.rotary == b.rotary && a.scale == b.scale && a.inverse_frequency == b.inverse_frequency;
}

}  // namespace tandem::cpu
