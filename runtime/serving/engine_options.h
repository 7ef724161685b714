// What an engine is told about the model, the plan and the policy. Values only.
#pragma once
#include <cstdint>
#include <vector>

namespace tandem {

struct EngineOptions {
  int32_t max_batch = 8;         // sequences that run at once, over all groups
  int32_t chunk = 512;           // prompt tokens a step
  // Prompt tokens a step while streams are decoding, at most `chunk`: all of them wait for it. A decode step reads every weight once,
  // which is as long as a device needs to compute some 50 rows (H200, 4.5 bits a weight: 47), so 128 rows cost a stream two or three
  // tokens' time, and 512 would cost ten; below 128 the weights are read again for nothing and the prompt takes longer.
  int32_t decode_chunk = 128;
  int32_t max_queue = 256;       // requests waiting for a slot; more are refused
  int32_t page_tokens = 64;
  int32_t context = 4096;        // longest sequence
  int32_t groups = 1;            // groups of sequences in flight: the pipeline's depth
  std::vector<int32_t> kv_pages;   // per KV group
  std::vector<int32_t> kv_windows; // per KV group: tokens that attention looks back, 0 or missing: all
  int32_t vocab = 0;
  bool prefix_cache = true;
  double step_deadline_seconds = 10;  // a step that takes longer means a hung rank: max(this, 20 x the moving average)
  double restart_seconds = 0.5;       // wait before a lost group is started again; doubles up to 30 s while epochs fail
  bool check_digests = false;
};

}  // namespace tandem
