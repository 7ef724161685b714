// Whole checkpoints: the fixtures, a downloaded model when there is one, and directories that are not quite a model.
#include "runtime/model/checkpoint/source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/rectangle.h"
#include "runtime/model/checkpoint/tensor_names.h"
#include "tests/runtime/model/checkpoint/files.h"

namespace tandem {
namespace {

using testing::entry;
using ::testing::HasSubstr;
using testing::safetensors;
using testing::TemporaryDirectory;

#ifdef TANDEM_SLOW_FACTOR
constexpr double kSlow = TANDEM_SLOW_FACTOR;
#else
constexpr double kSlow = 1;
#endif

std::string fixture(const std::string& name) { return std::string(TANDEM_FIXTURES) + "/" + name; }

template <typename F>
std::string error_of(F&& call) {
  try {
    (void)call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(OpenCheckpoint, OneFileAndItsText) {
  const Checkpoint checkpoint = open_checkpoint(fixture("llama-tiny"));
  EXPECT_EQ(checkpoint.name, "llama-tiny");
  EXPECT_EQ(checkpoint.dialect, Dialect::huggingface);
  EXPECT_EQ(checkpoint.config.at("model_type"), "llama");
  EXPECT_EQ(checkpoint.generation_config.at("temperature"), 0.6);
  EXPECT_EQ(checkpoint.digest.size(), 64u);
  const TensorInfo* embedding = checkpoint.tensors->find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->type, "fp32");
  EXPECT_EQ(embedding->shape, (std::vector<int64_t>{509, 48}));
  const TextFiles text = read_text_files(fixture("llama-tiny"));
  EXPECT_THAT(text.tokenizer_json, HasSubstr("\"BPE\""));
  EXPECT_FALSE(text.gguf.has_value());
}

TEST(OpenCheckpoint, ShardsMakeOneModel) {
  const Checkpoint checkpoint = open_checkpoint(fixture("llama-tied"));
  EXPECT_EQ(checkpoint.tensors->find("lm_head.weight"), nullptr);
  std::vector<std::string> files;
  for (const TensorInfo& tensor : checkpoint.tensors->tensors()) files.push_back(checkpoint.tensors->file_name(tensor));
  files.erase(std::unique(files.begin(), files.end()), files.end());
  EXPECT_EQ(files.size(), 3u);
}

TEST(OpenCheckpoint, ReadsTheBytesThatAreThere) {
  const Checkpoint checkpoint = open_checkpoint(fixture("llama-tied"));
  for (const TensorInfo& tensor : checkpoint.tensors->tensors()) {
    std::vector<char> got(tensor.bytes), wanted(tensor.bytes);
    checkpoint.tensors->read(tensor, {0, tensor.bytes}, got.data());
    std::ifstream file(checkpoint.tensors->file_name(tensor), std::ios::binary);
    file.seekg(static_cast<std::streamoff>(tensor.offset));
    file.read(wanted.data(), static_cast<std::streamsize>(wanted.size()));
    EXPECT_EQ(got, wanted) << tensor.name;
  }
}

TEST(OpenCheckpoint, ManyThreadsReadOneSource) {
  const Checkpoint checkpoint = open_checkpoint(fixture("mixtral-tiny"));
  const TensorInfo& tensor = *checkpoint.tensors->find("model.embed_tokens.weight");
  std::vector<char> wanted(tensor.bytes);
  checkpoint.tensors->read(tensor, {0, tensor.bytes}, wanted.data());
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<char> got(1000);
      for (uint64_t at = 0; at + 1000 <= tensor.bytes; at += 97 + t) {
        checkpoint.tensors->read(tensor, {at, at + 1000}, got.data());
        if (!std::equal(got.begin(), got.end(), wanted.begin() + static_cast<ptrdiff_t>(at))) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(OpenCheckpoint, GgufSaysTheSameAsHuggingFace) {
  const Checkpoint gguf = open_checkpoint(fixture("gguf/llama-tiny.gguf")), huggingface = open_checkpoint(fixture("llama-tiny"));
  EXPECT_EQ(gguf.name, "llama-tiny");
  EXPECT_EQ(gguf.dialect, Dialect::gguf);
  for (const char* key : {"model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                          "head_dim", "intermediate_size", "vocab_size", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
                          "attention_bias", "mlp_bias", "bos_token_id"}) {
    EXPECT_EQ(gguf.config.at(key), huggingface.config.at(key)) << key;
  }
  EXPECT_EQ(Config(gguf.config, "x").rope().number("rope_theta", 1, 1e9),
            Config(huggingface.config, "x").rope().number("rope_theta", 1, 1e9));
  EXPECT_EQ(gguf.config.at("rope_scaling").at("rope_type"), "gguf_factors");
  // Every Hugging Face tensor answers by its name, with its shape.
  for (const TensorInfo& tensor : huggingface.tensors->tensors()) {
    const Located found = locate(*gguf.tensors, "llama", tensor.name);
    ASSERT_NE(found.tensor, nullptr) << tensor.name;
    EXPECT_EQ(found.tensor->shape, tensor.shape) << tensor.name;
  }
  const TextFiles text = read_text_files(fixture("gguf/llama-tiny.gguf"));
  ASSERT_TRUE(text.gguf.has_value());
  EXPECT_EQ(text.gguf->tokens.size(), 509u);
  EXPECT_EQ(text.gguf->types.size(), 509u);
  EXPECT_EQ(text.gguf->bos, 495);
  EXPECT_FALSE(text.gguf->chat_template.empty());
}

TEST(OpenCheckpoint, SplitGgufEqualsTheWhole) {
  const Checkpoint whole = open_checkpoint(fixture("gguf/llama-tiny.gguf")),
                   split = open_checkpoint(fixture("gguf/llama-tiny-split-00001-of-00002.gguf"));
  EXPECT_EQ(split.name, "llama-tiny-split");
  EXPECT_EQ(split.config, whole.config);
  ASSERT_EQ(split.tensors->tensors().size(), whole.tensors->tensors().size());
  for (const TensorInfo& tensor : whole.tensors->tensors()) {
    const TensorInfo* other = split.tensors->find(tensor.name);
    ASSERT_NE(other, nullptr) << tensor.name;
    EXPECT_EQ(other->type, tensor.type);
    EXPECT_EQ(other->shape, tensor.shape);
    std::vector<char> a(tensor.bytes), b(tensor.bytes);
    whole.tensors->read(tensor, {0, tensor.bytes}, a.data());
    split.tensors->read(*other, {0, tensor.bytes}, b.data());
    EXPECT_EQ(a, b) << tensor.name;
  }
}

TEST(OpenCheckpoint, StackedExperts) {
  const Checkpoint gguf = open_checkpoint(fixture("gguf/mixtral-tiny.gguf")), huggingface = open_checkpoint(fixture("mixtral-tiny"));
  EXPECT_EQ(gguf.config.at("model_type"), "mixtral");
  EXPECT_EQ(gguf.config.at("num_local_experts"), 5);
  for (const TensorInfo& tensor : huggingface.tensors->tensors()) {
    const Located found = locate(*gguf.tensors, "mixtral", tensor.name);
    ASSERT_NE(found.tensor, nullptr) << tensor.name;
    if (found.expert < 0) continue;
    EXPECT_EQ(std::vector(found.tensor->shape.begin() + 1, found.tensor->shape.end()), tensor.shape);
    EXPECT_LT(expert_offset(*gguf.tensors, *found.tensor, found.expert), found.tensor->bytes);
  }
}

TEST(OpenCheckpoint, QuantizedCheckpointsOpen) {
  const Checkpoint nf4 = open_checkpoint(fixture("nf4/llama-tiny-nf4"));
  EXPECT_EQ(nf4.tensors->find("model.layers.0.mlp.down_proj.weight")->type, "nf4");
  EXPECT_NE(nf4.tensors->find("model.layers.0.mlp.down_proj.weight.absmax"), nullptr);
  const Checkpoint k = open_checkpoint(fixture("gguf/llama-k.gguf"));
  EXPECT_EQ(k.tensors->find("token_embd.weight")->type, "q4_k");
  const Checkpoint q4 = open_checkpoint(fixture("gguf/llama-q4.gguf"));  // alignment 64, linear RoPE
  EXPECT_EQ(q4.config.at("rope_scaling").at("factor"), 4.0);
}

TEST(OpenCheckpoint, LoneConfigAndDirectoryWithoutWeights) {
  const Checkpoint lone = open_checkpoint(fixture("llama-tiny/config.json"));
  EXPECT_EQ(lone.name, "llama-tiny");
  EXPECT_EQ(lone.tensors, nullptr);
  EXPECT_EQ(lone.generation_config, nlohmann::json::object());
  const TemporaryDirectory directory;
  directory.write("config.json", R"({"model_type":"llama"})");
  EXPECT_EQ(open_checkpoint(directory.path()).tensors, nullptr);
  EXPECT_EQ(open_checkpoint(directory.path() + "/").name, std::filesystem::path(directory.path()).filename());
  EXPECT_TRUE(read_text_files(directory.path()).tokenizer_json.empty());
}

TEST(OpenCheckpoint, DigestFollowsConfigAndIndexNotWeights) {
  const TemporaryDirectory directory;
  const std::string header = "{" + entry("a", "U8", "[4]", 0, 4) + "}";
  const auto digest = [&](const std::string& config, const std::string& file) {
    directory.write("config.json", config);
    directory.write("model.safetensors", file);
    return open_checkpoint(directory.path()).digest;
  };
  const std::string base = digest(R"({"a":1,"b":2})", safetensors(header, 4));
  EXPECT_EQ(digest(R"({ "b": 2, "a": 1 })", safetensors(header, 4)), base);  // what it says, not how it is spaced
  std::string weights = safetensors(header, 4);
  weights.back() = 77;
  EXPECT_EQ(digest(R"({"a":1,"b":2})", weights), base);
  EXPECT_NE(digest(R"({"a":1,"b":3})", safetensors(header, 4)), base);
  EXPECT_NE(digest(R"({"a":1,"b":2})", safetensors("{" + entry("b", "U8", "[4]", 0, 4) + "}", 4)), base);
  EXPECT_NE(digest(R"({"a":1,"b":2})", safetensors("{" + entry("a", "I8", "[4]", 0, 4) + "}", 4)), base);
  EXPECT_NE(digest(R"({"a":1,"b":2})", safetensors("{" + entry("a", "U8", "[2,2]", 0, 4) + "}", 4)), base);
  EXPECT_NE(digest(R"({"a":1,"b":2})", safetensors(header + " ", 4)), base);  // offsets in the file count
}

TEST(OpenCheckpoint, WhatIsNoModelIsRefusedByName) {
  const TemporaryDirectory directory;
  const auto error = [](const std::string& path) { return error_of([&] { return open_checkpoint(path); }); };
  const std::string& d = directory.path();
  EXPECT_THAT(error(d + "/none"), HasSubstr(d + "/none: no such file or directory"));
  EXPECT_THAT(error(d), HasSubstr("config.json: no such file (a Hugging Face directory has config.json"));
  directory.write("m.gguf", "GGUF");
  EXPECT_THAT(error(d), HasSubstr("to run a GGUF file, give its path: '" + d + "/m.gguf'"));
  EXPECT_THAT(error(d + "/m.gguf"), HasSubstr("has 4 bytes"));
  EXPECT_THAT(error(directory.write("x.txt", "hello")), HasSubstr("is no model"));
  EXPECT_THAT(error(directory.write("x.safetensors", "hello")), HasSubstr("is one file of a checkpoint"));
  directory.write("config.json", "{");
  EXPECT_THAT(error(d), HasSubstr(d + "/config.json: the JSON text is broken"));
  directory.write("config.json", "[]");
  EXPECT_THAT(error(d), HasSubstr("must be a JSON object"));
  directory.write("config.json", "{}");
  directory.write("generation_config.json", "7");
  EXPECT_THAT(error(d), HasSubstr(d + "/generation_config.json: is 7 (must be a JSON object)"));
  directory.write("generation_config.json", "{}");
  std::filesystem::remove(d + "/x.safetensors");
  directory.write("pytorch_model-00001-of-00002.bin", "x");
  directory.write("pytorch_model-00002-of-00002.bin", "x");
  EXPECT_THAT(error(d), HasSubstr(d + "/pytorch_model-00001-of-00002.bin: is a pickled checkpoint"));
  ASSERT_EQ(::mkfifo((d + "/pipe.gguf").c_str(), 0600), 0);
  EXPECT_THAT(error(d + "/pipe.gguf"), HasSubstr("is not a regular file"));  // and nobody waits for a writer
  std::filesystem::create_symlink("loop.gguf", d + "/loop.gguf");
  EXPECT_NE(error(d + "/loop.gguf"), "no error");
  const std::string unnamed = directory.write("0a1b2c", testing::small_llama().build());  // as download caches name files
  EXPECT_EQ(open_checkpoint(unnamed).dialect, Dialect::gguf);
}

TEST(OpenCheckpoint, DownloadedModelOpensFast) {
  const char* home = std::getenv("HOME");
  const std::string path = std::string(home ? home : "") + "/.cache/tandem/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  double open_seconds = 1e9, text_seconds = 1e9;
  for (int round = 0; round < 5; ++round) {  // the best, for other programs share the machine
    const auto start = std::chrono::steady_clock::now();
    const Checkpoint checkpoint = open_checkpoint(path);
    const auto opened = std::chrono::steady_clock::now();
    const TextFiles text = read_text_files(path);
    const auto read = std::chrono::steady_clock::now();
    open_seconds = std::min(open_seconds, std::chrono::duration<double>(opened - start).count());
    text_seconds = std::min(text_seconds, std::chrono::duration<double>(read - opened).count());
    ASSERT_TRUE(text.gguf.has_value());
    EXPECT_EQ(text.gguf->tokens.size(), 49152u);
    EXPECT_EQ(text.gguf->merges.size(), 48900u);
    EXPECT_EQ(text.gguf->merges[0], "\xc4\xa0 t");
    EXPECT_EQ(text.gguf->pre, "smollm");
    EXPECT_EQ(text.gguf->add_bos, false);
    EXPECT_EQ(checkpoint.tensors->tensors().size(), 272u);
    EXPECT_EQ(checkpoint.config.at("num_hidden_layers"), 30);
    EXPECT_EQ(checkpoint.config.at("rms_norm_eps"), 1e-5);
    EXPECT_EQ(checkpoint.tensors->find("blk.0.ffn_down.weight")->type, "q4_1");
    EXPECT_EQ(checkpoint.tensors->find("blk.0.ffn_down.weight")->offset, 31868992u);
  }
  RecordProperty("open_microseconds", static_cast<int>(open_seconds * 1e6));
  RecordProperty("text_microseconds", static_cast<int>(text_seconds * 1e6));
  EXPECT_LT(open_seconds, 0.005 * kSlow);
  EXPECT_LT(text_seconds, 0.015 * kSlow);
}

}  // namespace
}  // namespace tandem
