#include "kernels/cuda/sample.h"

#include "kernels/cuda/sample_best.cuh"

namespace tandem::cuda {

// The plain way comes first in any case: what else is to be done needs a row's largest logit and the log of its sum too, and a row's
// result is the same whether others beside it are plain or not.
void sample(const Launch& how, const SampleCall& call) {
  if (call.most_rows == 0) return;
  const SampleScratch layout = sample_scratch(call.most_rows, call.vocab);
  take_best(how, call, layout);
  if (!call.plain) draw(how, call, layout);
}

}  // namespace tandem::cuda
