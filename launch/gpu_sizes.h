// What a GPU would hold, told on a machine without one: weights in their stored form (exact for every format that is read in place),
// workspace as the host backend needs it (a bound). Only tells sizes; it cannot compile or place. Borrows the host backend.
#pragma once
#include "kernels/program/backend.h"

namespace tandem {

class GpuSizes : public Backend {
 public:
  explicit GpuSizes(const Backend& host) : host_(host) {}
  std::string_view name() const override { return "gpu"; }
  WeightLayout layout(const Format& format, int64_t rows, int64_t cols, Use use, const Arithmetic& arithmetic) const override;
  std::vector<SizeRow> workspace(const Program& program, std::span<const KvShape> kv, const Bucket& bucket, const Arithmetic& arithmetic) const override;

  // Errors: always Code::failed_precondition.
  void place(const WeightLayout& layout, const QuantizedView& slice, std::byte* destination) override;
  std::unique_ptr<Executable> compile(const Program& program, std::span<const KvShape> kv, const Bucket& bucket, const Arithmetic& arithmetic) override;
  std::byte* allocate(uint64_t bytes) override;
  void release(std::byte* memory, uint64_t bytes) override;

 private:
  const Backend& host_;
};

}  // namespace tandem
