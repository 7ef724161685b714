// Where keys and values of a position lie in the paged cache, and rope on the device.
#pragma once
#include "kernels/base/cuda/element.cuh"
#include "kernels/cuda/attention.h"

namespace tandem::cuda {

// Keys of (page, head); values follow after page_tokens * head_dim elements.
template <typename C>
__device__ __forceinline__ C* page_of(const CacheLayer& cache, int32_t page, int64_t head) {
  return reinterpret_cast<C*>(cache.memory + static_cast<uint64_t>(page) * cache.page_stride) + head * 2 * cache.page_tokens * cache.head_dim;
}

__device__ __forceinline__ int bytes_of(Element e) { return e == Element::f32 ? 4 : 2; }
__device__ __forceinline__ float load_element(const void* p, int64_t i, Element e) {
  switch (e) {
    case Element::f32: return static_cast<const float*>(p)[i];
    case Element::bf16: return to_float(static_cast<const bf16*>(p)[i]);
    default: return to_float(static_cast<const f16*>(p)[i]);
  }
}
__device__ __forceinline__ void store_element(void* p, int64_t i, Element e, float v) {
  switch (e) {
    case Element::f32: static_cast<float*>(p)[i] = v; return;
    case Element::bf16: static_cast<bf16*>(p)[i] = from_float<bf16>(v); return;
    default: static_cast<f16*>(p)[i] = from_float<f16>(v); return;
  }
}

// Angles of one position: cos in [0, rotary / 2), sin after; times the rope's scale.
__device__ __forceinline__ void rope_angles(const RopeOnDevice& rope, int32_t position, float* angles) {
  const int half = rope.rotary / 2;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    float s, c;
    sincosf(static_cast<float>(position) * rope.inverse_frequency[i], &s, &c);
    angles[i] = c * rope.scale;
    angles[half + i] = s * rope.scale;
  }
}
// Element d of a head after rope; `head` points at its values before.
__device__ __forceinline__ float rotated(const void* head, int64_t d, Element e, int32_t rotary, const float* angles) {
  const float v = load_element(head, d, e);
  const int half = rotary / 2;
  if (d >= rotary) return v;
  if (d < half) return v * angles[d] - load_element(head, d + half, e) * angles[half + d];
  return v * angles[d - half] + load_element(head, d - half, e) * angles[d];
}

__device__ __forceinline__ float capped(float score, float cap) { return cap > 0 ? cap * tanhf(score / cap) : score; }

}  // namespace tandem::cuda
