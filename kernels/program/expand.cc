#include "kernels/program/expand.h"

namespace tandem {
namespace {

class Expander {
 public:
  std::vector<Primitive> take() { return std::move(out_); }

  void operator()(const Embed& r) {
    const int out = r.partial ? kPending : kX;
    const int at = inner(), positions = inner();
    if (r.positions.table != kNoWeight) {
      add({.operation = Operation::position, .out = r.partial ? kX : positions, .weight = r.positions.table, .begin = r.positions.offset});
    } else if (r.partial) {
      add({.operation = Operation::zero, .out = kX, .width = r.hidden});
    }
    const bool projects = r.projection.weight != kNoWeight;
    add({.operation = Operation::look_up,
         .out = projects ? at : out,
         .weight = r.table,
         .width = r.vocab_end - r.vocab_begin,
         .begin = r.vocab_begin});
    if (projects) product(r.projection, at, out);
    if (r.scale != 1) add({.operation = Operation::scale, .out = out, .a = out, .number = r.scale});
    if (r.positions.table != kNoWeight && !r.partial) add({.operation = Operation::add, .out = kX, .a = kX, .b = positions});
  }
  void operator()(const Enter& r) {
    finish(r.pending);
    norm(r.norm, kX, kH);
    if (r.replaces) add({.operation = Operation::copy, .out = kX, .a = kH});
  }
  void operator()(const Normalize& r) {
    if (r.pending == Pending::partial) add({.operation = Operation::reduce, .out = kPending, .a = kPending});
    norm(r.norm, kPending, kPending);
  }
  void operator()(const ProjectAttention& r) {
    const int q = inner(), k = inner(), v = inner();
    product(r.q, kH, q);
    product(r.k, kH, k);
    product(r.v, kH, v);
    if (r.q_norm.weight != kNoWeight) norm(r.q_norm, q, q, r.shape.head_dim);
    if (r.k_norm.weight != kNoWeight) norm(r.k_norm, k, k, r.shape.head_dim);
    if (r.rope.rotary > 0) {
      add({.operation = Operation::rotate, .out = q, .a = q, .width = r.shape.head_dim, .groups = r.shape.heads, .rope = &r.rope});
      add({.operation = Operation::rotate, .out = k, .a = k, .width = r.shape.head_dim, .groups = r.shape.kv_heads, .rope = &r.rope});
    }
    add({.operation = Operation::append, .a = k, .b = v, .width = r.shape.head_dim, .groups = r.shape.kv_heads, .kv = r.kv});
    add({.operation = Operation::copy, .out = kH, .a = q});
  }
  void operator()(const ProjectMlp& r) {
    const int gate = inner(), up = inner();
    if (r.gated) product(r.gate, kH, gate);
    product(r.up, kH, up);
    mlp(r.gated, r.activation, gate, up, kH);
  }
  void operator()(const Attend& r) {
    const int scores = inner();
    add({.operation = Operation::scores, .out = scores, .a = kH, .width = r.shape.head_dim, .groups = r.shape.heads, .kv = r.kv});
    add({.operation = Operation::scale, .out = scores, .a = scores, .number = r.scale});
    if (r.soft_cap != 0) add({.operation = Operation::cap, .out = scores, .a = scores, .number = r.soft_cap});
    add({.operation = Operation::mask, .out = scores, .a = scores, .groups = r.shape.heads, .begin = r.window});
    add({.operation = Operation::softmax, .out = scores, .a = scores, .groups = r.shape.heads});
    add({.operation = Operation::mix, .out = kH, .a = scores, .width = r.shape.head_dim, .groups = r.shape.heads, .kv = r.kv});
  }
  void operator()(const Contract& r) { product(r.product, kH, kPending, r.partial); }
  void operator()(const Moe& r) {
    const int router = inner();
    product(r.router, kH, router);
    add({.operation = Operation::softmax, .out = router, .a = router, .width = r.experts, .groups = 1});
    add({.operation = Operation::choose,
         .out = router,
         .a = router,
         .width = r.experts,
         .groups = r.top_k,
         .number = r.normalize ? 1.0f : 0.0f});
    add({.operation = Operation::zero, .out = kPending, .width = r.down[0].out});
    const int gate = inner(), up = inner(), result = inner();
    for (size_t e = 0; e < r.gate.size(); ++e) {
      product(r.gate[e], kH, gate);
      product(r.up[e], kH, up);
      mlp(true, r.activation, gate, up, gate);
      product(r.down[e], gate, result);
      add({.operation = Operation::add_scaled,
           .out = kPending,
           .a = result,
           .b = router,
           .begin = r.expert_begin + static_cast<int64_t>(e)});
    }
    if (!r.has_shared()) return;
    const int weigh = inner();
    product(r.shared.gate, kH, gate);
    product(r.shared.up, kH, up);
    mlp(true, r.activation, gate, up, gate);
    product(r.shared.down, gate, result);
    product(r.shared.weigh, kH, weigh);
    add({.operation = Operation::sigmoid, .out = weigh, .a = weigh});
    add({.operation = Operation::add_scaled, .out = kPending, .a = result, .b = weigh});
  }
  void operator()(const Leave& r) { finish(r.pending); }
  void operator()(const Head& r) {
    finish(r.pending);
    const int rows = inner();
    add({.operation = Operation::pick, .out = rows, .a = kX});
    norm(r.norm, rows, rows);
    if (r.projection.weight != kNoWeight) product(r.projection, rows, rows);
    product(r.product, rows, kLogits);
    if (r.scale != 1) add({.operation = Operation::scale, .out = kLogits, .a = kLogits, .number = r.scale});
    if (r.soft_cap != 0) add({.operation = Operation::cap, .out = kLogits, .a = kLogits, .number = r.soft_cap});
    if (!r.parts.empty()) add({.operation = Operation::gather, .out = kLogits, .a = kLogits, .width = r.vocab});
  }
  void operator()(const Sample&) {}  // a choice, not arithmetic on rows: see the backends' sample

