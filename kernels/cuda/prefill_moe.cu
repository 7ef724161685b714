#include "kernels/cuda/prefill_moe.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256;

template <typename Word>
__global__ void __launch_bounds__(kThreads) gather(const Word* h, int64_t words, const int32_t* row_of, Word* out) {
  let_next_begin();
  wait_for_previous();
  const int64_t pair = blockIdx.x, row = row_of[pair];
  for (int64_t i = threadIdx.x; i < words; i += kThreads) out[pair * words + i] = h[row * words + i];
}

}  // namespace

void gather_rows(const Launch& how, const void* h, Element element, int64_t hidden, const int32_t* row_of, int64_t pairs, void* out) {
  if (pairs == 0) return;
  const int64_t bytes = hidden * size(element);
  const auto copy = [&](auto word) {
    using Word = decltype(word);
    launch(how, gather<Word>, static_cast<unsigned>(pairs), kThreads, 0, "gather_rows", static_cast<const Word*>(h), bytes / int64_t{sizeof(Word)}, row_of,
           static_cast<Word*>(out));
  };
  const bool pieces = bytes % 16 == 0 && (reinterpret_cast<uintptr_t>(h) | reinterpret_cast<uintptr_t>(out)) % 16 == 0;
  pieces ? copy(uint4{}) : copy(uint16_t{});
}

}  // namespace tandem::cuda
