// What turns text into ids and back for one model, and what stands in for options that a user left out. Shared by the server's text
// threads and by the local `generate`. Borrows; immutable once handed out, thread-safe.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "runtime/serving/request.h"

namespace tandem {

class Tokenizer;
class ChatTemplate;

struct TextSide {
  const Tokenizer* tokenizer = nullptr;                    // null: ids only
  const ChatTemplate* chat = nullptr;                      // null: no chats
  const nlohmann::ordered_json* chat_variables = nullptr;  // bos_token, ... for the template; null: none
  std::vector<int32_t> stop_ids;                           // the model's end tokens
  Sampling defaults;    // generation_config.json's (temperature 0 unless do_sample); its seed is not read
  int32_t vocab = 0;    // width of the model's output
  int32_t context = 0;  // longest sequence served

  std::string model;                             // the name it is served under
  std::string compute;                           // "fp32", "int8", ...: reported with every answer
  std::string family, format, kv_dtype, digest;  // reported by GetModelInfo
  int32_t layers = 0, max_batch = 0;
};

}  // namespace tandem
