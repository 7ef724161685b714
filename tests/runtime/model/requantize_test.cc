// A checkpoint written in a format: the bytes that transformers saves, and the weights that quantizing on load gives; interrupted anywhere
// it ends the same.
#include "runtime/model/requantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/checksum.h"
#include "tests/kernels/formats/fixture.h"
#include "tests/runtime/model/checkpoint/files.h"

namespace tandem {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::TemporaryDirectory;

constexpr uint64_t kLarge = 1 << 30;

std::string fixture(const std::string& name) { return std::string(TANDEM_FIXTURES) + "/" + name; }

Requantized write(const std::string& model, const FormatOptions& format, const std::string& to, uint64_t shard_bytes = kLarge, const LoadListener& listener = {}) {
  const Blueprint blueprint = make_blueprint(model, format, {});
  const OutputPlan plan = plan_output(blueprint, shard_bytes);
  return requantize(blueprint, plan, {.folder = to, .threads = 2, .job = {{"model", model}, {"format", format.format}, {"shard", shard_bytes}}}, listener);
}

std::vector<float> numbers(const LoadedSlice& slice) {
  std::vector<float> values(static_cast<size_t>(slice.view.rows * slice.view.cols));
  slice.view.format->dequantize(slice.view, 0, slice.view.rows, values.data());
  return values;
}

// Every weight of the checkpoint at `path`, as it is, against `model` quantized when it is loaded: the same bytes in the same layout.
void expect_as_loaded(const std::string& model, const FormatOptions& format, const std::string& path) {
  const Blueprint loaded = make_blueprint(model, format, {}), written = make_blueprint(path, {}, {});
  ASSERT_EQ(loaded.model->weights.size(), written.model->weights.size());
  for (WeightId id = 0; id < loaded.model->weights.size(); ++id) {
    const WeightRow& row = loaded.model->weights[id];
    const Rectangle all{0, row.rows.size(), 0, row.cols.size()};
    const LoadedSlice a = load_slice(loaded, id, all), b = load_slice(written, id, all);
    // By another name it may be: "int4_sym" is "int4" in files, a block that is the whole matrix a matrix.
    const auto components = a.view.format->components(all.rows(), all.cols()), others = b.view.format->components(all.rows(), all.cols());
    ASSERT_EQ(components.size(), others.size()) << row.name;
    for (size_t i = 0; i < components.size(); ++i) {
      ASSERT_EQ(components[i].bytes, others[i].bytes) << row.name;
      ASSERT_EQ(std::memcmp(a.view.data[i], b.view.data[i], components[i].bytes), 0) << row.name << components[i].suffix;
    }
    const std::vector<float> x = numbers(a), y = numbers(b);
    ASSERT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0) << row.name;
  }
}

// The format, or the one of the smallest blocks: what the fixtures' small matrices can be cut into.
std::string smallest(const Format& format) {
  for (const int64_t block : {32, 64}) {
    if (const Format* small = format.with_block(block)) return std::string(small->name());
  }
  return std::string(format.name());
}

