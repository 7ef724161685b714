// Files that the text tests read: JSON fixtures, and the tokenizer fields of a GGUF file (a reader of its own, as this layer does not
// see the checkpoint readers).
#pragma once
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "runtime/text/tokenizer.h"

#ifndef TANDEM_SLOW_FACTOR
#define TANDEM_SLOW_FACTOR 1
#endif

namespace tandem {

// This thread's processor time: what a speed test means, on a machine that does other things besides.
inline double thread_milliseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline nlohmann::ordered_json read_json(const std::string& path) { return nlohmann::ordered_json::parse(read_file(path)); }

inline std::string fixture(const std::string& name) { return std::string(TANDEM_FIXTURES) + "/" + name; }

inline std::string smollm2_path() {
  const char* home = std::getenv("HOME");
  return std::string(home ? home : "") + "/.cache/tandem/SmolLM2-135M-Instruct.Q4_1.gguf";
}

inline GgufVocabulary read_gguf_vocabulary(const std::string& path, std::string* chat_template = nullptr) {
  std::ifstream file(path, std::ios::binary);
  auto number = [&]<class T>(T) {
    T value{};
    file.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  };
  auto text = [&] {
    std::string value(number(uint64_t{}), '\0');
    file.read(value.data(), static_cast<std::streamsize>(value.size()));
    return value;
  };
  constexpr size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  number(uint64_t{});  // magic, version
  number(uint64_t{});  // tensors
  GgufVocabulary out;
  for (uint64_t fields = number(uint64_t{}); fields > 0; --fields) {
    const std::string key = text();
    uint32_t type = number(uint32_t{});
    uint64_t count = 1;
    const bool array = type == 9;
    if (array) type = number(uint32_t{}), count = number(uint64_t{});
    const std::string name = key.starts_with("tokenizer.ggml.") ? key.substr(15) : "";
    for (uint64_t i = 0; i < count; ++i) {
      if (!file) throw std::runtime_error("short file " + path);
      if (type == 8) {
        std::string value = text();
        if (key == "tokenizer.chat_template" && chat_template) *chat_template = value;
        if (name == "model") out.model = value;
        if (name == "pre") out.pre = value;
        if (name == "tokens") out.tokens.push_back(std::move(value));
        if (name == "merges") out.merges.push_back(std::move(value));
        continue;
      }
      char raw[8] = {};
      file.read(raw, static_cast<std::streamsize>(sizes[type]));
      int32_t whole;
      float real;
      std::memcpy(&whole, raw, 4);
      std::memcpy(&real, raw, 4);
      if (name == "token_type") out.types.push_back(whole);
      if (name == "scores") out.scores.push_back(real);
      if (array) continue;
      if (name == "bos_token_id") out.bos = whole;
      if (name == "eos_token_id") out.eos = whole;
      if (name == "unknown_token_id") out.unknown = whole;
      if (name == "padding_token_id") out.padding = whole;
      if (name == "add_bos_token") out.add_bos = raw[0] != 0;
      if (name == "add_eos_token") out.add_eos = raw[0] != 0;
      if (name == "add_space_prefix") out.add_space_prefix = raw[0] != 0;
    }
  }
  return out;
}

inline std::unique_ptr<Tokenizer> tiny_tokenizer() {
  return Tokenizer::from_json(read_file(fixture("tokenizer/tokenizer.json")), read_file(fixture("tokenizer/tokenizer_config.json")),
                              "tokenizer/tokenizer.json");
}

inline std::unique_ptr<Tokenizer> smollm2_tokenizer() {
  if (!std::ifstream(smollm2_path())) return nullptr;
  return Tokenizer::from_gguf(read_gguf_vocabulary(smollm2_path()), "SmolLM2.gguf");
}

inline std::string from_hex(const std::string& hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return out;
}

}  // namespace tandem
