// The types that a program is computed in. Values only.
#pragma once
#include <cstdint>
#include <string_view>

namespace tandem {

enum class Compute : uint8_t { fp32, bf16, fp16, int8 };       // activations inside a product
enum class KvType : uint8_t { fp32, bf16, fp16, fp8, int8 };   // keys and values in the cache

struct Arithmetic {
  Compute compute = Compute::fp32;
  KvType kv = KvType::fp16;
  bool automatic = false;  // compute is chosen product by product from the weight's format (int8 for GGUF blocks on CPUs)
};

std::string_view name(Compute compute);
std::string_view name(KvType type);
int size(KvType type);  // bytes of one element

}  // namespace tandem