TEST(Requantize, EveryFormatThatIsWrittenIsReadAsItWasLoaded) {
  int tried = 0;
  for (const Format* format : formats()) {
    if (!format->is_dense() && find_writer(*format) == nullptr) continue;
    for (const std::string& name : {std::string(format->name()), smallest(*format)}) {
      SCOPED_TRACE(name);
      // One of floats, one of experts, one that was quantized before; rows of 48 are in no blocks.
      for (const std::string& model : {fixture("llama-tiny"), fixture("mixtral-tiny"), fixture("int8/llama-int8")}) {
        try {
          (void)make_blueprint(model, {name}, {});
        } catch (const Error&) {
          continue;  // the format cannot hold these shapes
        }
        const TemporaryDirectory to;
        write(model, {name}, to.path());
        expect_as_loaded(model, {name}, to.path());
        ++tried;
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
  EXPECT_GE(tried, 40);
  for (const char* name : {"fp8:128", "int4_sym:row", "int8_sym:32"}) {
    SCOPED_TRACE(name);
    const TemporaryDirectory to;
    write(fixture("int8/llama-int8"), {name}, to.path());
    expect_as_loaded(fixture("int8/llama-int8"), {name}, to.path());
  }
}

struct Saved { const char* source; const char* saved; FormatOptions format; };

TEST(Requantize, WritesTheTensorsThatTransformersSaves) {
  for (const Saved& c : {Saved{"llama-tiny", "nf4/llama-tiny-nf4", {"nf4"}}, Saved{"llama-tiny", "nf4/llama-tiny-nf4-double", {"nf4", true}}, Saved{"mixtral-tiny", "nf4/mixtral-tiny-nf4", {"nf4"}}}) {
    SCOPED_TRACE(c.saved);
    const TemporaryDirectory to;
    write(fixture(c.source), c.format, to.path());
    const auto mine = test::read_safetensors(to.path() + "/model.safetensors"), theirs = test::read_safetensors(fixture(c.saved) + "/model.safetensors");
    EXPECT_EQ(mine.size(), theirs.size());
    for (const auto& [name, tensor] : theirs) {
      ASSERT_TRUE(mine.contains(name)) << name;
      EXPECT_EQ(mine.at(name).dtype, tensor.dtype) << name;
      EXPECT_EQ(mine.at(name).shape, tensor.shape) << name;
      EXPECT_TRUE(mine.at(name).bytes == tensor.bytes) << name;
    }
    json config = read_json_object(to.path() + "/config.json")["quantization_config"], saved = read_json_object(fixture(c.saved) + "/config.json")["quantization_config"];
    EXPECT_EQ(config["llm_int8_skip_modules"], json::array({"lm_head"}));
    config.erase("llm_int8_skip_modules"), saved.erase("llm_int8_skip_modules");
    EXPECT_EQ(config, saved);
  }
}

TEST(Requantize, ModulesKeepWhatIsNamedForThem) {
  const TemporaryDirectory to;
  const FormatOptions format{"nf4,v_proj=bf16,lm_head=nf4:128,mlp=fp4"};
  write(fixture("llama-tiny"), format, to.path());
  expect_as_loaded(fixture("llama-tiny"), format, to.path());
  const json skipped = read_json_object(to.path() + "/config.json")["quantization_config"]["llm_int8_skip_modules"];
  EXPECT_EQ(skipped, json::array({"model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj", "model.layers.2.self_attn.v_proj"}));
}

TEST(Requantize, FusedMatricesAreQuantizedWhole) {
  const TemporaryDirectory to;
  write(fixture("phi3-tiny"), {"nf4"}, to.path());
  const auto tensors = test::read_safetensors(to.path() + "/model.safetensors");
  EXPECT_TRUE(tensors.contains("model.layers.0.self_attn.qkv_proj.weight.absmax"));
  const TemporaryDirectory plain;
  write(fixture("phi3-tiny"), {"fp32"}, plain.path());
  const Blueprint original = make_blueprint(fixture("phi3-tiny"), {}, {});
  const auto floats = test::read_safetensors(plain.path() + "/model.safetensors").at("model.layers.0.self_attn.qkv_proj.weight");
  std::vector<std::vector<std::byte>> stored;
  std::vector<std::byte*> out;
  for (const Component& component : format("nf4").components(floats.shape[0], floats.shape[1])) stored.emplace_back(component.bytes);
  for (auto& bytes : stored) out.push_back(bytes.data());
  format("nf4").quantize(floats.as<float>().data(), floats.shape[0], floats.shape[1], out);
  EXPECT_TRUE(tensors.at("model.layers.0.self_attn.qkv_proj.weight").bytes == stored[0]);
  EXPECT_TRUE(tensors.at("model.layers.0.self_attn.qkv_proj.weight.absmax").bytes == stored[1]);
}

// Rows in Hugging Face's order, norms as they are stored there, matrices turned back.
TEST(Requantize, GgufFilesBecomeTheCheckpointTheyWereMadeFrom) {
  for (const char* name : {"qwen2-tiny", "gemma2-tiny", "gpt2-tiny", "qwen3-tiny"}) {
    SCOPED_TRACE(name);
    const TemporaryDirectory to;
    write(fixture("gguf/" + std::string(name) + ".gguf"), {}, to.path());
    const auto mine = test::read_safetensors(to.path() + "/model.safetensors"), theirs = test::read_safetensors(fixture(name) + "/model.safetensors");
    for (const auto& [there, tensor] : theirs) {
      if (there.ends_with(".attn.bias")) continue;  // GPT-2's mask
      const std::string key = mine.contains(there) ? there : "transformer." + there;
      ASSERT_TRUE(mine.contains(key)) << key;
      EXPECT_EQ(mine.at(key).shape, tensor.shape) << key;
      if (mine.at(key).dtype == tensor.dtype) {
        EXPECT_TRUE(mine.at(key).bytes == tensor.bytes) << key;
      }
    }
    const Blueprint again = make_blueprint(to.path(), {}, {});
    EXPECT_EQ(again.model->weights.size(), make_blueprint(fixture(name), {}, {}).model->weights.size());
  }
  const TemporaryDirectory to;
  write(fixture("gguf/llama-q4.gguf"), {"nf4"}, to.path());
}

std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : fs::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    all[entry.path().filename()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return all;
}

// Gives up when so many bytes are done.
LoadListener until(uint64_t bytes) {
  return [bytes](const LoadProgress& progress) {
    if (progress.done_bytes >= bytes) fail(Code::cancelled, "test", "gave up");
  };
}

TEST(Requantize, GoesOnWhereItWasInterrupted) {
  constexpr uint64_t kShard = 30000;
  const FormatOptions format{"nf4", true};
  const TemporaryDirectory whole;
  write(fixture("llama-tiny"), format, whole.path(), kShard);
  const auto expected = contents(whole.path());
  EXPECT_GT(expected.size(), 5u);
  EXPECT_TRUE(expected.contains("model.safetensors.index.json"));
  expect_as_loaded(fixture("llama-tiny"), format, whole.path());
  for (const uint64_t bytes : {1, 150000, 300000, 450000}) {
    SCOPED_TRACE(bytes);
    const TemporaryDirectory to;
    EXPECT_THROW(write(fixture("llama-tiny"), format, to.path(), kShard, until(bytes)), Error);
    EXPECT_FALSE(fs::exists(to.path() + "/config.json"));
    const Requantized rest = write(fixture("llama-tiny"), format, to.path(), kShard);
    if (bytes > 1000) {
      EXPECT_GT(rest.resumed_bytes, 0u);
    }
    EXPECT_TRUE(contents(to.path()) == expected);
  }
}

// What an interrupted run left is read back, not believed.
TEST(Requantize, DamagedPartsAreMadeAgain) {
  constexpr uint64_t kShard = 60000;
  const TemporaryDirectory whole;
  write(fixture("llama-tiny"), {"int8"}, whole.path(), kShard);
  const auto expected = contents(whole.path());
  const std::vector<std::function<void(const std::string&)>> damages = {
      [](const std::string& file) { fs::resize_file(file, fs::file_size(file) / 2); },
      [](const std::string& file) { fs::remove(file); },
      [](const std::string& file) {
        std::fstream f(file, std::ios::binary | std::ios::in | std::ios::out);
        f.seekp(-40, std::ios::end);
        f.put('\x55').put('\xaa').put('\x55');
      }};
  for (size_t i = 0; i < damages.size(); ++i) {
    SCOPED_TRACE(i);
    const TemporaryDirectory to;
    EXPECT_THROW(write(fixture("llama-tiny"), {"int8"}, to.path(), kShard, until(250000)), Error);
    int damaged = 0;
    for (const auto& [name, text] : contents(to.path())) {
      if (name.ends_with(".safetensors")) damages[i](to.path() + "/" + name), ++damaged;
    }
    ASSERT_GE(damaged, 1);
    std::ofstream(to.path() + "/.tandem-unfinished", std::ios::app) << "{\"piece\": \"cut";  // as a kill leaves it
    write(fixture("llama-tiny"), {"int8"}, to.path(), kShard);
    EXPECT_TRUE(contents(to.path()) == expected);
  }
}

TEST(Requantize, OtherWorkIsNotGoneOnWith) {
  const TemporaryDirectory to;
  EXPECT_THROW(write(fixture("llama-tiny"), {"int8"}, to.path(), kLarge, until(1)), Error);
  try {
    write(fixture("llama-tiny"), {"nf4"}, to.path());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("other work"));
  }
  write(fixture("llama-tiny"), {"int8"}, to.path());
  EXPECT_THROW(write(fixture("llama-tiny"), {"int8"}, to.path()), Error);  // it holds a checkpoint now
}

struct Refused { const char* model; FormatOptions format; const char* says; };

TEST(Requantize, WhatNoLibraryReadsIsRefused) {
  for (const Refused& c : {Refused{"llama-tiny", {"absmax"}, "no library"}, {"llama-tiny", {"int8_group:row,lm_head=absmax"}, "cannot"}, {"llama-tiny", {"nf4,mlp=int8"}, "mixes nf4"},
                           {"llama-tiny", {"embed_tokens=nf4"}, "no linear layer"}, {"gguf/llama-q4.gguf", {"keep"}, "name a format"}, {"gptq/llama-4bit-v1", {}, "name a format"},
                           {"gpt2-tiny", {"nf4"}, "[in, out]"}, {"gguf/llama-tiny.gguf", {"nf4"}, "rotary"}}) {
    const TemporaryDirectory to;
    try {
      write(fixture(c.model), c.format, to.path() + "/out");
      FAIL() << c.model << " " << c.format.format;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument) << error.what();
      EXPECT_THAT(error.what(), ::testing::HasSubstr(c.says));
      EXPECT_FALSE(fs::exists(to.path() + "/out"));
    }
  }
}

// The specification's own test vectors (xxhsum's sanity buffer is not there): known sums of short texts.
TEST(Checksum, IsXxh64) {
  const auto sum = [](std::string_view text) { return Checksum().add(std::as_bytes(std::span(text))).value(); };
  EXPECT_EQ(sum(""), 0xEF46DB3751D8E999u);
  EXPECT_EQ(sum("a"), 0xD24EC4F1A98C6E5Bu);
  EXPECT_EQ(sum("abc"), 0x44BC2CF5AD770999u);
  const std::string text = "Nobody inspects the spammish repetition";
  EXPECT_EQ(sum(text), 0xFBCEA83C8A378BF1u);
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    Checksum parts;
    parts.add(std::as_bytes(std::span(text.data(), cut))).add(std::as_bytes(std::span(text.data() + cut, text.size() - cut)));
    EXPECT_EQ(parts.value(), sum(text)) << cut;
  }
}

}  // namespace
}  // namespace tandem
