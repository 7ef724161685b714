// What a checkpoint holds, known from its headers alone. Nothing but headers is read until a rank asks for byte ranges. Immutable
// after opening; read() may be called from many threads.
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "kernels/formats/format.h"

namespace tandem {

struct TensorInfo {
  std::string name;            // as the file spells it
  std::string type;            // a format's name when it is one ("bf16", "q4_1"), else safetensors' dtype in lower case ("u8", "i32")
  std::vector<int64_t> shape;  // outermost first, also for GGUF
  uint64_t bytes = 0;
  uint32_t file = 0;    // index of the file it is in
  uint64_t offset = 0;  // of its first byte in that file
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual const std::vector<TensorInfo>& tensors() const = 0;       // in file order
  virtual const TensorInfo* find(std::string_view name) const = 0;  // null when absent
  // Bytes [range.begin, range.end) of the tensor. Errors: Code::invalid_argument naming the file when it is shorter than its header
  // said (it shrank), Code::unavailable on an I/O error.
  virtual void read(const TensorInfo& tensor, ByteRange range, void* destination) const = 0;
  virtual std::string file_name(const TensorInfo& tensor) const = 0;  // for messages
};

enum class Dialect : uint8_t { huggingface, gguf };  // whose tensor names, row orders and stacking the file follows

// The tokenizer.* keys of a GGUF file as they stand there; launch hands them to runtime/text.
struct GgufText {
  std::vector<std::string> tokens, merges;  // merges: "left right"
  std::vector<int32_t> types;               // of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; or empty
  std::vector<float> scores;                // of each token, or empty
  std::string model, pre, chat_template;    // "gpt2" | "llama" | ..., "smollm" | ..., Jinja
  std::string architecture;                 // general.architecture
  std::optional<int32_t> bos, eos, eot, unknown, padding;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

// Everything text needs, as found; runtime/text turns it into a tokenizer. Plain text and arrays, so that this folder needs no
// tokenizer.
struct TextFiles {
  std::string tokenizer_json, tokenizer_config_json, chat_template_jinja;  // Hugging Face; empty when absent
  std::string tokenizer_model, vocab_json, merges_txt;  // SentencePiece's file, or GPT-2's two, where there is no tokenizer.json
  std::optional<GgufText> gguf;                                            // of a GGUF file
};

struct Checkpoint {
  std::string path, name;  // as given; the directory's or file's own name, without .gguf, .json and -00001-of-0000N
  Dialect dialect = Dialect::huggingface;
  std::string config_file;                // where config came from, for messages: ".../config.json", ".../x.gguf"
  nlohmann::json config;                  // config.json; a GGUF's metadata is translated into the same keys
  nlohmann::json generation_config;       // object, possibly empty
  std::unique_ptr<TensorSource> tensors;  // null for a lone config.json and for a directory without weights
  std::string digest;  // SHA-256 (hex) over config.json and the tensor index (names, dtypes, shapes, offsets), never over weights
};

// SHA-256 over the config and the tensor index (names, types, shapes, places), never over weights. `tensors` may be null.
std::string checkpoint_digest(const nlohmann::json& config, const TensorSource* tensors);

// A Hugging Face directory, a .gguf file (first of a split or whole) or a lone config.json. Reads headers only.
// Errors: Code::not_found, Code::invalid_argument with file and key.
Checkpoint open_checkpoint(const std::string& path);
TextFiles read_text_files(const std::string& path);  // only the coordinator needs them; empty for a lone config.json

}  // namespace tandem
