#include "kernels/program/arithmetic.h"

namespace tandem {

std::string_view name(Compute compute) {
  constexpr std::string_view kNames[] = {"fp32", "bf16", "fp16", "int8"};
  return kNames[static_cast<int>(compute)];
}
std::string_view name(KvType type) {
  constexpr std::string_view kNames[] = {"fp32", "bf16", "fp16", "fp8", "int8"};
  return kNames[static_cast<int>(type)];
}
int size(KvType type) {
  constexpr int kSizes[] = {4, 2, 2, 1, 1};
  return kSizes[static_cast<int>(type)];
}

}  // namespace tandem
