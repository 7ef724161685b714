// inspect: published footprints, the tree that transformers prints, tensors as numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/model/models/model.h"
#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json inspect(const std::string& arguments) {
  const Ran ran = run_tandem("inspect " + arguments + " --json");
  EXPECT_EQ(ran.code, 0) << ran.err;
  return json::parse(ran.out, nullptr, false);
}

// bitsandbytes' published number for this model: 5,591.5 MB.
TEST(Inspect, FootprintOfLlama31In4Bits) {
  const json model = inspect("preset:llama-3.1-8b --format nf4");
  EXPECT_EQ(model["parameters"], 8030261248u);
  EXPECT_EQ(model["footprint_bytes"], 5591539968u);
  uint64_t footprint = 0, device = 0;
  for (const json& module : model["modules"]) {
    for (const char* key : {"name", "class", "shape", "dtype", "format", "footprint_bytes", "device_bytes"}) EXPECT_TRUE(module.contains(key)) << module;
    footprint += module["footprint_bytes"].get<uint64_t>();
    device += module["device_bytes"].get<uint64_t>();
  }
  EXPECT_EQ(footprint, model["footprint_bytes"]);
  EXPECT_EQ(device, model["device_bytes"]);
  EXPECT_GT(device, footprint);
}

// Double quantization changes what a device holds, not the footprint.
TEST(Inspect, DoubleQuantizationKeepsTheFootprint) {
  const json once = inspect("preset:llama-3.1-8b --format nf4"), twice = inspect("preset:llama-3.1-8b --format nf4 --double-quant");
  EXPECT_EQ(once["footprint_bytes"], twice["footprint_bytes"]);
  EXPECT_LT(twice["device_bytes"].get<uint64_t>(), once["device_bytes"].get<uint64_t>());
}

// 4,943.258 MB in float32; the tied head counts once.
TEST(Inspect, FootprintOfLlama32InFloat32) {
  TemporaryFolder folder;
  json config = preset_config("llama-3.2-1b");
  config["torch_dtype"] = "float32";
  std::ofstream(folder / "config.json") << config.dump();
  const json model = inspect((folder / "config.json"));
  EXPECT_EQ(model["parameters"], 1235814400u);
  EXPECT_EQ(model["footprint_bytes"], 1235814400u * uint64_t{4} + 128);
}

TEST(Inspect, TreeAsTransformersPrintsIt) {
  const Ran ran = run_tandem("inspect preset:smollm2-135m --format nf4");
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, testing::StartsWith(R"(LlamaForCausalLM(
  (model): LlamaModel(
    (embed_tokens): Embedding(49152, 576)
    (layers): ModuleList(
      (0-29): 30 x LlamaDecoderLayer(
        (self_attn): LlamaAttention(
          (q_proj): Linear4bit(in_features=576, out_features=576, bias=False)
          (k_proj): Linear4bit(in_features=576, out_features=192, bias=False)
          (v_proj): Linear4bit(in_features=576, out_features=192, bias=False)
          (o_proj): Linear4bit(in_features=576, out_features=576, bias=False)
        )
        (mlp): LlamaMLP(
          (gate_proj): Linear4bit(in_features=576, out_features=1536, bias=False)
          (up_proj): Linear4bit(in_features=576, out_features=1536, bias=False)
          (down_proj): Linear4bit(in_features=1536, out_features=576, bias=False)
          (act_fn): SiLU()
        )
        (input_layernorm): LlamaRMSNorm((576,), eps=1e-05)
        (post_attention_layernorm): LlamaRMSNorm((576,), eps=1e-05)
      )
    )
    (norm): LlamaRMSNorm((576,), eps=1e-05)
    (rotary_emb): LlamaRotaryEmbedding()
  )
  (lm_head): Linear(in_features=576, out_features=49152, bias=False)
)
)"));
}

TEST(Inspect, TreeOfAMixtureOfExperts) {
  const Ran ran = run_tandem("inspect preset:mixtral-8x7b");
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr(R"(
        (block_sparse_moe): MixtralSparseMoeBlock(
          (gate): Linear(in_features=4096, out_features=8, bias=False)
          (experts): ModuleList(
            (0-7): 8 x MixtralBlockSparseTop2MLP(
              (w1): Linear(in_features=4096, out_features=14336, bias=False)
              (w2): Linear(in_features=14336, out_features=4096, bias=False)
              (w3): Linear(in_features=4096, out_features=14336, bias=False)
              (act_fn): SiLU()
            )
          )
        )
)"));
  EXPECT_EQ(inspect("preset:mistralai/Mixtral-8x7B-Instruct-v0.1")["parameters"], 46702792704u);
}

TEST(Inspect, GgufTensorsAnswerToBothNames) {
  const TemporaryFolder folder;
  const std::string gguf = TANDEM_FIXTURES "/gguf/llama-tiny.gguf", directory = TANDEM_FIXTURES "/llama-tiny";
  struct Pair { const char* gguf; const char* huggingface; };
  for (const Pair& pair : {Pair{"blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight"}, Pair{"blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight"},
                           Pair{"output_norm.weight", "model.norm.weight"}, Pair{"token_embd.weight", "model.embed_tokens.weight"}}) {
    const std::string a = folder / "a.npy", b = folder / "b.npy", c = folder / "c.npy";
    for (const auto& [model, name, file] : {std::tuple{gguf, pair.gguf, a}, {gguf, pair.huggingface, b}, {directory, pair.huggingface, c}}) {
      const Ran ran = run_tandem("inspect " + model + " --tensor " + name + " --dequantize -o " + file);
      ASSERT_EQ(ran.code, 0) << ran.err;
    }
    EXPECT_EQ(read_whole(a), read_whole(b)) << pair.gguf;
    EXPECT_EQ(read_whole(a).substr(0, 128), read_whole(c).substr(0, 128)) << pair.gguf;  // the same shape
  }
  const Ran unknown = run_tandem("inspect " + gguf + " --tensor blk.99.attn_q.weight --dequantize -o " + (folder / "x.npy"));
  EXPECT_EQ(unknown.code, 2);
  EXPECT_EQ(error_lines(unknown), 1);
  EXPECT_FALSE(std::filesystem::exists(folder / "x.npy"));
}

TEST(Inspect, ATensorThroughAFormat) {
  const TemporaryFolder folder;
  const std::string model = TANDEM_FIXTURES "/llama-tiny --tensor model.layers.0.mlp.down_proj.weight --dequantize -o ";
  ASSERT_EQ(run_tandem("inspect " + model + (folder / "plain.npy")).code, 0);
  ASSERT_EQ(run_tandem("inspect " + model + (folder / "nf4.npy") + " --format nf4").code, 0);
  EXPECT_NE(read_whole(folder / "plain.npy"), read_whole(folder / "nf4.npy"));
  EXPECT_EQ(read_whole(folder / "plain.npy").size(), read_whole(folder / "nf4.npy").size());
}

}  // namespace
}  // namespace tandem
