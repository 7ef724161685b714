#include "kernels/program/record.h"

#include <cstdio>

namespace tandem {
namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}
std::string text(const Product& p) {  // w3[64,32]+w4: out x in, and the bias
  return "w" + std::to_string(p.weight) + "[" + std::to_string(p.out) + "," + std::to_string(p.in) + "]" +
         (p.bias == kNoWeight ? "" : "+w" + std::to_string(p.bias));
}
std::string text(const Norm& n) {
  if (n.kind == NormKind::none) return "as it is";
  return std::string(n.kind == NormKind::rms ? "rms" : "layer") + "(w" + std::to_string(n.weight) +
         (n.bias == kNoWeight ? "" : "+w" + std::to_string(n.bias)) + ", " + number(n.epsilon) + ")";
}
std::string text(Activation activation) {
  constexpr const char* kNames[] = {"none", "silu", "gelu", "gelu_tanh", "relu"};
  return kNames[static_cast<int>(activation)];
}
std::string text(Pending pending) {
  constexpr const char* kNames[] = {"", "pending=whole ", "pending=partial "};
  return kNames[static_cast<int>(pending)];
}
std::string text(const HeadShape& s) {
  return "heads=" + std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + "x" + std::to_string(s.head_dim);
}
std::string text(const Positions& p) {
  return p.table == kNoWeight ? ""
                              : " positions=w" + std::to_string(p.table) + "[" + std::to_string(p.rows) + "]+" + std::to_string(p.offset);
}
std::string text(const KvLayer& kv) { return "kv=" + std::to_string(kv.group) + "." + std::to_string(kv.layer); }
std::string through(const Product& p) { return p.weight == kNoWeight ? "" : " through " + text(p); }
std::string partial(bool is_partial) { return is_partial ? " -> partial" : ""; }
std::string scaled(float scale, float soft_cap) {
  return (scale == 1 ? "" : " scale=" + number(scale)) + (soft_cap == 0 ? "" : " soft_cap=" + number(soft_cap));
}

struct Describe {
  std::string operator()(const Embed& r) const {
    return "embed w" + std::to_string(r.table) + "[" + std::to_string(r.vocab_begin) + ".." + std::to_string(r.vocab_end) + "," +
           std::to_string(r.width()) + "]" + through(r.projection) + scaled(r.scale, 0) + text(r.positions) + partial(r.partial);
  }
  std::string operator()(const Enter& r) const {
    return "enter " + text(r.pending) + text(r.norm) + " [" + std::to_string(r.hidden) + "]" + (r.replaces ? " -> x" : "");
  }
  std::string operator()(const Normalize& r) const {
    return "normalize " + text(r.pending) + text(r.norm) + " [" + std::to_string(r.hidden) + "]";
  }
  std::string operator()(const ProjectAttention& r) const {
    std::string line = "project q=" + text(r.q) + " k=" + text(r.k) + " v=" + text(r.v) + " " + text(r.shape);
    if (r.q_norm.weight != kNoWeight) line += " q_norm=" + text(r.q_norm);
    if (r.k_norm.weight != kNoWeight) line += " k_norm=" + text(r.k_norm);
    if (r.rope.rotary > 0) line += " rope=" + std::to_string(r.rope.rotary) + (r.rope.scale == 1 ? "" : "*" + number(r.rope.scale));
    return line + " " + text(r.kv);
  }
  std::string operator()(const ProjectMlp& r) const {
    return "project " + (r.gated ? "gate=" + text(r.gate) + " " : "") + "up=" + text(r.up) + " " + text(r.activation);
  }
  std::string operator()(const Attend& r) const {
    return "attend " + text(r.shape) + " " + text(r.kv) + " scale=" + number(r.scale) +
           (r.window == 0 ? "" : " window=" + std::to_string(r.window)) + scaled(1, r.soft_cap);
  }
  std::string operator()(const Contract& r) const { return "contract " + text(r.product) + partial(r.partial); }
  std::string operator()(const Moe& r) const {
    std::string line = "moe router=" + text(r.router) + " experts=" + std::to_string(r.expert_begin) + ".." +
                       std::to_string(r.expert_begin + static_cast<int64_t>(r.gate.size())) + " of " + std::to_string(r.experts) +
                       " top=" + std::to_string(r.top_k) + (r.normalize ? " normalized " : " ") + text(r.activation);
    for (size_t e = 0; e < r.gate.size(); ++e) line += " (" + text(r.gate[e]) + " " + text(r.up[e]) + " " + text(r.down[e]) + ")";
    const SharedExpert& s = r.shared;
    if (r.has_shared()) line += " shared=(" + text(s.gate) + " " + text(s.up) + " " + text(s.down) + ") weigh=" + text(s.weigh);
    return line + partial(r.partial);
  }
  std::string operator()(const Leave& r) const { return "leave " + text(r.pending) + "[" + std::to_string(r.hidden) + "]"; }
  std::string operator()(const Head& r) const {
    std::string line =
        "head " + text(r.pending) + text(r.norm) + through(r.projection) + " " + text(r.product) + " vocab=" + std::to_string(r.vocab);
    for (size_t i = 0; i < r.parts.size(); ++i) line += (i == 0 ? " parts=" : ",") + std::to_string(r.parts[i]);
    return line + scaled(r.scale, r.soft_cap);
  }
  std::string operator()(const Sample& r) const { return "sample vocab=" + std::to_string(r.vocab); }
};

}  // namespace

std::string describe(const Record& record) { return std::visit(Describe{}, record); }

}  // namespace tandem
