// The most tokens per second that devices could reach with a model: what must be read, or multiplied, over what they can do. Pure.
#pragma once
#include <cstdint>
#include <string_view>

#include "runtime/model/blueprint.h"
#include "sharding/mesh.h"

namespace tandem {

struct Ceiling {
  double tokens_per_second = 0;  // 0: none is known
  std::string_view of;           // "memory reads" | "arithmetic"
  double per_token = 0;          // bytes, or multiplications and additions, that one token costs there
};

struct ModelWork {  // of a whole model, in the layouts of its devices
  double dense_bytes = 0, expert_bytes = 0;  // weights that every step reads; those of all experts
  double kv_bytes = 0;                       // keys and values of one token in all layers
  double token_flops = 0;                    // products of one token, the head left out
  double attention_flops = 0;                // of one token for each key that it looks at
  double experts = 1, experts_per_token = 1;
};
ModelWork model_work(const Blueprint& blueprint, const Workload& workload, const Backend& backend);

// `batch` sequences of `context` tokens in the middle of their answer: a step reads every weight once (of experts, as many as evenly
// chosen ones would be) and each sequence's keys and values. With pp stages as many groups of sequences are on the way at once.
// `bandwidth`: bytes/s of one device.
Ceiling decode_ceiling(const ModelWork& work, const Mesh& mesh, double bandwidth, int32_t batch, double context);

// A prompt alone; its last row goes through the head, which does not count. `flops`: of one device, 0: unknown.
Ceiling prefill_ceiling(const ModelWork& work, const Mesh& mesh, double flops, int32_t tokens);

}  // namespace tandem
