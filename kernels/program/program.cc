#include "kernels/program/program.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/program/backend.h"

namespace tandem {
namespace {

Product product(const WeightSlice& w) { return {w.id, w.bias, w.out, w.in}; }

std::string shape(const WeightSlice& w) {
  return "w" + std::to_string(w.id) + "[" + std::to_string(w.out) + "," + std::to_string(w.in) + "]";
}

}  // namespace

void Program::need(bool right, const char* record, const std::string& what) const {
  if (!right) fail(Code::internal, std::string("program record ") + std::to_string(records_.size()) + " (" + record + ")", what);
}

const ProjectAttention* Program::queries() const { return records_.empty() ? nullptr : std::get_if<ProjectAttention>(&records_.back()); }

// A product of h, whose input is whole.
void Program::need_h(const char* record, const WeightSlice& weight) const {
  need(has_x_ && !ended_, record, "no hidden rows here (embed or receive first, nothing after leave or head)");
  need(width_ > 0, record, "no working value to read (enter first)");
  need(queries() == nullptr, record, "queries are read by attend only");
  need(weight.id != kNoWeight && weight.out > 0, record, shape(weight) + " is no weight");
  need(weight.in == width_, record, shape(weight) + " does not take a working value of width " + std::to_string(width_));
  need(!weight.in_split && !h_split_, record, shape(weight) + " reads a split value (contract it)");
}

Pending Program::take_pending() { return std::exchange(pending_, Pending::none); }

void Program::begin(const char* record, int64_t hidden) {
  need(!has_x_ && records_.empty(), record, "hidden rows exist already");
  need(hidden > 0, record, "no width");
  hidden_ = hidden, has_x_ = true;
}

void Program::need_norm(const char* record, const Norm& norm) const {
  need((norm.weight == kNoWeight) == (norm.kind == NormKind::none), record, "the norm has no weight");
}

void Program::need_projection(const char* record, const WeightSlice& projection, int64_t out, int64_t in) const {
  if (projection.id == kNoWeight)
    return need(out == in, record, "rows of " + std::to_string(in) + " are not " + std::to_string(out) + " wide");
  need(projection.out == out && projection.in == in && !projection.out_split && !projection.in_split && projection.bias == kNoWeight,
       record, shape(projection) + " does not take " + std::to_string(in) + " to " + std::to_string(out) + ", whole and without a bias");
}

void Program::embed(WeightSlice table, int64_t vocab_begin, int64_t vocab_end, float scale, Positions positions, WeightSlice projection) {
  begin("embed", projection.id == kNoWeight ? table.in : projection.out);
  need_projection("embed", projection, hidden_, table.in);
  need(positions.table == kNoWeight || (positions.offset >= 0 && positions.rows > positions.offset), "embed", "the table has no positions");
  need(table.id != kNoWeight && !table.in_split, "embed", shape(table) + " must be whole along the hidden axis");
  need(0 <= vocab_begin && vocab_begin < vocab_end && table.out == vocab_end - vocab_begin, "embed",
       shape(table) + " does not hold ids " + std::to_string(vocab_begin) + ".." + std::to_string(vocab_end));
  records_.push_back(Embed{table.id, hidden_, vocab_begin, vocab_end, scale, table.out_split, positions, product(projection)});
  pending_ = table.out_split ? Pending::partial : Pending::none;
  embeds_ = true;
}

void Program::receive(int64_t hidden) { begin("receive", hidden); }

void Program::enter(Norm norm, bool replaces) {
  need(has_x_ && !ended_, "enter", "no hidden rows here (embed or receive first, nothing after leave or head)");
  need_norm("enter", norm);
  need(queries() == nullptr, "enter", "queries are read by attend only");
  records_.push_back(Enter{norm, hidden_, take_pending(), replaces});
  width_ = hidden_, h_split_ = false;
}

void Program::normalize(Norm norm) {
  need(pending_ != Pending::none && !ended_, "normalize", "nothing is pending (contract first)");
  need(norm.weight != kNoWeight, "normalize", "the norm has no weight");
  records_.push_back(Normalize{norm, hidden_, take_pending()});
  pending_ = Pending::whole;
}

void Program::project(WeightSlice q, WeightSlice k, WeightSlice v, HeadShape shape, Rope rope, KvLayer kv, Norm q_norm, Norm k_norm) {
  for (const WeightSlice& w : {q, k, v}) need_h("project", w);
  need(shape.kv_heads > 0 && shape.head_dim > 0 && shape.heads > 0 && shape.heads % shape.kv_heads == 0, "project",
       std::to_string(shape.heads) + " heads cannot share " + std::to_string(shape.kv_heads) + " key heads evenly");
  need(q.out == shape.heads * shape.head_dim && k.out == shape.kv_heads * shape.head_dim && v.out == k.out, "project",
       "the weights' rows are not heads x head_dim");
  need(q.out_split == v.out_split, "project", "queries and values must be split alike");  // keys of a few heads may be replicated with them
  need(rope.rotary >= 0 && rope.rotary % 2 == 0 && rope.rotary <= shape.head_dim &&
           rope.inverse_frequency.size() == static_cast<size_t>(rope.rotary / 2),
       "project",
       "rotates " + std::to_string(rope.rotary) + " elements with " + std::to_string(rope.inverse_frequency.size()) + " frequencies");
  need(kv.group >= 0 && kv.group < kMaxKvGroups && kv.layer >= 0, "project", "no such KV group");
  need(q_norm.bias == kNoWeight && k_norm.bias == kNoWeight, "project", "norms of heads have no biases");
  records_.push_back(ProjectAttention{product(q), product(k), product(v), shape, std::move(rope), kv, q_norm, k_norm});
  width_ = q.out, h_split_ = q.out_split;
}

void Program::project(WeightSlice gate, WeightSlice up, Activation activation) {
  for (const WeightSlice& w : {gate, up}) need_h("project", w);
  need(gate.out == up.out && gate.out_split == up.out_split, "project", "gate and up differ in shape");
  records_.push_back(ProjectMlp{product(gate), product(up), activation, true});
  width_ = up.out, h_split_ = up.out_split;
}

void Program::project(WeightSlice up, Activation activation) {
  need_h("project", up);
  records_.push_back(ProjectMlp{{}, product(up), activation, false});
  width_ = up.out, h_split_ = up.out_split;
}

void Program::attend(HeadShape shape, KvLayer kv, float scale, int64_t window, float soft_cap) {
  const ProjectAttention* q = queries();
  need(q != nullptr, "attend", "no queries (project them right before)");
  need(q->shape.heads == shape.heads && q->shape.kv_heads == shape.kv_heads && q->shape.head_dim == shape.head_dim, "attend",
       "the queries have another shape");
  need(q->kv.group == kv.group && q->kv.layer == kv.layer, "attend", "the keys were appended to another layer");
  need(scale > 0 && window >= 0 && soft_cap >= 0, "attend", "the scale must be positive, window and soft cap not negative");
  records_.push_back(Attend{shape, kv, scale, window, soft_cap});
}

void Program::contract(WeightSlice weight) {
  need(has_x_ && !ended_ && width_ > 0, "contract", "no working value to read");
  need(queries() == nullptr, "contract", "queries are read by attend only");
  need(pending_ == Pending::none, "contract", "a result is pending already (enter first)");
  need(weight.id != kNoWeight && weight.in == width_ && weight.out == hidden_, "contract",
       shape(weight) + " does not take " + std::to_string(width_) + " to " + std::to_string(hidden_));
  need(!weight.out_split, "contract", shape(weight) + " must give whole hidden rows");
  need(weight.in_split == h_split_, "contract",
       h_split_ ? shape(weight) + " is whole, but reads a split value"
                : shape(weight) + " is split, but its replicated input would be summed twice");
  records_.push_back(Contract{product(weight), weight.in_split});
  pending_ = weight.in_split ? Pending::partial : Pending::whole;
  width_ = 0, h_split_ = false;
}

void Program::moe(WeightSlice router, std::vector<WeightSlice> gate, std::vector<WeightSlice> up, std::vector<WeightSlice> down,
                  int32_t experts, int32_t expert_begin, int32_t top_k, bool normalize, Activation activation, SharedSlices shared) {
  need_h("moe", router);
  need(pending_ == Pending::none, "moe", "a result is pending already (enter first)");
  need(experts > 0 && router.out == experts && !router.out_split, "moe", "the router must see all " + std::to_string(experts) + " experts");
  need(top_k >= 1 && top_k <= experts, "moe", "cannot choose " + std::to_string(top_k) + " of " + std::to_string(experts) + " experts");
  const auto local = static_cast<int64_t>(gate.size());
  need(local >= 1 && up.size() == gate.size() && down.size() == gate.size(), "moe", "gate, up and down are not as many");
  need(expert_begin >= 0 && expert_begin + local <= experts, "moe",
       "experts " + std::to_string(expert_begin) + ".." + std::to_string(expert_begin + local) + " of " + std::to_string(experts));
  Moe record{product(router), {}, {}, {}, experts, expert_begin, top_k, normalize, activation, false, {}};
  for (size_t e = 0; e < gate.size(); ++e) {
    need_h("moe", gate[e]);
    need_h("moe", up[e]);
    need(
        gate[e].out == gate[0].out && up[e].out == gate[0].out && down[e].in == gate[0].out && down[e].out == hidden_ && !down[e].out_split,
        "moe", "expert " + std::to_string(e) + " has another shape");
    need(gate[e].out_split == gate[0].out_split && up[e].out_split == gate[0].out_split && down[e].in_split == gate[0].out_split, "moe",
         "expert " + std::to_string(e) + " is split otherwise");
    record.gate.push_back(product(gate[e]));
    record.up.push_back(product(up[e]));
    record.down.push_back(product(down[e]));
  }
  record.partial = local < experts || gate[0].out_split;
  if (shared.up.id != kNoWeight) {
    for (const WeightSlice& w : {shared.gate, shared.up, shared.weigh}) need_h("moe", w);
    need(shared.gate.out == shared.up.out && shared.down.in == shared.up.out && shared.down.out == hidden_ && !shared.down.out_split, "moe",
         "the shared expert's weights do not fit together");
    need(shared.weigh.out == 1 && !shared.weigh.out_split, "moe", "the shared expert has one weight a row");
    need(shared.gate.out_split == record.partial && shared.up.out_split == record.partial && shared.down.in_split == record.partial, "moe",
         "the shared expert must be split when the others are: whole, it would be summed twice");
    record.shared = {product(shared.gate), product(shared.up), product(shared.down), product(shared.weigh)};
  }
  pending_ = record.partial ? Pending::partial : Pending::whole;
  records_.push_back(std::move(record));
  width_ = 0, h_split_ = false;
}

void Program::leave() {
  need(has_x_ && !ended_, "leave", "no hidden rows here");
  need(queries() == nullptr, "leave", "queries are read by attend only");
  records_.push_back(Leave{hidden_, take_pending()});
  ended_ = true, width_ = 0;
}

void Program::head(Norm norm, WeightSlice weight, int64_t vocab, std::vector<int64_t> parts, float scale, float soft_cap,
                   WeightSlice projection) {
  need(has_x_ && !ended_, "head", "no hidden rows here");
  need(queries() == nullptr, "head", "queries are read by attend only");
  need_norm("head", norm);
  need(weight.id != kNoWeight && !weight.in_split, "head", shape(weight) + " is no weight of a head");
  need_projection("head", projection, weight.in, hidden_);
  need(soft_cap >= 0 && vocab > 0, "head", "vocabulary and soft cap must be positive");
  if (weight.out_split) {
    need(std::accumulate(parts.begin(), parts.end(), int64_t{0}) == vocab, "head", "the parts are not the vocabulary");
    need(std::find(parts.begin(), parts.end(), weight.out) != parts.end(), "head", shape(weight) + " is none of the parts");
  } else {
    need(parts.empty() && weight.out == vocab, "head", shape(weight) + " is not the vocabulary of " + std::to_string(vocab));
  }
  records_.push_back(Head{norm, product(weight), hidden_, vocab, std::move(parts), take_pending(), scale, soft_cap, product(projection)});
  vocab_ = vocab, ended_ = true, width_ = 0;
}

void Program::sample() {
  need(!records_.empty() && std::holds_alternative<Head>(records_.back()), "sample", "no logits (head right before)");
  records_.push_back(Sample{vocab_});
}

std::string Program::text() const {
  std::string lines;
  for (const Record& record : records_) lines += describe(record) + "\n";
  return lines;
}

uint64_t page_bytes(const KvShape& shape, int32_t page_tokens, KvType type) {
  return uint64_t{2} * shape.layers * shape.kv_heads * shape.head_dim * page_tokens * size(type);
}

}  // namespace tandem
