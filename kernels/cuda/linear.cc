// Which kernels multiply a kind of weight.
#include "kernels/cuda/linear.h"

#include "kernels/base/error.h"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/tile4.h"

namespace tandem::cuda {

void linear(const Launch& how, const LinearCall& call, const LinearScratch& scratch) {
  if (call.rows < 1 || call.rows > kFewRows || call.products.empty()) fail(Code::internal, "linear", std::to_string(call.rows) + " rows");
  for (const BoundProduct& product : call.products) {
    if (product.weight.resident->kind != call.products[0].weight.resident->kind) fail(Code::internal, "linear", "weights of one call are kept in different ways");
  }
  switch (call.products[0].weight.resident->kind) {
    case Kind::tile4: return tile4_linear(how, call, scratch);
    case Kind::dense: return dense_linear(how, call, scratch);
    case Kind::vector: fail(Code::internal, "linear", "a vector is no matrix");
  }
}

}  // namespace tandem::cuda
