// Checkpoints in FP8 (E4M3): M.weight with M.weight_scale or, as DeepSeek and transformers' FineGrainedFP8 call it, M.weight_scale_inv;
// both multiply. Its shape says what it scales: one number the matrix, [out] or [out, 1] rows, [ceil(out / 128), ceil(in / 128)] blocks of
// 128 x 128. Scales of activations (input_scale and the like) are not needed: activations stay as they are.
#include "kernels/formats/fp8.h"

#include <algorithm>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"
#include "runtime/model/checkpoint/quantized_method.h"

namespace tandem {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool has_blocks(const Config& config) {
  const std::vector<int64_t> block = config.integers("weight_block_size", 1, 1 << 20, 8);
  if (!block.empty() && block != std::vector<int64_t>{kFp8Block, kFp8Block})
    config.bad("weight_block_size", "is not [128, 128] (which is read, or null)");
  return !block.empty();
}

const Format& declared(const Config& config) { return fp8(has_blocks(config) ? Fp8Scales::block : Fp8Scales::tensor); }
const Format& declared_rows(const Config&) { return fp8(Fp8Scales::row); }

void find(const Config& config, QuantizedModules& modules) {
  (void)has_blocks(config);
  for (const TensorInfo& tensor : modules.files().tensors()) add_fp8_module(tensor, modules);
}

}  // namespace

void add_fp8_module(const TensorInfo& codes, QuantizedModules& modules) {
  constexpr std::string_view kEnd = ".weight";
  if (codes.type != "f8_e4m3" || !codes.name.ends_with(kEnd)) return;
  if (codes.shape.size() != 2) modules.bad(codes, "has " + std::to_string(codes.shape.size()) + " dimensions (must be [out, in])");
  const std::string module = codes.name.substr(0, codes.name.size() - kEnd.size());
  const int64_t rows = codes.shape[0], cols = codes.shape[1];
  const TensorInfo* there = modules.files().find(module + ".weight_scale_inv");
  if (there == nullptr) there = modules.files().find(module + ".weight_scale");
  if (there == nullptr)
    modules.bad(codes, "has neither " + module + ".weight_scale nor .weight_scale_inv beside it (its numbers mean nothing without)");
  const TensorInfo& scale = modules.take_floats(there->name, codes, there->shape);
  using Shape = std::vector<int64_t>;
  const bool one = std::all_of(scale.shape.begin(), scale.shape.end(), [](int64_t n) { return n == 1; });
  const bool by_row = scale.shape == Shape{rows, 1} || scale.shape == Shape{rows};
  const Shape blocks = {ceil_div(rows, kFp8Block), ceil_div(cols, kFp8Block)};
  if (!one && !by_row && scale.shape != blocks) {
    modules.bad(scale, "is no scale of a matrix of " + std::to_string(rows) + " rows and " + std::to_string(cols) +
                           " columns (one number, one a row, or [" + std::to_string(blocks[0]) + ", " + std::to_string(blocks[1]) +
                           "] for 128 x 128)");
  }
  modules.begin(module, fp8(one ? Fp8Scales::tensor : by_row ? Fp8Scales::row : Fp8Scales::block), rows, cols, codes);
  modules.same(codes);
  modules.floats(scale);
}

const QuantizedMethod kFp8 = {"fp8", {"modules_to_not_convert", "ignored_layers"}, declared, find};
const QuantizedMethod kFbgemmFp8 = {"fbgemm_fp8", {"modules_to_not_convert", ""}, declared_rows, find};

}  // namespace tandem
