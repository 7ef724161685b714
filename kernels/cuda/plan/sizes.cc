#include "kernels/cuda/plan/sizes.h"

#include "kernels/base/error.h"
#include "kernels/cuda/plan/workspace.h"

namespace tandem::cuda {
namespace {

[[noreturn]] void no_gpu() { fail(Code::failed_precondition, "gpu", "is only sized here (nothing can run on it)"); }

}  // namespace

WeightLayout Sizes::layout(const Format& format, int64_t rows, int64_t cols, Use use, const Arithmetic& arithmetic) const {
  return cuda::layout(format, rows, cols, use, arithmetic);
}

std::vector<SizeRow> Sizes::workspace(const Program& program, std::span<const KvShape>, const Bucket& bucket, const Arithmetic& arithmetic) const {
  std::vector<SizeRow> rows;
  for (const ArenaSlot& slot : plan_workspace(program, bucket, arithmetic).plan.slots) rows.push_back({slot.name, slot.bytes});
  return rows;
}

void Sizes::place(const WeightLayout&, const QuantizedView&, std::byte*) { no_gpu(); }
std::unique_ptr<Executable> Sizes::compile(const Program&, std::span<const KvShape>, const Bucket&, const Arithmetic&) { no_gpu(); }
std::byte* Sizes::allocate(uint64_t) { no_gpu(); }
void Sizes::release(std::byte*, uint64_t) {}

std::unique_ptr<Backend> make_cuda_sizes() { return std::make_unique<Sizes>(); }

}  // namespace tandem::cuda
