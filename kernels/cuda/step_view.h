// What a step is on the device: arrays that one copy brings, and the caches. Values only; all pointers are device memory.
#pragma once
#include <cstdint>

#include "kernels/program/backend.h"

namespace tandem::cuda {

struct SequenceOnDevice {  // SequenceRows, with its page tables as offsets into StepView::pages
  int32_t slot = 0, row = 0, rows = 0, position = 0;
  int32_t pages[kMaxKvGroups] = {};  // first entry of the sequence's table for each KV group
};

// Counts live on the device too: a captured graph is launched for every step of up to so many sequences. What lies past them must
// be left alone: kernels launched for `capacity` sequences or rows check them.
struct StepView {
  const int32_t* counts = nullptr;              // [0] rows, [1] sequences, [2] heads, [3] decoding sequences (rows == 1, they come first)
  const SequenceOnDevice* sequences = nullptr;  // [sequences]
  const int32_t* positions = nullptr;           // [rows]
  const int32_t* sequence_of = nullptr;         // [rows]
  const int32_t* pages = nullptr;               // page tables, one after the other
};

// One layer of one KV group. The keys of a page, layer and KV head are contiguous [page_tokens, head_dim], its values follow likewise.
struct CacheLayer {
  std::byte* memory = nullptr;   // of page 0, this layer
  uint64_t page_stride = 0;      // bytes from page to page
  KvType type = KvType::bf16;
  int32_t group = 0;             // which table of a sequence
  int32_t page_tokens = 64;
  int64_t kv_heads = 0, head_dim = 0;
};

}  // namespace tandem::cuda
