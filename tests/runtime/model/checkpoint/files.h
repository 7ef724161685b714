// Small checkpoint files made by the tests themselves, right and wrong ones. Values; a TemporaryDirectory removes itself.
#pragma once
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "runtime/model/checkpoint/gguf.h"

namespace tandem::testing {

inline std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); }

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string form = (std::filesystem::temp_directory_path() / "checkpoint-XXXXXX").string();
    path_ = ::mkdtemp(form.data());
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }
  std::string write(const std::string& name, const std::string& content) const {
    const std::string path = path_ + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }

 private:
  std::string path_;
};

template <typename T>
std::string little(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

// A safetensors file around a header text, with data_bytes bytes 0, 1, 2, ...
inline std::string safetensors(const std::string& header, size_t data_bytes) {
  std::string out = little<uint64_t>(header.size()) + header;
  for (size_t i = 0; i < data_bytes; ++i) out += static_cast<char>(i);
  return out;
}
// "name":{"dtype":...}
inline std::string entry(const std::string& name, const std::string& dtype, const std::string& shape, uint64_t begin, uint64_t end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[" + std::to_string(begin) + "," +
         std::to_string(end) + "]}";
}

// A GGUF file in parts, so that a test can put anything anywhere.
struct GgufBuilder {
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dimensions;  // innermost first, as the file has them
    uint32_t type = 0;
    uint64_t offset = 0;
  };
  uint32_t version = 3;
  std::string keys;  // encoded
  uint64_t key_count = 0;
  std::vector<Tensor> tensors;
  uint64_t data_bytes = 0;
  uint64_t alignment = 32;
  std::optional<uint64_t> declared_keys, declared_tensors;

  static std::string text(const std::string& value) { return little<uint64_t>(value.size()) + value; }
  GgufBuilder& raw(const std::string& key, GgufType type, const std::string& value) {
    keys += text(key) + little(static_cast<uint32_t>(type)) + value;
    ++key_count;
    return *this;
  }
  GgufBuilder& string(const std::string& key, const std::string& value) { return raw(key, GgufType::string, text(value)); }
  GgufBuilder& u32(const std::string& key, uint32_t value) { return raw(key, GgufType::u32, little(value)); }
  GgufBuilder& u16(const std::string& key, uint16_t value) { return raw(key, GgufType::u16, little(value)); }
  GgufBuilder& i32(const std::string& key, int32_t value) { return raw(key, GgufType::i32, little(value)); }
  GgufBuilder& f32(const std::string& key, float value) { return raw(key, GgufType::f32, little(value)); }
  GgufBuilder& boolean(const std::string& key, bool value) { return raw(key, GgufType::boolean, little<uint8_t>(value)); }
  GgufBuilder& strings(const std::string& key, const std::vector<std::string>& values) {
    std::string encoded = little(static_cast<uint32_t>(GgufType::string)) + little<uint64_t>(values.size());
    for (const auto& value : values) encoded += text(value);
    return raw(key, GgufType::array, encoded);
  }
  template <typename T>
  GgufBuilder& numbers(const std::string& key, GgufType element, const std::vector<T>& values) {
    std::string encoded = little(static_cast<uint32_t>(element)) + little<uint64_t>(values.size());
    for (const T value : values) encoded += little(value);
    return raw(key, GgufType::array, encoded);
  }
  GgufBuilder& tensor(Tensor tensor, uint64_t bytes) {
    tensor.offset = (data_bytes + alignment - 1) / alignment * alignment;
    data_bytes = tensor.offset + bytes;
    tensors.push_back(std::move(tensor));
    return *this;
  }
  std::string build() const {
    std::string out = "GGUF" + little(version) + little<uint64_t>(declared_tensors.value_or(tensors.size())) +
                      little<uint64_t>(declared_keys.value_or(key_count)) + keys;
    for (const Tensor& tensor : tensors) {
      out += text(tensor.name) + little(static_cast<uint32_t>(tensor.dimensions.size()));
      for (const uint64_t dimension : tensor.dimensions) out += little(dimension);
      out += little(tensor.type) + little(tensor.offset);
    }
    if (tensors.empty()) return out;
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    for (uint64_t i = 0; i < data_bytes; ++i) out += static_cast<char>(i);
    return out;
  }
};

// A llama of two layers that says everything a reader looks for.
inline GgufBuilder small_llama() {
  GgufBuilder b;
  b.string("general.architecture", "llama").string("general.name", "small").u32("llama.block_count", 2).u32("llama.embedding_length", 32);
  b.u32("llama.attention.head_count", 4).u32("llama.attention.head_count_kv", 2).u32("llama.feed_forward_length", 64);
  b.u32("llama.context_length", 128).f32("llama.attention.layer_norm_rms_epsilon", 1e-5f).f32("llama.rope.freq_base", 10000.f);
  b.string("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", {"a", "b", "ab"}).strings("tokenizer.ggml.merges", {"a b"});
  b.numbers<int32_t>("tokenizer.ggml.token_type", GgufType::i32, {1, 1, 3});
  b.numbers<float>("tokenizer.ggml.scores", GgufType::f32, {0.f, -1.f, -2.f}).u32("tokenizer.ggml.bos_token_id", 2);
  b.boolean("tokenizer.ggml.add_bos_token", true);
  b.tensor({"token_embd.weight", {32, 3}, 8}, 3 * 34).tensor({"output_norm.weight", {32}, 0}, 128);
  b.tensor({"blk.0.attn_q.weight", {32, 32}, 2}, 32 * 18);
  return b;
}

}  // namespace tandem::testing
