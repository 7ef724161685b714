// What a checkpoint becomes when it is written in the formats that its weights are held in: a Hugging Face checkpoint's files, tensors and
// config.json, all known before a weight is read. A value; pure.
#pragma once
#include <string>
#include <vector>

#include "runtime/model/blueprint.h"
#include "runtime/model/checkpoint/quantized_writer.h"

namespace tandem {

struct OutputTensor {  // a weight as Hugging Face stores it
  std::string name;
  std::vector<WeightId> parts;         // several: one below the other in a fused matrix
  const TensorInfo* copied = nullptr;  // its bytes as they are
  const Format* format = nullptr;      // else made, [rows, cols]
  int64_t rows = 0, cols = 0;
  bool transposed = false;             // stored [cols, rows]; dense only
  float minus = 0;                     // what Hugging Face stores less
  uint64_t source_bytes = 0;
  std::vector<FilePiece> pieces;
};

struct OutputPlan {
  std::vector<OutputTensor> tensors;
  std::vector<std::vector<size_t>> shards;  // of tensors, in order
  nlohmann::ordered_json config;
  std::string label;                        // "nf4 + bf16"
  std::vector<std::string> changed;         // weights that cannot be kept as they are, and what they become
  uint64_t bytes = 0, source_bytes = 0;     // bytes: of tensors, without headers
};

// Shards are filled up to shard_bytes; one tensor may be more. Errors: Code::invalid_argument naming the weight: no library keeps it in
// its format, or not together with the others.
OutputPlan plan_output(const Blueprint& blueprint, uint64_t shard_bytes);

std::string shard_name(size_t index, size_t count);  // "model-00001-of-00003.safetensors", "model.safetensors"

}  // namespace tandem
