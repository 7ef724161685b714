// A model split over ranks answers as the whole one does: pipeline splits bit for bit, tensor and expert splits within tolerance.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/run_model.h"

namespace tandem::testing {
namespace {

struct Split { const char* model; int pp, ep, tp, vocab = 490; };

std::string fixture(const std::string& path) { return std::string(TANDEM_FIXTURES) + "/" + path; }

class Sharded : public ::testing::TestWithParam<Split> {};

TEST_P(Sharded, EqualsWhole) {
  const Split& split = GetParam();
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 29; ++i) prompt.push_back((i * 37 + 11) % split.vocab);
  const RunOptions whole{.chunk = 16};
  RunOptions parts = whole;
  parts.pp = split.pp;
  parts.ep = split.ep;
  parts.tp = split.tp;
  const std::string model = fixture(split.model);
  const std::vector<float> expected = logits_of(model, prompt, whole), found = logits_of(model, prompt, parts);
  ASSERT_EQ(expected.size(), found.size());
  float largest = 0, worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    worst = std::max(worst, std::abs(expected[i] - found[i]));
  }
  if (split.ep * split.tp == 1) {
    EXPECT_EQ(worst, 0) << "a pipeline split changes nothing";
  } else {
    EXPECT_LE(worst, 2e-5f * largest);
  }
  EXPECT_EQ(greedy_of(model, prompt, 24, whole), greedy_of(model, prompt, 24, parts));
}

// Every mesh of up to 8 ranks that the sizes allow: llama-tiny has 3 layers, 6 heads and 3 KV heads; mixtral-tiny 5 experts.
std::vector<Split> splits() {
  std::vector<Split> all;
  for (const char* model : {"llama-tiny", "llama-tied", "mixtral-tiny", "gguf/llama-q4.gguf"}) {
    for (int pp : {1, 2, 3}) {
      for (int ep : {1, 2, 4}) {
        for (int tp : {1, 2, 3, 4, 6}) {
          if (pp * ep * tp > 8 || pp * ep * tp == 1) continue;
          all.push_back({model, pp, ep, tp});
        }
      }
    }
  }
  for (const char* model : {"bnb/mixed", "bnb/fp4-double-bf16", "int8/llama-int8", "gptq/llama-4bit-v1", "gptq/llama-mixed-v2", "awq/llama-gemm", "fp8/llama-blocks", "fp8/llama-tensors", "fp8/llama-channels", "ct/llama-packed", "ct/llama-int8"}) {
    for (const auto& [pp, tp] : {std::pair{2, 1}, {1, 2}, {2, 2}}) all.push_back({model, pp, 1, tp});
  }
  return all;
}

// Degrees that the sizes do not allow are refused, naming the option; everything else must run.
bool allowed(const Split& split, std::string* why) {
  try {
    RunOptions options{.pp = split.pp, .tp = split.tp, .ep = split.ep};
    deploy(fixture(split.model), options, false);
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument) << error.what();
    *why = error.what();
    return false;
  }
}

TEST(ShardedList, EveryMeshUpToEightRanks) {
  int ran = 0;
  for (const Split& split : splits()) {
    std::string why;
    if (!allowed(split, &why)) {
      std::printf("%s pp%d ep%d tp%d: %s\n", split.model, split.pp, split.ep, split.tp, why.c_str());
      continue;
    }
    ++ran;
  }
  EXPECT_GE(ran, 20);
}

INSTANTIATE_TEST_SUITE_P(Meshes, Sharded,
                         ::testing::Values(Split{"llama-tiny", 2, 1, 1}, Split{"llama-tiny", 3, 1, 1}, Split{"llama-tiny", 1, 1, 3}, Split{"llama-tiny", 1, 1, 6},
                                           Split{"llama-tiny", 2, 1, 3}, Split{"llama-tied", 2, 1, 1}, Split{"mixtral-tiny", 2, 1, 1},
                                           Split{"mixtral-tiny", 1, 1, 2}, Split{"mixtral-tiny", 1, 2, 1}, Split{"mixtral-tiny", 2, 2, 1},
                                           Split{"mixtral-tiny", 1, 2, 2}, Split{"mixtral-tiny", 2, 2, 2}, Split{"mixtral-top3", 1, 4, 1},
                                           Split{"mistral-tiny", 2, 1, 1}, Split{"mistral-tiny", 1, 1, 3}, Split{"mistral-tiny", 2, 1, 3},
                                           Split{"qwen2-tiny", 3, 1, 1}, Split{"qwen2-tiny", 2, 1, 3},
                                           Split{"qwen3-tiny", 2, 1, 1}, Split{"qwen3-tiny", 2, 1, 2},
                                           Split{"qwen3-moe-tiny", 3, 1, 1}, Split{"qwen3-moe-tiny", 1, 2, 1}, Split{"qwen3-moe-tiny", 1, 2, 2}, Split{"qwen3-moe-tiny", 2, 1, 2},
                                           Split{"qwen2-moe-tiny", 2, 1, 1}, Split{"qwen2-moe-tiny", 1, 1, 2}, Split{"qwen2-moe-tiny", 1, 2, 1}, Split{"qwen2-moe-tiny", 2, 2, 1},
                                           Split{"phi3-tiny", 2, 1, 1}, Split{"phi3-tiny", 1, 1, 2}, Split{"phi3-tiny", 2, 1, 4},
                                           Split{"gemma2-tiny", 3, 1, 1}, Split{"gemma2-tiny", 2, 1, 2}, Split{"gemma2-tiny", 1, 1, 4},
                                           Split{"gpt2-tiny", 2, 1, 1}, Split{"gpt2-tiny", 1, 1, 3}, Split{"gpt2-tiny", 2, 1, 3},
                                           Split{"opt-tiny", 2, 1, 1}, Split{"opt-tiny", 2, 1, 3},
                                           Split{"opt-after", 2, 1, 1}, Split{"opt-after", 2, 1, 3},
                                           Split{"gguf/mixtral-tiny.gguf", 2, 1, 1}, Split{"bnb/mixed", 2, 1, 1, 96}, Split{"int8/llama-int8", 2, 1, 1, 96},
                                           Split{"int8/llama-int8", 1, 1, 2, 96}, Split{"gptq/llama-4bit-v1", 2, 1, 1, 96}, Split{"gptq/llama-4bit-v1", 1, 1, 2, 96},
                                           Split{"gptq/llama-mixed-v2", 1, 1, 2, 96}, Split{"awq/llama-gemm", 2, 1, 2, 96}, Split{"fp8/llama-tensors", 1, 1, 2, 96}, Split{"fp8/llama-blocks", 2, 1, 1, 96}, Split{"fp8/llama-channels", 1, 1, 2, 96},
                                           Split{"ct/llama-packed", 1, 1, 2, 96}, Split{"ct/llama-int8", 2, 1, 2, 96}),
                         [](const auto& info) {
                           std::string name = info.param.model;
                           for (char& c : name) {
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           }
                           return name + "_pp" + std::to_string(info.param.pp) + "_ep" + std::to_string(info.param.ep) + "_tp" + std::to_string(info.param.tp);
                         });

}  // namespace
}  // namespace tandem::testing
