#include "kernels/cpu/backend.h"

#include <sys/mman.h>

#include "kernels/base/error.h"
#include "kernels/base/threads.h"
#include "kernels/cpu/interpreter.h"

namespace tandem::cpu {
namespace {

constexpr uint64_t kHugePage = uint64_t{2} << 20;

class CpuBackend : public Backend {
 public:
  CpuBackend(int threads, Features features, bool poison) : team_(threads), features_(features), poison_(poison) {}

  std::string_view name() const override { return "cpu"; }

  WeightLayout layout(const Format& format, int64_t rows, int64_t cols, Use use, const Arithmetic& arithmetic) const override {
    WeightLayout layout;
    layout.use = use, layout.rows = rows, layout.cols = cols, layout.format = &format;
    if (use == Use::vector) {
      layout.kernel = "fp32_vector";
      layout.weights_bytes = sizeof(float) * static_cast<uint64_t>(rows * cols);
      return layout;
    }
    const Activations wanted = use == Use::table ? Activations::fp32 : wanted_activations(format, arithmetic);
    const LinearKernel& kernel = choose_linear(format, wanted, features_);
    const LinearKernel::Bytes bytes = kernel.resident(format, rows, cols);
    layout.kernel = kernel.name;
    layout.weights_bytes = bytes.weights, layout.scales_bytes = bytes.scales;
    layout.opaque = &kernel;
    return layout;
  }

  void place(const WeightLayout& layout, const QuantizedView& slice, std::byte* destination) override {
    if (slice.rows != layout.rows || slice.cols != layout.cols || slice.format != layout.format) {
      fail(Code::internal, "place", "the slice is not what was laid out");
    }
    if (layout.use == Use::vector) return slice.format->dequantize(slice, 0, slice.rows, reinterpret_cast<float*>(destination));
    const auto& kernel = *static_cast<const LinearKernel*>(layout.opaque);
    const int64_t tiles = (layout.rows + kernel.row_tile - 1) / kernel.row_tile;
    team_.run([&](int member) {
      const auto [first, last] = part(tiles, member, team_.size());
      if (first < last) kernel.pack(slice, first, last, destination);
    });
  }

  std::vector<SizeRow> workspace(const Program& program, std::span<const KvShape>, const Bucket& bucket,
                                 const Arithmetic& arithmetic) const override {
    std::vector<SizeRow> rows;
    for (const ArenaSlot& slot : plan_workspace(program, bucket, arithmetic, team_.size()).plan.slots)
      rows.push_back({slot.name, slot.bytes});
    return rows;
  }

  std::unique_ptr<Executable> compile(const Program& program, std::span<const KvShape> kv, const Bucket& bucket,
                                      const Arithmetic& arithmetic) override {
    if (arithmetic.kv == KvType::fp8 || arithmetic.kv == KvType::int8) {
      bad_input("--kv-dtype", std::string(tandem::name(arithmetic.kv)) + " caches are not made on CPUs (fp32, bf16 or fp16)");
    }
    if (bucket.rows < 1 || bucket.page_tokens < 1 || bucket.heads < 0 || bucket.context < 1) {
      fail(Code::internal, "compile", "the bucket holds no step");
    }
    return std::make_unique<Interpreter>(program, kv, bucket, arithmetic, features_, team_, poison_);
  }

  // Pages stay untouched, so that they come to lie near whoever writes them first.
  std::byte* allocate(uint64_t bytes) override {
    if (bytes == 0) return nullptr;
    const uint64_t slack = bytes > kHugePage ? kHugePage : 0;  // to begin at a huge page
    void* memory = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail(Code::resource_exhausted, "memory", std::to_string(bytes) + " bytes cannot be had");
    if (slack == 0) return static_cast<std::byte*>(memory);
    const auto address = reinterpret_cast<uint64_t>(memory), begin = (address + kHugePage - 1) / kHugePage * kHugePage;
    if (begin > address) munmap(memory, begin - address);
    const uint64_t end = page_end(begin + bytes), mapped = page_end(address + bytes + slack);
    if (mapped > end) munmap(reinterpret_cast<void*>(end), mapped - end);
    madvise(reinterpret_cast<void*>(begin), bytes, MADV_HUGEPAGE);  // a wish
    return reinterpret_cast<std::byte*>(begin);
  }

  void release(std::byte* memory, uint64_t bytes) override {
    if (memory != nullptr && bytes > 0) munmap(memory, bytes);
  }

 private:
  static uint64_t page_end(uint64_t address) { return (address + 4095) / 4096 * 4096; }

  Team team_;
  const Features features_;
  const bool poison_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads, Features features, bool poison) {
  return std::make_unique<CpuBackend>(threads, features, poison);
}

}  // namespace tandem::cpu