 private:
  int inner() { return next_++; }
  void add(Primitive p) { out_.push_back(p); }
  void finish(Pending pending) {
    if (pending == Pending::none) return;
    if (pending == Pending::partial) add({.operation = Operation::reduce, .out = kPending, .a = kPending});
    add({.operation = Operation::add, .out = kX, .a = kX, .b = kPending});
  }
  void norm(const Norm& n, int a, int out, int64_t width = 0) {
    if (n.kind == NormKind::none) {
      if (a != out) add({.operation = Operation::copy, .out = out, .a = a});
      return;
    }
    const Operation kind = n.kind == NormKind::rms ? Operation::rms_norm : Operation::layer_norm;
    add({.operation = kind, .out = out, .a = a, .weight = n.weight, .bias = n.bias, .width = width, .number = n.epsilon});
  }
  void product(const Product& p, int a, int out, bool first_only = false) {
    add({.operation = Operation::matrix, .out = out, .a = a, .weight = p.weight, .width = p.out});
    if (p.bias != kNoWeight) add({.operation = Operation::bias, .out = out, .a = out, .weight = p.bias, .first_only = first_only});
  }
  void mlp(bool gated, Activation activation, int gate, int up, int out) {
    const int active = gated ? gate : up;
    add({.operation = Operation::activate, .out = active, .a = active, .activation = activation});
    if (gated)
      add({.operation = Operation::multiply, .out = out, .a = gate, .b = up});
    else
      add({.operation = Operation::copy, .out = out, .a = up});
  }

  std::vector<Primitive> out_;
  int next_ = kFirstInner;
};

}  // namespace

std::vector<Primitive> expand(const Record& record) {
  Expander expander;
  std::visit(expander, record);
  return expander.take();
}

std::string describe(const Primitive& p) {
  constexpr const char* kOperations[] = {"look_up", "position",   "zero",     "copy",       "add",    "multiply", "reduce",
                                         "scale",   "cap",        "rms_norm", "layer_norm", "matrix", "bias",     "activate",
                                         "sigmoid", "rotate",     "append",   "scores",     "mask",   "softmax",  "mix",
                                         "choose",  "add_scaled", "pick",     "gather"};
  const auto value = [](int v) -> std::string {
    constexpr const char* kValues[] = {"x", "h", "pending", "logits"};
    return v < kFirstInner ? kValues[v] : "t" + std::to_string(v - kFirstInner);
  };
  std::string line = p.out < 0 ? "" : value(p.out) + " = ";
  line += kOperations[static_cast<int>(p.operation)];
  if (p.a >= 0) line += " " + value(p.a);
  if (p.b >= 0) line += " " + value(p.b);
  if (p.weight != kNoWeight) line += " w" + std::to_string(p.weight);
  if (p.bias != kNoWeight) line += " w" + std::to_string(p.bias);
  return line;
}

}  // namespace tandem
