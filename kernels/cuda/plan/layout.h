// How weights lie in a GPU's memory and which kernels read them: plain C++, compiled with and without CUDA, so that a plan made on any
// machine says what a GPU will hold, to the byte. Values and pure functions.
#pragma once
#include <cstdint>
#include <string_view>

#include "kernels/formats/format.h"
#include "kernels/program/backend.h"

namespace tandem::cuda {

enum class Element : uint8_t { f32, bf16, f16 };
constexpr int size(Element e) { return e == Element::f32 ? 4 : 2; }
Element element_of(Compute compute);  // fp32, bf16, fp16; int8: bf16 (there is no int8 product here)

enum class Kind : uint8_t {
  vector,  // fp32, one row: norms and biases
  dense,   // row-major [rows, stride], stride = dense_stride(cols), the padding zero
  tile4,   // NF4 and FP4 codes in tiles of the matrix unit, see tile4.h
};

// A resident layout; WeightLayout::opaque points at one of a fixed list.
struct Resident {
  std::string_view name;  // "vector_fp32", "dense_bf16", "nf4_tile", "nf4_dq_tile", ...
  Kind kind = Kind::vector;
  Element element = Element::f32;  // of a dense one; of the table that a tile4 is read through
  bool nested = false;             // tile4: scales as 8-bit codes
};

constexpr int64_t dense_stride(int64_t cols) { return (cols + 7) / 8 * 8; }

// Formats without a product of their own are widened to the compute type (dense), and the name says so.
WeightLayout layout(const Format& format, int64_t rows, int64_t cols, Use use, const Arithmetic& arithmetic);
inline const Resident& resident(const WeightLayout& layout) { return *static_cast<const Resident*>(layout.opaque); }

}  // namespace tandem::cuda
