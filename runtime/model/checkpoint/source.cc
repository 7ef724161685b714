#include "runtime/model/checkpoint/source.h"

#include <filesystem>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/gguf.h"
#include "runtime/model/checkpoint/gguf_config.h"
#include "runtime/model/checkpoint/quantized.h"
#include "runtime/model/checkpoint/safetensors.h"
#include "runtime/model/checkpoint/sha256.h"

namespace tandem {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

enum class Kind { directory, gguf, config };

Kind kind_of(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    fail(Code::not_found, path, "no such file or directory (a model is a Hugging Face directory, a .gguf file or a config.json)");
  }
  if (fs::is_directory(status)) return Kind::directory;
  const std::string extension = fs::path(path).extension().string();
  if (extension == ".json") return Kind::config;
  if (extension == ".gguf") return Kind::gguf;
  // Without the usual name (a file of a download cache, say) the first bytes decide.
  char magic[4] = {};
  const auto file = open_file(path);
  if (file->size() >= sizeof magic) file->read(0, sizeof magic, magic);
  if (std::string_view(magic, sizeof magic) == "GGUF") return Kind::gguf;
  bad_input(path, extension == ".safetensors" ? "is one file of a checkpoint (give its directory, which also has config.json)"
                                              : "is no model (must be a Hugging Face directory, a .gguf file or a config.json)");
}

std::string model_name(const std::string& path, Kind kind) {
  std::error_code error;
  fs::path full = fs::absolute(path, error).lexically_normal();
  if (!full.has_filename()) full = full.parent_path();  // "dir/"
  std::string name = full.filename().string();
  if (kind == Kind::directory) return name;  // "llama-3.1-8b" has no extension
  if (kind == Kind::config && name == "config.json") return full.parent_path().filename().string();
  name = full.stem().string();
  if (const size_t part = name.rfind("-of-"); part != std::string::npos && part >= 6 && name.size() == part + 9) name.erase(part - 6);
  return name;
}

}  // namespace

std::string checkpoint_digest(const json& config, const TensorSource* tensors) {
  Sha256 hash;
  hash.add(config.dump(-1, ' ', false, json::error_handler_t::replace));
  if (!tensors) return hash.hex();
  for (const TensorInfo& tensor : tensors->tensors()) {
    std::string line = "\n" + std::to_string(tensor.name.size()) + " " + tensor.name + " " + tensor.type + " [";
    for (const int64_t size : tensor.shape) line += std::to_string(size) + ",";
    hash.add(line + "] " + std::to_string(tensor.file) + " " + std::to_string(tensor.offset));
  }
  return hash.hex();
}

namespace {

std::string read_text_if_there(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return {};
  std::string text = read_text(path);
  if (text.empty()) bad_input(path, "is empty (must be a whole file, or not there)");
  return text;
}

json read_config(const std::string& directory) {
  const std::string path = directory + "/config.json";
  std::error_code error;
  if (fs::exists(path, error)) return read_json_object(path);
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().extension() == ".gguf") {
      fail(Code::not_found, path, "no such file (to run a GGUF file, give its path: " + in_quotes(entry.path().string()) + ")");
    }
  }
  fail(Code::not_found, path, "no such file (a Hugging Face directory has config.json and *.safetensors)");
}

}  // namespace

Checkpoint open_checkpoint(const std::string& path) {
  const Kind kind = kind_of(path);
  Checkpoint out{.path = path, .name = model_name(path, kind)};
  out.generation_config = json::object();
  switch (kind) {
    case Kind::directory: {
      out.config_file = path + "/config.json";
      out.config = read_config(path);
      const std::string generation = path + "/generation_config.json";
      std::error_code error;
      if (fs::exists(generation, error)) out.generation_config = read_json_object(generation);
      out.tensors = open_safetensors(path);
      break;
    }
    case Kind::gguf: {
      GgufModel model = open_gguf(path);
      const auto file = open_file(path);
      out.dialect = Dialect::gguf;
      out.config_file = path;
      out.config = gguf_config(*file, model.header, *model.tensors);
      out.generation_config = gguf_generation_config(*file, model.header);
      out.tensors = std::move(model.tensors);
      break;
    }
    case Kind::config:
      out.config_file = path;
      out.config = read_json_object(path);
      break;
  }
  out.digest = checkpoint_digest(out.config, out.tensors.get());
  if (out.dialect == Dialect::huggingface) out.tensors = open_quantized(std::move(out.tensors), out.config, out.config_file);
  return out;
}

TextFiles read_text_files(const std::string& path) {
  TextFiles out;
  switch (kind_of(path)) {
    case Kind::directory:
      out.tokenizer_json = read_text_if_there(path + "/tokenizer.json");
      if (out.tokenizer_json.empty()) {
        out.tokenizer_model = read_text_if_there(path + "/tokenizer.model");
        out.vocab_json = read_text_if_there(path + "/vocab.json");
        out.merges_txt = read_text_if_there(path + "/merges.txt");
      }
      out.tokenizer_config_json = read_text_if_there(path + "/tokenizer_config.json");
      out.chat_template_jinja = read_text_if_there(path + "/chat_template.jinja");
      break;
    case Kind::gguf: {
      const auto file = open_file(path);
      out.gguf = read_gguf_text(*file, read_gguf_header(*file));
      break;
    }
    case Kind::config:
      break;
  }
  return out;
}

}  // namespace tandem
