// 4-bit tiles on the device: making them, widening them, multiplying with them.
#pragma once
#include "kernels/cuda/linear.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/plan/tile4.h"

namespace tandem::cuda {

// Repacks a stored slice, its components already in device memory (`stored`: the view with device pointers, each 16-byte aligned), into
// the tile layout. The nested statistics are read on the device. Errors: Code::failed_precondition when the layout keeps nested codes and
// the slice does not begin at a multiple of 512 of the whole matrix' elements (a cut at other columns).
void tile4_pack(const Launch& how, const QuantizedView& stored, std::byte* destination);

// Rows [row, row + count) as element[count, out_stride] (columns up to dense_stride(cols), the padding zero); row is a multiple of 16.
void tile4_widen(const Launch& how, const Weight& weight, int64_t row, int64_t count, void* out, Element element, int64_t out_stride);

void tile4_linear(const Launch& how, const LinearCall& call, const LinearScratch& scratch);

// What tile4_linear takes of LinearScratch: counters in the first kTile4CounterBytes, values (never needed zero) after them.
constexpr uint64_t kTile4CounterBytes = 64 << 10;
constexpr uint64_t kTile4InputBytes = 4 << 20;  // normalized rows: kFewRows of up to 32768 columns
constexpr uint64_t kTile4ScratchBytes = 24 << 20;

void tile4_experts(const Launch& how, const struct ExpertCall& call, const LinearScratch& scratch);

}  // namespace tandem::cuda
