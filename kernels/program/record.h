// THE list of operations. A model's forward pass is a flat list of these coarse records; shapes are those of one rank's slices.
// Between records three values live: the residual stream x [rows, hidden], the working value h, and at most one pending result that
// the next enter / leave / head adds to x (summed over the peer group first when it is partial). Values only.
#pragma once
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace tandem {

using WeightId = int32_t;
constexpr WeightId kNoWeight = -1;

enum class Pending : uint8_t { none, whole, partial };

struct Product {  // y = W h + bias; W [out, in] is this rank's slice
  WeightId weight = kNoWeight, bias = kNoWeight;
  int64_t out = 0, in = 0;
  // A bias of a product whose input is split is added by member 0 of the peer group only.
};

enum class NormKind : uint8_t { rms, layer, none };  // none: as it is, without a weight
struct Norm {
  WeightId weight = kNoWeight, bias = kNoWeight;
  float epsilon = 1e-5f;
  NormKind kind = NormKind::rms;
};

enum class Activation : uint8_t { none, silu, gelu, gelu_tanh, relu };

struct Rope {          // rotates pairs (i, i + rotary / 2) of the first `rotary` elements of every head (the NeoX order of Hugging Face)
  int64_t rotary = 0;  // 0: no rotation
  std::vector<float> inverse_frequency;  // [rotary / 2]
  float scale = 1;                       // on cos and sin (YaRN's attention factor)
};

struct KvLayer {      // where a layer's keys and values live
  int32_t group = 0;  // KV group: layers with the same kind share page tables
  int32_t layer = 0;  // index inside the group, on this rank
};

struct HeadShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
};  // of this rank

struct Positions {  // learned: row `position + offset` of a table [rows, hidden]
  WeightId table = kNoWeight;
  int64_t rows = 0, offset = 0;
};

// x = scale * table[id], through `projection` where there is one, + the row of its position where those are learned. A split table leaves
// the look-up pending instead (x = 0, or the position's row): ids outside [vocab_begin, vocab_end) give zero, another rank has them, so
// that pending is partial. A whole table refuses such ids.
struct Embed {
  WeightId table = kNoWeight;
  int64_t hidden = 0, vocab_begin = 0, vocab_end = 0;
  float scale = 1;
  bool partial = false;
  Positions positions = {};
  Product projection = {};                                                                   // [hidden, the table's width]; without a bias
  int64_t width() const { return projection.weight == kNoWeight ? hidden : projection.in; }  // of the table
};
// x += pending (first summed over the peers when partial); h = norm(x). `replaces`: x = h too (norms after the sum, not before it).
struct Enter {
  Norm norm;
  int64_t hidden = 0;
  Pending pending = Pending::none;
  bool replaces = false;
};
// pending = norm(pending), first summed over the peers when it is partial: afterwards it is whole.
struct Normalize {
  Norm norm;
  int64_t hidden = 0;
  Pending pending = Pending::none;
};
// q, k, v = products of h; each head of q and k is normalized (norms of head_dim elements, where there are any); rope on q and k; k and v
// are appended to the cache at the rows' positions; h = q.
struct ProjectAttention {
  Product q, k, v;
  HeadShape shape;
  Rope rope;
  KvLayer kv;
  Norm q_norm = {}, k_norm = {};
};
// h = activation(gate h) * (up h), or activation(up h) without a gate.
struct ProjectMlp {
  Product gate, up;
  Activation activation = Activation::silu;
  bool gated = true;
};
// h = softmax(q K^T scale) V over the row's sequence up to the row itself.
struct Attend {
  HeadShape shape;
  KvLayer kv;
  float scale = 1;
  int64_t window = 0;
  float soft_cap = 0;
};  // window 0: everything
// pending = product of h.
struct Contract {
  Product product;
  bool partial = false;
};
// A gated MLP that every row goes through, weighted by sigmoid(weigh h).
struct SharedExpert {
  Product gate, up, down, weigh;  // weigh: [1, hidden], whole on every rank
};
// Router over all experts (whole on every rank), the chosen ones' gated MLPs weighted by softmax; experts [expert_begin,
// expert_begin + gate.size()) are this rank's. pending = sum over its experts, and its part of the shared one.
struct Moe {
  Product router;
  std::vector<Product> gate, up, down;  // [local experts]
  int32_t experts = 0, expert_begin = 0, top_k = 0;
  bool normalize = true;  // weights of the chosen experts sum to one
  Activation activation = Activation::silu;
  bool partial = false;
  SharedExpert shared = {};  // no weights: none
  bool has_shared() const { return shared.up.weight != kNoWeight; }
};
// x += pending; x goes to the next stage.
struct Leave {
  int64_t hidden = 0;
  Pending pending = Pending::none;
};
// x += pending; logits = product(norm(x)) of the rows asked for, gathered over the peers when the vocabulary is split. The product reads
// norm(x) through `projection` where there is one.
struct Head {
  Norm norm;
  Product product;  // out: this rank's part of the vocabulary
  int64_t hidden = 0, vocab = 0;
  std::vector<int64_t> parts;  // sizes of the members' parts when split, else empty
  Pending pending = Pending::none;
  float scale = 1, soft_cap = 0;
  Product projection = {};  // [the product's width, hidden]; without a bias
};
struct Sample {
  int64_t vocab = 0;
};

using Record = std::variant<Embed, Enter, Normalize, ProjectAttention, ProjectMlp, Attend, Contract, Moe, Leave, Head, Sample>;

std::string describe(const Record& record);  // one line: name, shapes, weights; golden text in tests

}  // namespace tandem
