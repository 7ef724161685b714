// Matrix products of many rows through cuBLASLt, which is opened on first use (linking it would cost every program's start 70 ms). Owned
// by one executable; called on the rank's thread, everything is enqueued on its stream.
#pragma once
#include <cstdint>
#include <memory>

#include "kernels/base/cuda/launch.h"
#include "kernels/cuda/plan/layout.h"

namespace tandem::cuda {

struct GemmCall {
  int64_t rows = 0, out = 0, in = 0;
  const void* x = nullptr;   // element[rows, x_stride]
  int64_t x_stride = 0;
  const void* w = nullptr;   // element[out, w_stride]
  int64_t w_stride = 0;
  void* y = nullptr;         // [rows, y_stride]: float or element
  int64_t y_stride = 0;
  Element element = Element::bf16;
  bool y_is_float = false, add = false;  // add: y += product, else y = product
};

class Gemm {
 public:
  // workspace: device memory of kGemmWorkspaceBytes. Errors: Code::failed_precondition when the library cannot be opened.
  Gemm(cudaStream_t stream, std::byte* workspace, uint64_t bytes);
  ~Gemm();
  void multiply(const GemmCall& call);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tandem::cuda
