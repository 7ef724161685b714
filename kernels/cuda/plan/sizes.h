// What a GPU would hold, told without one: the part of the CUDA backend that needs no device.
#pragma once
#include "kernels/cuda/plan/cuda.h"

namespace tandem::cuda {

class Sizes : public Backend {
 public:
  std::string_view name() const override { return "cuda"; }
  WeightLayout layout(const Format& format, int64_t rows, int64_t cols, Use use, const Arithmetic& arithmetic) const override;
  std::vector<SizeRow> workspace(const Program& program, std::span<const KvShape> kv, const Bucket& bucket,
                                 const Arithmetic& arithmetic) const override;
  // Errors: always Code::failed_precondition.
  void place(const WeightLayout& layout, const QuantizedView& slice, std::byte* destination) override;
  std::unique_ptr<Executable> compile(const Program& program, std::span<const KvShape> kv, const Bucket& bucket,
                                      const Arithmetic& arithmetic) override;
  std::byte* allocate(uint64_t bytes) override;
  void release(std::byte* memory, uint64_t bytes) override;
};

}  // namespace tandem::cuda
