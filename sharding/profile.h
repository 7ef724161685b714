// What the planner knows of a model: bytes and work of every piece, for one mesh shape, bucket and arithmetic. Made by runtime/model
// without a device and without reading weights. Values only.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/program/arithmetic.h"
#include "kernels/program/backend.h"
#include "sharding/mesh.h"

namespace tandem {

struct Bytes { uint64_t weights = 0, scales = 0; uint64_t sum() const { return weights + scales; } };

struct Piece {                       // a decoder layer, the embedding or the head
  std::vector<Bytes> resident;       // of each member of a stage group (ep x tp of them)
  uint64_t read_bytes = 0;           // weight bytes that one decoded token reads, whole group
  double flops = 0;                  // per token, whole group
  std::vector<uint64_t> kv_page_bytes;  // per KV group, of one page, one member; empty for embedding and head
};

struct Profile {
  std::string name, digest, format;
  uint64_t parameters = 0, footprint_bytes = 0;
  int64_t hidden = 0;
  int32_t context_limit = 0;         // the model's
  Mesh group;                        // pp = 1: ep and tp of a stage
  std::vector<Piece> layers;
  Piece embedding, head;
  std::vector<int64_t> kv_windows;   // of each KV group: tokens that are looked back on; 0 or missing: the whole context
  bool tied = false;                 // on one stage the head uses the embedding's bytes
  std::string head_name, embedding_name, layer_prefix;  // for device_map: "lm_head", "model.embed_tokens", "model.layers."
  std::vector<std::string> first_modules, last_modules;          // what else of the first and last stage has a name: "model.norm"
  uint64_t workspace[2][2] = {};     // [embeds][has head]
  uint64_t communication_bytes = 0;  // buffers between stages, each rank
  Arithmetic arithmetic;
  // What could be asked for instead; remedies name nothing else.
  std::vector<KvType> kv_types = {KvType::fp32, KvType::bf16, KvType::fp16, KvType::fp8, KvType::int8};
  std::vector<std::string> formats = {"int8", "nf4"};
};

struct Workload {
  int32_t context = 4096, batch = 1, chunk = 512, page_tokens = 64;
};

enum class Objective : uint8_t { latency, throughput, capacity };

}  // namespace tandem
