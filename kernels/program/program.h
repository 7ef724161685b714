// A stage's forward pass as a list of records. The recording functions check shapes and derive what follows from them: a contraction
// over a split axis leaves a partial value, and the next enter, leave or head finishes it. Built once, then immutable.
#pragma once
#include <string>
#include <vector>

#include "kernels/program/record.h"

namespace tandem {

// One rank's slice of a weight, as sharding hands it to the recorder.
struct WeightSlice {
  WeightId id = kNoWeight;
  int64_t out = 0, in = 0;  // of the slice
  bool out_split = false, in_split = false;
  WeightId bias = kNoWeight;  // sliced like the rows
};

struct SharedSlices {
  WeightSlice gate, up, down, weigh;
};  // no ids: none

class Program {
 public:
  // Each throws Code::internal naming the record when shapes do not fit together or the order makes no sense.
  void embed(WeightSlice table, int64_t vocab_begin, int64_t vocab_end, float scale = 1, Positions positions = {},
             WeightSlice projection = {});
  void receive(int64_t hidden);  // x comes from the previous stage
  void enter(Norm norm, bool replaces = false);
  void normalize(Norm norm);  // what is pending
  void project(WeightSlice q, WeightSlice k, WeightSlice v, HeadShape shape, Rope rope, KvLayer kv, Norm q_norm = {}, Norm k_norm = {});
  void project(WeightSlice gate, WeightSlice up, Activation activation);  // gated
  void project(WeightSlice up, Activation activation);
  void attend(HeadShape shape, KvLayer kv, float scale, int64_t window = 0, float soft_cap = 0);
  void contract(WeightSlice weight);
  void moe(WeightSlice router, std::vector<WeightSlice> gate, std::vector<WeightSlice> up, std::vector<WeightSlice> down, int32_t experts,
           int32_t expert_begin, int32_t top_k, bool normalize, Activation activation, SharedSlices shared = {});
  void leave();
  void head(Norm norm, WeightSlice weight, int64_t vocab, std::vector<int64_t> parts, float scale = 1, float soft_cap = 0,
            WeightSlice projection = {});
  void sample();

  const std::vector<Record>& records() const { return records_; }
  int64_t hidden() const { return hidden_; }
  int64_t vocab() const { return vocab_; }  // of the whole model; 0 when this stage has no head
  bool has_head() const { return vocab_ > 0; }
  bool embeds() const { return embeds_; }
  std::string text() const;  // describe() of every record, one a line

 private:
  Pending take_pending();
  void need(bool right, const char* record, const std::string& what) const;
  void need_h(const char* record, const WeightSlice& weight) const;
  void need_norm(const char* record, const Norm& norm) const;
  void need_projection(const char* record, const WeightSlice& projection, int64_t out, int64_t in) const;
  void begin(const char* record, int64_t hidden);
  std::vector<Record> records_;
  int64_t hidden_ = 0, vocab_ = 0, width_ = 0;  // width_: of h; 0 when there is none
  Pending pending_ = Pending::none;
  bool embeds_ = false, has_x_ = false, ended_ = false;
  bool h_split_ = false;                    // h is this rank's part of a split axis
  const ProjectAttention* queries() const;  // the last record, when h is its queries: attend must follow
};

}  // namespace tandem
