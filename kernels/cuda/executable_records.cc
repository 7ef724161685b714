// How each record is carried out: the table that CudaExecutable::walk goes by.
#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/cuda/executable.h"
#include "kernels/cuda/prefill_moe.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/tile4.h"

namespace tandem::cuda {
namespace {

std::byte* at(void* base, int64_t elements, Element element) { return static_cast<std::byte*>(base) + elements * size(element); }

}  // namespace

// What products read that take a norm on their way, or the rows that an Enter left.
LinearInput CudaExecutable::normalized_input(const Bound& b, const Pass& pass) const {
  LinearInput input;
  input.element = element_;
  input.stride = hidden_;
  if (b.fused_norm) {
    input.residual = pass.x;
    input.norm_weight = b.norm;
    input.epsilon = b.epsilon;
  } else {
    input.values = buffer<std::byte>(Buffer::normalized);
  }
  return input;
}

LinearScratch CudaExecutable::linear_scratch() const {
  return {buffer<std::byte>(Buffer::linear_scratch), plan_.buffers[static_cast<size_t>(Buffer::linear_scratch)].bytes};
}

// A product of many rows: weights that are kept otherwise are widened slice by slice, each multiplied while it is in the L2 cache.
void CudaExecutable::multiply(const Pass& pass, const BoundProduct& p, const void* x, int64_t x_stride, int64_t rows, void* y, int64_t y_stride,
                              bool y_is_float, bool add) {
  const Weight& w = p.weight;
  GemmCall call;
  call.rows = (rows + kRowTile - 1) / kRowTile * kRowTile;  // buffers hold whole tiles; what lies past the rows is read by nobody
  call.in = w.cols;
  call.x = x, call.x_stride = x_stride;
  call.y_stride = y_stride;
  call.element = element_;
  call.y_is_float = y_is_float, call.add = add;
  call.w_stride = dense_stride(w.cols);
  const Element out = y_is_float ? Element::f32 : element_;
  if (w.resident->kind == Kind::dense) {
    call.out = w.rows, call.w = w.data, call.y = y;
    gemm_->multiply(call);
  } else {
    const int64_t row_bytes = call.w_stride * size(element_);
    const uint64_t room = plan_.buffers[static_cast<size_t>(Buffer::widened)].bytes;
    int64_t slice = static_cast<int64_t>(room) / row_bytes;
    slice = slice >= 128 ? slice / 128 * 128 : slice / 16 * 16;
    if (slice < 16) fail(Code::internal, "matrix product", "a slice of a weight does not fit the workspace");
    for (int64_t row = 0; row < w.rows; row += slice) {
      const int64_t count = std::min(slice, w.rows - row);
      tile4_widen(pass.how, w, row, count, buffer<std::byte>(Buffer::widened), element_, call.w_stride);
      call.out = count, call.w = buffer<std::byte>(Buffer::widened), call.y = at(y, row, out);
      gemm_->multiply(call);
    }
  }
  if (p.bias != nullptr) add_bias(pass.how, p.bias, y, out, rows, w.rows, y_stride);
}

// x += pending, summed over the peers. A whole result was added to x by the product that made it, unless it `stayed`.
void CudaExecutable::finish_pending(const Pass& pass, Pending pending, bool stayed, int64_t rows) {
  if (pending == Pending::none || (pending == Pending::whole && !stayed)) return;
  auto* values = buffer<float>(Buffer::pending);
  if (pending == Pending::partial && split()) return peers_->reduce_into(pass.how, pass.x, values, rows, hidden_);
  EnterCall call;
  call.x = pass.x, call.pending = values;
  call.rows = rows, call.hidden = hidden_;
  enter(pass.how, call);
}

void CudaExecutable::run(const Embed& r, const Bound& b, const Pass& pass) {
  const Weight& table = b.products[0].weight;
  const bool projects = b.projection.weight.data != nullptr;
  float* const result = r.partial ? buffer<float>(Buffer::pending) : pass.x;
  EmbedCall call;
  call.step = pass.view;
  call.ids = pass.ids;
  call.last_ids = buffer<int32_t>(Buffer::last_ids);
  call.table = table.data;
  call.table_element = table.resident->element;
  call.table_rows = table.rows, call.table_stride = dense_stride(table.cols);
  call.begin = r.vocab_begin, call.hidden = r.width();
  call.scale = r.scale;
  call.x = projects ? buffer<float>(Buffer::word_rows) : result;
  call.most_rows = static_cast<int32_t>(pass.rows);
  embed(pass.how, call);
  if (projects) {
    EnterCall words;
    words.x = call.x, words.kind = NormKind::none;
    words.h = buffer<std::byte>(Buffer::words), words.element = element_;
    words.rows = pass.rows, words.hidden = r.width();
    enter(pass.how, words);
    product_of_rows(pass, b.projection, words.h, r.width(), pass.rows, result, hidden_, true, false);
  }
  if (r.partial) check(cudaMemsetAsync(pass.x, 0, sizeof(float) * static_cast<size_t>(pass.rows * hidden_), stream_), "hidden rows");
  if (b.positions.data == nullptr) return;
  PositionsCall positions;
  positions.step = pass.view;
  positions.table = b.positions.data, positions.table_element = b.positions.resident->element, positions.table_stride = dense_stride(b.positions.cols);
  positions.offset = r.positions.offset, positions.hidden = hidden_;
  positions.x = pass.x, positions.most_rows = call.most_rows;
  add_positions(pass.how, positions);
}

void CudaExecutable::run(const Enter& r, const Bound& b, const Pass& pass) {
  finish_pending(pass, r.pending, b.stays_pending, pass.rows);
  if ((b.left_to_next && pass.rows <= kFewRows) || (b.left_to_mixture && pass.rows == 1)) return;
  EnterCall call;
  call.x = pass.x;
  call.weight = b.norm, call.bias = b.norm_bias;
  call.kind = r.norm.kind, call.epsilon = r.norm.epsilon;
  call.h = buffer<std::byte>(Buffer::normalized);
  call.element = element_;
  call.replaces = r.replaces;
  call.rows = pass.rows, call.hidden = hidden_;
  enter(pass.how, call);
}

void CudaExecutable::run(const Normalize& r, const Bound& b, const Pass& pass) {
  auto* values = buffer<float>(Buffer::pending);
  if (r.pending == Pending::partial && split()) peers_->all_reduce(pass.how, values, static_cast<size_t>(pass.rows * hidden_));
  EnterCall call;
  call.x = values;
  call.weight = b.norm, call.bias = b.norm_bias;
  call.kind = r.norm.kind, call.epsilon = r.norm.epsilon;
  call.replaces = true;
  call.rows = pass.rows, call.hidden = hidden_;
  enter(pass.how, call);
}

// y = (add: +=) one product of rows that are `element` already, by whichever way there is for so many; y as float (add: always) or element.
void CudaExecutable::product_of_rows(const Pass& pass, const BoundProduct& p, const void* x, int64_t x_stride, int64_t rows, void* y, int64_t y_stride,
                                     bool y_is_float, bool add) {
  if (rows > kFewRows) return multiply(pass, p, x, x_stride, rows, y, y_stride, y_is_float, add);
  LinearCall call;
  call.products = {&p, 1};
  call.input.values = x, call.input.element = element_, call.input.stride = x_stride;
  call.rows = rows;
  call.output = add ? LinearOutput::add_f32 : y_is_float ? LinearOutput::store_f32 : LinearOutput::store;
  call.y = y, call.y_stride = y_stride;
  linear(pass.how, call, linear_scratch());
}

void CudaExecutable::run(const ProjectAttention& r, const Bound& b, const Pass& pass) {
  auto* qkv = buffer<std::byte>(Buffer::qkv);
  const int64_t width = r.q.out + r.k.out + r.v.out;
  if (pass.rows <= kFewRows) {
    LinearCall call;
    call.products = b.products;
    call.input = normalized_input(b, pass);
    call.rows = pass.rows;
    call.y = qkv, call.y_stride = width;
    linear(pass.how, call, linear_scratch());
  } else {
    const auto* h = buffer<std::byte>(Buffer::normalized);
    int64_t column = 0;
    for (const BoundProduct& p : b.products) {
      multiply(pass, p, h, hidden_, pass.rows, at(qkv, column, element_), width, false, false);
      column += p.weight.rows;
    }
  }
  const int64_t dim = r.shape.head_dim;
  if (b.head_norm != nullptr) normalize_heads(pass.how, r.q_norm.kind, r.q_norm.epsilon, b.head_norm, qkv, element_, pass.rows, r.shape.heads, dim, width);
  if (b.key_norm != nullptr) {
    normalize_heads(pass.how, r.k_norm.kind, r.k_norm.epsilon, b.key_norm, at(qkv, r.q.out, element_), element_, pass.rows, r.shape.kv_heads, dim, width);
  }
}

void CudaExecutable::run(const Attend& r, const Bound& b, const Pass& pass) {
  const auto& group = groups_[static_cast<size_t>(r.kv.group)];
  AttentionCall call;
  call.step = pass.view;
  call.cache.page_stride = group.page_bytes;
  call.cache.type = arithmetic_.kv;
  call.cache.group = r.kv.group;
  call.cache.page_tokens = bucket_.page_tokens;
  call.cache.kv_heads = r.shape.kv_heads, call.cache.head_dim = r.shape.head_dim;
  call.cache.memory = group.memory + static_cast<uint64_t>(r.kv.layer) * 2 * static_cast<uint64_t>(r.shape.kv_heads * r.shape.head_dim) *
                                         static_cast<uint64_t>(bucket_.page_tokens) * static_cast<uint64_t>(size(arithmetic_.kv));
  call.shape = r.shape;
  call.rope = b.rope;
  call.scale = r.scale, call.window = r.window, call.soft_cap = r.soft_cap;
  call.qkv = buffer<std::byte>(Buffer::qkv);
  call.qkv_stride = (r.shape.heads + 2 * r.shape.kv_heads) * r.shape.head_dim;
  call.out = buffer<std::byte>(Buffer::attended);
  call.element = element_;
  call.singles = pass.singles;
  call.most_sequences = pass.sequences, call.most_rows = static_cast<int32_t>(pass.rows), call.most_context = pass.context;
  call.scratch = buffer<std::byte>(Buffer::attention_scratch);
  pass.decode ? attend_decode(pass.how, call) : attend_any(pass.how, call);
}

// Buffer::gated = activation(gate h) * (up h), or activation(up h) of one product; h as b takes it.
void CudaExecutable::gated_mlp(const Pass& pass, std::span<const BoundProduct> products, const Bound& b, Activation activation) {
  const bool gates = products.size() == 2;
  const int64_t ffn = products.back().weight.rows;
  auto* gated = buffer<std::byte>(Buffer::gated);
  if (pass.rows <= kFewRows) {
    LinearCall call;
    call.products = products;
    call.input = normalized_input(b, pass);
    call.rows = pass.rows;
    call.output = gates ? LinearOutput::gated : LinearOutput::activated;
    call.activation = activation;
    call.y = gated, call.y_stride = ffn;
    return linear(pass.how, call, linear_scratch());
  }
  const auto* h = buffer<std::byte>(Buffer::normalized);
  auto* gate_up = buffer<std::byte>(Buffer::gate_up);
  const int64_t width = (gates ? 2 : 1) * ffn;
  for (size_t p = 0; p < products.size(); ++p) {
    multiply(pass, products[p], h, hidden_, pass.rows, at(gate_up, static_cast<int64_t>(p) * ffn, element_), width, false, false);
  }
  activate(pass.how, activation, gate_up, gates ? at(gate_up, ffn, element_) : nullptr, gated, element_, pass.rows, ffn, width, ffn);
}

void CudaExecutable::run(const ProjectMlp& r, const Bound& b, const Pass& pass) {
  gated_mlp(pass, std::span(b.products).first(r.gated ? 2 : 1), b, r.activation);
}

void CudaExecutable::run(const Contract& r, const Bound& b, const Pass& pass) {
  const bool adds = !r.partial && !b.stays_pending;
  float* y = adds ? pass.x : buffer<float>(Buffer::pending);
  product_of_rows(pass, b.products[0], buffer<std::byte>(b.in), r.product.in, pass.rows, y, hidden_, true, adds);
}

void CudaExecutable::run(const Moe& r, const Bound& b, const Pass& pass) {
  const auto local = static_cast<int32_t>(r.gate.size());
  const auto* h = buffer<std::byte>(Buffer::normalized);
  auto* lists = buffer<std::byte>(Buffer::expert_lists);
  const ExpertListLayout layout = expert_list_layout(bucket_.rows, local, r.top_k);
  MoeCall choice;
  choice.rows = pass.rows;
  choice.experts = r.experts, choice.expert_begin = r.expert_begin, choice.local_experts = local, choice.top_k = r.top_k;
  choice.normalize = r.normalize;
  choice.lists = {reinterpret_cast<int32_t*>(lists + layout.begin), reinterpret_cast<int32_t*>(lists + layout.row_of),
                  reinterpret_cast<int32_t*>(lists + layout.pair_of), reinterpret_cast<float*>(lists + layout.weight)};
  if (b.enters && pass.rows == 1) {
    EnterMixtureCall enter;
    enter.x = pass.x, enter.h = buffer<std::byte>(Buffer::normalized);
    enter.norm_weight = b.norm, enter.epsilon = b.epsilon;
    enter.router = b.products[0].weight.data, enter.router_bias = b.products[0].bias;
    enter.element = element_, enter.hidden = hidden_;
    enter.choice = choice;
    enter_mixture(pass.how, enter);
  } else {
    auto* logits = buffer<float>(Buffer::router_logits);
    product_of_rows(pass, b.products[0], h, hidden_, pass.rows, logits, r.experts, true, false);
    choice.router_logits = logits;
    route(pass.how, choice);
  }

  ExpertCall call;
  call.gate = {b.gate[0], b.experts[0]}, call.up = {b.up[0], b.experts[1]}, call.down = {b.down[0], b.experts[2]};
  call.h = h, call.element = element_;
  call.rows = pass.rows, call.hidden = hidden_, call.ffn = r.gate[0].out;
  call.local_experts = local, call.top_k = r.top_k;
  call.activation = r.activation;
  call.lists = choice.lists;
  call.gated = buffer<std::byte>(Buffer::expert_gated);
  call.results = buffer<float>(Buffer::expert_results);
  call.add = !r.partial && !b.stays_pending;
  call.y = call.add ? pass.x : buffer<float>(Buffer::pending);
  pass.rows <= kFewRows ? experts(pass.how, call, linear_scratch()) : run_many_experts(r, b, pass, call);
  if (r.has_shared()) run_shared(r, b, pass, call.y);
}

// y += the expert that all rows go through, when the others' results are there.
void CudaExecutable::run_shared(const Moe& r, const Bound& b, const Pass& pass, float* y) {
  auto *values = buffer<float>(Buffer::expert_results), *logits = buffer<float>(Buffer::router_logits);
  gated_mlp(pass, b.shared, b, r.activation);
  product_of_rows(pass, b.shared_down, buffer<std::byte>(Buffer::gated), r.shared.up.out, pass.rows, values, hidden_, true, false);
  product_of_rows(pass, b.weigh, buffer<std::byte>(Buffer::normalized), hidden_, pass.rows, logits, 1, true, false);
  add_weighted(pass.how, logits, values, y, pass.rows, hidden_);
}

// The host must know how many rows each expert has: the one wait of a large step.
void CudaExecutable::run_many_experts(const Moe& r, const Bound& b, const Pass& pass, const ExpertCall& call) {
  const int64_t local = call.local_experts, ffn = call.ffn;
  expert_begin_.resize(static_cast<size_t>(local) + 1);
  check(cudaMemcpyAsync(expert_begin_.data(), call.lists.begin, expert_begin_.size() * sizeof(int32_t), cudaMemcpyDeviceToHost, stream_), "expert lists");
  check(cudaStreamSynchronize(stream_), "expert lists");
  const int64_t pairs = expert_begin_.back();
  auto* rows = buffer<std::byte>(Buffer::expert_rows);
  auto* gate_up = buffer<std::byte>(Buffer::expert_gate_up);
  gather_rows(pass.how, call.h, element_, hidden_, call.lists.row_of, pairs, rows);
  for (size_t e = 0; e < static_cast<size_t>(local); ++e) {
    const int64_t begin = expert_begin_[e], count = expert_begin_[e + 1] - begin;
    if (count == 0) continue;
    const void* x = at(rows, begin * hidden_, element_);
    multiply(pass, {b.gate[e], nullptr}, x, hidden_, count, at(gate_up, begin * 2 * ffn, element_), 2 * ffn, false, false);
    multiply(pass, {b.up[e], nullptr}, x, hidden_, count, at(gate_up, begin * 2 * ffn + ffn, element_), 2 * ffn, false, false);
  }
  activate(pass.how, r.activation, gate_up, at(gate_up, ffn, element_), call.gated, element_, pairs, ffn, 2 * ffn, ffn);
  for (size_t e = 0; e < static_cast<size_t>(local); ++e) {
    const int64_t begin = expert_begin_[e], count = expert_begin_[e + 1] - begin;
    if (count == 0) continue;
    multiply(pass, {b.down[e], nullptr}, at(call.gated, begin * ffn, element_), ffn, count, call.results + begin * hidden_, hidden_, true, false);
  }
  join(pass.how, call);
}

void CudaExecutable::run(const Leave& r, const Bound& b, const Pass& pass) {
  finish_pending(pass, r.pending, b.stays_pending, pass.rows);
  if (pass.hidden_out == nullptr) return;
  check(cudaMemcpyAsync(pass.hidden_out, pass.x, sizeof(float) * static_cast<size_t>(pass.rows * hidden_), cudaMemcpyDeviceToDevice, stream_), "hidden rows");
}

void CudaExecutable::run(const Head& r, const Bound& b, const Pass& pass) {
  finish_pending(pass, r.pending, b.stays_pending, pass.rows);
  if (pass.heads == 0) return;
  const bool parts = !r.parts.empty() && split();
  auto* logits = buffer<float>(Buffer::logits);
  float* mine = parts ? buffer<float>(Buffer::logits_part) : logits;
  const int64_t width = r.product.out;
  const bool few = pass.heads <= kFewRows, fused = few && b.fused_norm;
  if (!fused) {
    EnterCall call;
    call.x = pass.x;
    call.weight = b.norm, call.bias = b.norm_bias;
    call.kind = r.norm.kind, call.epsilon = r.norm.epsilon;
    call.h = buffer<std::byte>(Buffer::head_rows);
    call.element = element_;
    call.row_of = pass.head_rows;
    call.rows = pass.heads, call.hidden = hidden_;
    enter(pass.how, call);
  }
  // What the product reads, unless it takes the norm itself.
  const void* rows = buffer<std::byte>(Buffer::head_rows);
  int64_t stride = hidden_;
  if (b.projection.weight.data != nullptr) {
    stride = r.projection.out;
    product_of_rows(pass, b.projection, rows, hidden_, pass.heads, buffer<std::byte>(Buffer::words), stride, false, false);
    rows = buffer<std::byte>(Buffer::words);
  }
  if (few) {
    LinearCall call;
    call.products = std::span(b.products).first(1);
    if (fused) {
      call.input = normalized_input(b, pass);
      call.input.row_of = pass.head_rows;
    } else {
      call.input.values = rows;
      call.input.element = element_;
      call.input.stride = stride;
    }
    call.rows = pass.heads;
    call.output = LinearOutput::store_f32;
    call.y = mine, call.y_stride = width;
    call.scale = r.scale, call.soft_cap = r.soft_cap;
    linear(pass.how, call, linear_scratch());
  } else {
    multiply(pass, b.products[0], rows, stride, pass.heads, mine, width, true, false);
    if (r.scale != 1 || r.soft_cap != 0) scale_and_cap(pass.how, mine, pass.heads * width, r.scale, r.soft_cap);
  }
  if (!parts) return;

  float* gathered = pass.heads == 1 ? logits : mine + pass.heads * width;  // [members][heads, part]
  size_t counts[64];
  for (size_t i = 0; i < r.parts.size(); ++i) counts[i] = static_cast<size_t>(pass.heads * r.parts[i]);
  peers_->all_gather(pass.how, mine, {counts, r.parts.size()}, gathered);
  if (pass.heads == 1) return;
  int64_t before = 0;
  for (const int64_t part : r.parts) {
    check(cudaMemcpy2DAsync(logits + before, sizeof(float) * static_cast<size_t>(r.vocab), gathered + pass.heads * before, sizeof(float) * static_cast<size_t>(part),
                            sizeof(float) * static_cast<size_t>(part), static_cast<size_t>(pass.heads), cudaMemcpyDeviceToDevice, stream_),
          "logits");
    before += part;
  }
}

void CudaExecutable::run(const Sample&, const Bound&, const Pass&) {}  // sample() does it, when the scheduler has its parameters

}  // namespace tandem::cuda
