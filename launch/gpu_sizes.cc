#include "launch/gpu_sizes.h"

#include "kernels/base/error.h"

namespace tandem {
namespace {

[[noreturn]] void no_gpu() { fail(Code::failed_precondition, "gpu", "is only sized here (this build runs on CPUs)"); }

}  // namespace

WeightLayout GpuSizes::layout(const Format& format, int64_t rows, int64_t cols, Use use, const Arithmetic&) const {
  WeightLayout layout{.kernel = "stored", .use = use, .rows = rows, .cols = cols, .format = &format};
  if (use == Use::vector) {
    layout.weights_bytes = static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols) * sizeof(float);
    return layout;
  }
  for (const Component& component : format.components(rows, cols)) (component.scales ? layout.scales_bytes : layout.weights_bytes) += component.bytes;
  return layout;
}

std::vector<SizeRow> GpuSizes::workspace(const Program& program, std::span<const KvShape> kv, const Bucket& bucket, const Arithmetic& arithmetic) const {
  return host_.workspace(program, kv, bucket, arithmetic);
}

void GpuSizes::place(const WeightLayout&, const QuantizedView&, std::byte*) { no_gpu(); }
std::unique_ptr<Executable> GpuSizes::compile(const Program&, std::span<const KvShape>, const Bucket&, const Arithmetic&) { no_gpu(); }
std::byte* GpuSizes::allocate(uint64_t) { no_gpu(); }
void GpuSizes::release(std::byte*, uint64_t) {}

}  // namespace tandem
