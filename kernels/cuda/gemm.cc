#include "kernels/cuda/gemm.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/base/cuda/check.h"

namespace tandem::cuda {
namespace {

struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
};

const Library& library() {
  static const Library loaded = [] {
    void* handle = nullptr;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
      if ((handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)) != nullptr) break;
    }
    if (handle == nullptr) fail(Code::failed_precondition, "libcublasLt.so.13", "cannot be opened (install the CUDA libraries, or set LD_LIBRARY_PATH)");
    Library l{};
    const auto find = [handle](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
      if (function == nullptr) fail(Code::failed_precondition, "libcublasLt", std::string("has no ") + name);
    };
    find(l.create, "cublasLtCreate");
    find(l.destroy, "cublasLtDestroy");
    find(l.matmul, "cublasLtMatmul");
    find(l.desc_create, "cublasLtMatmulDescCreate");
    find(l.desc_destroy, "cublasLtMatmulDescDestroy");
    find(l.desc_set, "cublasLtMatmulDescSetAttribute");
    find(l.layout_create, "cublasLtMatrixLayoutCreate");
    find(l.layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(l.preference_create, "cublasLtMatmulPreferenceCreate");
    find(l.preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(l.preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(l.heuristic, "cublasLtMatmulAlgoGetHeuristic");
    return l;
  }();
  return loaded;
}

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) fail(Code::internal, what, "cuBLASLt status " + std::to_string(static_cast<int>(status)));
}

cudaDataType_t type_of(Element element) {
  constexpr cudaDataType_t kTypes[] = {CUDA_R_32F, CUDA_R_16BF, CUDA_R_16F};
  return kTypes[static_cast<int>(element)];
}

}  // namespace

struct Gemm::State {
  struct Prepared {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
    cublasLtMatmulAlgo_t algo{};
  };
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, bool, uint32_t>;

  cudaStream_t stream;
  std::byte* workspace;
  uint64_t bytes;
  cublasLtHandle_t handle = nullptr;
  std::map<Key, Prepared> prepared;

  const Prepared& prepare(const GemmCall& call) {
    const Library& l = library();
    // Slices of weights begin at any row: what is aligned to 16 bytes is all that may be relied on.
    const auto alignment = [&](int64_t stride, Element element, const void* address) {
      uint32_t aligned = 256;
      const auto bits = reinterpret_cast<uintptr_t>(address) | static_cast<uintptr_t>(stride * size(element));
      while (aligned > 1 && bits % aligned != 0) aligned /= 2;
      return std::min<uint32_t>(aligned, 16);
    };
    const uint32_t a = alignment(call.w_stride, call.element, call.w), b = alignment(call.x_stride, call.element, call.x),
                   d = alignment(call.y_stride, call.y_is_float ? Element::f32 : call.element, call.y);
    const Key key{call.rows, call.out, call.in, call.x_stride, call.w_stride, call.y_stride, static_cast<int>(call.element), call.y_is_float,
                  a << 16 | b << 8 | d};
    if (const auto found = prepared.find(key); found != prepared.end()) return found->second;
    Prepared p;
    const cudaDataType_t type = type_of(call.element), result = call.y_is_float ? CUDA_R_32F : type;
    check(l.desc_create(&p.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "matrix product");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(l.desc_set(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed), "matrix product");
    // Column by column, y' [out, rows] = (w' [in, out])^T x' [in, rows].
    const auto extent = [](int64_t n) { return static_cast<uint64_t>(n); };
    check(l.layout_create(&p.w, type, extent(call.in), extent(call.out), call.w_stride), "matrix product");
    check(l.layout_create(&p.x, type, extent(call.in), extent(call.rows), call.x_stride), "matrix product");
    check(l.layout_create(&p.y, result, extent(call.out), extent(call.rows), call.y_stride), "matrix product");
    cublasLtMatmulPreference_t preference = nullptr;
    check(l.preference_create(&preference), "matrix product");
    check(l.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes), "matrix product");
    check(l.preference_set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof a), "matrix product");
    check(l.preference_set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof b), "matrix product");
    check(l.preference_set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &d, sizeof d), "matrix product");
    check(l.preference_set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &d, sizeof d), "matrix product");
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    const cublasStatus_t status = l.heuristic(handle, p.desc, p.w, p.x, p.y, p.y, preference, 1, &best, &found);
    l.preference_destroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
      fail(Code::internal, "matrix product", "cuBLASLt has no way for " + std::to_string(call.rows) + " x " + std::to_string(call.out) + " x " + std::to_string(call.in));
    }
    p.algo = best.algo;
    return prepared.emplace(key, p).first->second;
  }
};

Gemm::Gemm(cudaStream_t stream, std::byte* workspace, uint64_t bytes) : state_(new State{stream, workspace, bytes}) {
  check(library().create(&state_->handle), "cuBLASLt");
}

Gemm::~Gemm() {
  const Library& l = library();
  for (auto& [key, p] : state_->prepared) {
    l.desc_destroy(p.desc);
    for (cublasLtMatrixLayout_t layout : {p.w, p.x, p.y}) l.layout_destroy(layout);
  }
  l.destroy(state_->handle);
}

void Gemm::multiply(const GemmCall& call) {
  const State::Prepared& p = state_->prepare(call);
  const float one = 1, beta = call.add ? 1 : 0;
  check(library().matmul(state_->handle, p.desc, &one, call.w, p.w, call.x, p.x, &beta, call.y, p.y, call.y, p.y, &p.algo, state_->workspace,
                         state_->bytes, state_->stream),
        "matrix product");
}

}  // namespace tandem::cuda
