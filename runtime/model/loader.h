// Reads one rank's slices of the weights, and only those bytes, and puts them into the layouts that its kernels want. Peak memory: the
// slices and one tensor. Called once, on the rank's thread.
#pragma once
#include <functional>

#include "runtime/model/blueprint.h"

namespace tandem {

struct LoadProgress { uint64_t done_bytes = 0, total_bytes = 0; };  // of the checkpoint
using LoadListener = std::function<void(const LoadProgress&)>;      // called often, on the loading thread

// A member's part of a weight in its held format, in host memory.
struct LoadedSlice {
  std::vector<std::byte> bytes;  // and, of a buffer that was larger, what was there before
  QuantizedView view;  // into bytes
};

// `buffer` is used for the bytes and grown where it is too small: with the last slice's, memory is not asked of the system again for each.
// Errors: Code::invalid_argument naming file and tensor.
LoadedSlice load_slice(const Blueprint& blueprint, WeightId id, const Rectangle& part, std::vector<std::byte> buffer = {});
// The same in another format than the weight is held in. Where something is to be added to what is stored, `held` must be fp32.
LoadedSlice load_slice_as(const Format& held, const Blueprint& blueprint, WeightId id, const Rectangle& part, std::vector<std::byte> buffer = {});

}  // namespace tandem
