// Whole tiny models against transformers' float32 run: logits within 1e-4 of the largest, greedy ids equal.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/npy.h"
#include "tests/support/run_model.h"

namespace tandem::testing {
namespace {

struct Case { std::string model, expected, format = "keep"; bool double_quant = false; int32_t context = 128; };

std::string fixture(const std::string& path) { return std::string(TANDEM_FIXTURES) + "/" + path; }

nlohmann::json expected_of(const Case& c) {
  std::ifstream file(fixture(c.expected + "/expected.json"));
  return nlohmann::json::parse(file);
}

class Checkpoint : public ::testing::TestWithParam<Case> {};

TEST_P(Checkpoint, LogitsEqualTransformers) {
  const nlohmann::json expected = expected_of(GetParam());
  const Npy reference = read_npy(fixture(GetParam().expected + "/expected_logits.npy"));
  float largest = 0;
  for (float value : reference.values) largest = std::max(largest, std::abs(value));
  for (int32_t chunk : {64, 7, 1}) {
    RunOptions options;
    options.chunk = chunk;
    options.context = GetParam().context;
    options.format = GetParam().format;
    options.double_quant = GetParam().double_quant;
    const std::vector<float> logits = logits_of(fixture(GetParam().model), expected["prompt_ids"], options);
    ASSERT_EQ(logits.size(), reference.values.size());
    float worst = 0;
    for (size_t i = 0; i < logits.size(); ++i) worst = std::max(worst, std::abs(logits[i] - reference.values[i]));
    EXPECT_LE(worst, 1e-4f * largest) << "chunk " << chunk;
  }
}

TEST_P(Checkpoint, GreedyIdsEqualTransformers) {
  const nlohmann::json expected = expected_of(GetParam());
  const std::vector<int32_t> ids = expected["greedy_ids"];
  RunOptions options;
  options.context = GetParam().context;
  options.format = GetParam().format;
  options.double_quant = GetParam().double_quant;
  EXPECT_EQ(greedy_of(fixture(GetParam().model), expected["prompt_ids"], static_cast<int32_t>(ids.size()), options), ids);
}

// Dynamic scaling changes with the length of each pass, so that a cached position would no longer be right: refused, not guessed.
TEST(Rope, DynamicIsRefusedPastTheOriginalContext) {
  try {
    deploy(fixture("rope/dynamic"), {}, false);
    FAIL() << "was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    EXPECT_NE(std::string(error.what()).find("--context: is 128"), std::string::npos) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, Checkpoint,
                         ::testing::Values(Case{"llama-tiny", "llama-tiny"}, Case{"llama-tied", "llama-tied"}, Case{"mixtral-tiny", "mixtral-tiny"},
                                           Case{"mixtral-top3", "mixtral-top3"}, Case{"rope/default", "rope/default"}, Case{"rope/linear", "rope/linear"},
                                           Case{"rope/yarn", "rope/yarn"}, Case{"rope/llama3", "rope/llama3"},
                                           Case{"mistral-tiny", "mistral-tiny"},
                                           Case{"qwen2-tiny", "qwen2-tiny"},
                                           Case{"qwen3-tiny", "qwen3-tiny"},
                                           Case{"qwen3-moe-tiny", "qwen3-moe-tiny"},
                                           Case{"qwen2-moe-tiny", "qwen2-moe-tiny"},
                                           // A sequence that may grow past the original 48 tokens takes the other rope factors: phi3-long.
                                           Case{"phi3-tiny", "phi3-tiny", "keep", false, 48}, Case{"phi3-tiny", "phi3-long"},
                                           Case{"gemma2-tiny", "gemma2-tiny"},
                                           Case{"gpt2-tiny", "gpt2-tiny"},
                                           Case{"opt-tiny", "opt-tiny"}, Case{"opt-after", "opt-after"},
                                           Case{"gguf/llama-tiny.gguf", "gguf/llama-tiny"}, Case{"gguf/llama-tiny-split-00001-of-00002.gguf", "gguf/llama-tiny"},
                                           Case{"gguf/mixtral-tiny.gguf", "gguf/mixtral-tiny"}, Case{"gguf/llama-q4.gguf", "gguf/llama-q4"},
                                           Case{"gguf/llama-k.gguf", "gguf/llama-k"},
                                           Case{"gguf/qwen2-tiny.gguf", "gguf/qwen2-tiny"}, Case{"gguf/qwen3-tiny.gguf", "qwen3-tiny"},
                                           Case{"gguf/phi3-tiny.gguf", "phi3-tiny", "keep", false, 48},
                                           Case{"gguf/gemma2-tiny.gguf", "gguf/gemma2-tiny"}, Case{"gguf/gpt2-tiny.gguf", "gpt2-tiny"},
                                           // Quantized before they were saved.
                                           Case{"nf4/llama-tiny-nf4", "nf4/llama-tiny-nf4"}, Case{"nf4/llama-tiny-nf4-double", "nf4/llama-tiny-nf4-double"},
                                           Case{"nf4/mixtral-tiny-nf4", "nf4/mixtral-tiny-nf4"}, Case{"bnb/fp4-double-bf16", "bnb/fp4-double-bf16"},
                                           Case{"bnb/mixed", "bnb/mixed"}, Case{"int8/llama-int8", "int8/llama-int8"},
                                           Case{"gptq/llama-4bit-v1", "gptq/llama-4bit-v1"}, Case{"gptq/llama-mixed-v2", "gptq/llama-mixed-v2"},
                                           Case{"awq/llama-gemm", "awq/llama-gemm"},
                                           Case{"fp8/llama-blocks", "fp8/llama-blocks"}, Case{"fp8/llama-tensors", "fp8/llama-tensors"},
                                           Case{"fp8/llama-channels", "fp8/llama-channels"}, Case{"ct/llama-packed", "ct/llama-packed"},
                                           Case{"ct/llama-int8", "ct/llama-int8"},
                                           // Quantized while loading, against what transformers and bitsandbytes make of the same weights.
                                           Case{"llama-tiny", "nf4/llama-tiny-nf4", "nf4"}, Case{"llama-tiny", "nf4/llama-tiny-nf4-double", "nf4", true},
                                           Case{"mixtral-tiny", "nf4/mixtral-tiny-nf4", "nf4"}, Case{"llama-tiny", "int8/llama-tiny-on-load", "int8"},
                                           Case{"llama-tiny", "fp8/llama-tiny-on-load", "fp8"}, Case{"llama-tiny", "absmax/llama-tiny-absmax", "absmax"},
                                           Case{"llama-tiny", "absmax/llama-tiny-zeropoint", "zeropoint"}),
                         [](const auto& info) {
                           const bool same = info.param.model.find(info.param.expected) != std::string::npos || info.param.format != "keep" || info.param.model.starts_with("gguf");
                           std::string name = (same ? info.param.model : info.param.expected) + (info.param.format == "keep" ? "" : "_" + info.param.format) + (info.param.double_quant ? "_double" : "");
                           for (char& c : name) {
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace tandem::testing
