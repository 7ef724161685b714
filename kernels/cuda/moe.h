// Mixtures of experts: the router's choice and the chosen experts' gated products for few rows, without a word to the host.
// Everything is enqueued on the launch's stream; nothing allocates or waits.
#pragma once
#include <span>

#include "kernels/cuda/linear.h"

namespace tandem::cuda {

// Which rows go to which of this rank's experts; device memory, written by route().
struct ExpertLists {
  int32_t* begin = nullptr;   // [local experts + 1]: pairs of expert e are [begin[e], begin[e + 1])
  int32_t* row_of = nullptr;  // [pairs] row of the pair, ascending within an expert
  int32_t* pair_of = nullptr; // [rows, top_k] pair of a row's k-th choice, ascending expert; -1: another rank's expert
  float* weight = nullptr;    // [rows, top_k] in that order
};

struct MoeCall {
  const float* router_logits = nullptr;      // float[rows, experts]
  int64_t rows = 0;
  int32_t experts = 0, expert_begin = 0, local_experts = 0, top_k = 0;
  bool normalize = true;
  ExpertLists lists;
};
// softmax over all experts, the top_k largest (ties: the lower index), divided by their sum when normalize; then the lists.
void route(const Launch& how, const MoeCall& call);

// One row's way into a mixture as one kernel: h = RMS norm of x, the router's logits, and route(). `choice`: rows 1, no router_logits.
struct EnterMixtureCall {
  const float* x = nullptr;            // float[hidden]
  const float* norm_weight = nullptr;  // float[hidden]
  float epsilon = 0;
  const void* router = nullptr;        // element[experts, dense_stride(hidden)]
  const float* router_bias = nullptr;  // float[experts] or null
  void* h = nullptr;                   // element[hidden]
  Element element = Element::bf16;     // bf16 or f16
  int64_t hidden = 0;
  MoeCall choice;
};
// A block's registers hold so much of a router.
constexpr bool enters_mixture(Element element, int64_t hidden, int32_t experts) {
  return element != Element::f32 && hidden % 4 == 0 && hidden <= 8192 && experts <= 8;
}
void enter_mixture(const Launch& how, const EnterMixtureCall& call);

// The local experts' weights, as device arrays of data pointers (all of one resident layout and shape).
struct ExpertWeights {
  Weight shape;                               // data: unused
  const std::byte* const* data = nullptr;     // device [local experts]
};

// gated[pair] = activation(gate h[row]) * (up h[row]), element[pairs, ffn]; then results[pair] = down gated[pair], float[pairs, hidden];
// then y[row] += (or =, when not add) sum over its pairs of weight * results, in the order of its choices. rows <= kFewRows.
struct ExpertCall {
  ExpertWeights gate, up, down;
  const void* h = nullptr;  // element[rows, hidden]
  Element element = Element::bf16;
  int64_t rows = 0, hidden = 0, ffn = 0;
  int32_t local_experts = 0, top_k = 0;
  Activation activation = Activation::silu;
  ExpertLists lists;
  void* gated = nullptr;    // element[rows * top_k, ffn]
  float* results = nullptr; // float[rows * top_k, hidden]
  float* y = nullptr;       // float[rows, hidden]
  bool add = true;
};
void experts(const Launch& how, const ExpertCall& call, const LinearScratch& scratch);
// The last step alone, for any number of rows.
void join(const Launch& how, const ExpertCall& call);

}  // namespace tandem::cuda
