#include "kernels/cuda/plan/supported.h"

#include "kernels/base/error.h"

namespace tandem::cuda {
namespace {

// What of a record is missing on GPUs; null: nothing.
struct Missing {
  const char* operator()(const Embed& r) const {
    if (r.positions.table != kNoWeight) return "learned positions";
    return r.projection.weight != kNoWeight ? "projected embeddings" : nullptr;
  }
  const char* operator()(const Enter& r) const {
    if (r.norm.kind == NormKind::none) return "layers without a norm before them";
    return r.replaces ? "norms after the residual sum" : nullptr;
  }
  const char* operator()(const Normalize&) const { return "norms of a result before it is added"; }
  const char* operator()(const ProjectAttention& r) const {
    return r.q_norm.weight != kNoWeight || r.k_norm.weight != kNoWeight ? "norms of query and key heads" : nullptr;
  }
  const char* operator()(const Moe& r) const { return r.has_shared() ? "shared experts" : nullptr; }
  const char* operator()(const Head& r) const {
    if (r.norm.kind == NormKind::none) return "heads without a norm";
    return r.projection.weight != kNoWeight ? "projected heads" : nullptr;
  }
  template <typename Other>
  const char* operator()(const Other&) const {
    return nullptr;
  }
};

}  // namespace

void check_supported(const Program& program) {
  for (const Record& record : program.records()) {
    if (const char* missing = std::visit(Missing{}, record)) {
      fail(Code::failed_precondition, "--device",
           std::string("cannot be cuda: this model has ") + missing + ", which do not run on GPUs yet (use --device cpu)");
    }
  }
}

}  // namespace tandem::cuda
