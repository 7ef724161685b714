#include "runtime/model/checkpoint/tensor_names.h"

#include <gtest/gtest.h>

#include "runtime/model/checkpoint/file_tensors.h"

namespace tandem {
namespace {

TEST(TensorNames, BothDirections) {
  const struct {
    const char *model, *gguf, *huggingface;
    int64_t expert = -1;
  } cases[] = {
      {"llama", "token_embd.weight", "model.embed_tokens.weight"},
      {"llama", "output_norm.weight", "model.norm.weight"},
      {"llama", "output.weight", "lm_head.weight"},
      {"llama", "blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"},
      {"llama", "blk.31.attn_k.bias", "model.layers.31.self_attn.k_proj.bias"},
      {"llama", "blk.7.attn_output.weight", "model.layers.7.self_attn.o_proj.weight"},
      {"llama", "blk.7.attn_norm.weight", "model.layers.7.input_layernorm.weight"},
      {"llama", "blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"},
      {"llama", "blk.120.ffn_gate.weight", "model.layers.120.mlp.gate_proj.weight"},
      {"llama", "blk.2.ffn_up.weight", "model.layers.2.mlp.up_proj.weight"},
      {"llama", "blk.2.ffn_down.weight", "model.layers.2.mlp.down_proj.weight"},
      {"mixtral", "blk.2.ffn_gate_inp.weight", "model.layers.2.block_sparse_moe.gate.weight"},
      {"mixtral", "blk.2.ffn_gate_exps.weight", "model.layers.2.block_sparse_moe.experts.5.w1.weight", 5},
      {"mixtral", "blk.2.ffn_down_exps.weight", "model.layers.2.block_sparse_moe.experts.0.w2.weight", 0},
      {"mixtral", "blk.2.ffn_up_exps.weight", "model.layers.2.block_sparse_moe.experts.7.w3.weight", 7},
      {"mixtral", "blk.2.attn_v.weight", "model.layers.2.self_attn.v_proj.weight"},
      {"qwen3", "blk.2.attn_q_norm.weight", "model.layers.2.self_attn.q_norm.weight"},
      {"qwen3_moe", "blk.2.ffn_up_exps.weight", "model.layers.2.mlp.experts.3.up_proj.weight", 3},
      {"phi3", "blk.2.ffn_up.weight", "model.layers.2.mlp.gate_up_proj.weight"},
      {"phi3", "blk.2.attn_qkv.weight", "model.layers.2.self_attn.qkv_proj.weight"},
      {"gemma2", "blk.2.ffn_norm.weight", "model.layers.2.pre_feedforward_layernorm.weight"},
      {"gemma2", "blk.2.post_attention_norm.weight", "model.layers.2.post_attention_layernorm.weight"},
      {"gpt2", "blk.2.attn_qkv.bias", "transformer.h.2.attn.c_attn.bias"},
      {"gpt2", "position_embd.weight", "transformer.wpe.weight"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.gguf);
    EXPECT_EQ(huggingface_name(c.model, c.gguf, std::max<int64_t>(c.expert, 0)), c.huggingface);
    const auto names = gguf_names(c.model, c.huggingface);
    ASSERT_FALSE(names.empty());
    EXPECT_EQ(names[0].name, c.gguf);
    EXPECT_EQ(names[0].expert, c.expert);
  }
}

TEST(TensorNames, ExpertsOneByOne) {
  const auto names = gguf_names("mixtral", "model.layers.2.block_sparse_moe.experts.5.w3.weight");
  ASSERT_EQ(names.size(), 2u);
  EXPECT_EQ(names[1].name, "blk.2.ffn_up.5.weight");
  EXPECT_EQ(names[1].expert, -1);
  EXPECT_EQ(huggingface_name("mixtral", "blk.2.ffn_down.5.weight"), "model.layers.2.block_sparse_moe.experts.5.w2.weight");
}

TEST(TensorNames, UnknownNamesAreLeftAlone) {
  for (const char* name :
       {"", ".weight", "blk..attn_q.weight", "blk.-1.attn_q.weight", "blk.01.attn_q.weight", "blk.0.attn_q.weight.absmax",
        "blk.99999999999999999999.attn_q.weight", "blk.0.attn_q", "rope_freqs.weight", "blk.0.attn_qq.weight"}) {
    EXPECT_EQ(huggingface_name("llama", name), std::nullopt) << name;
    EXPECT_TRUE(gguf_names("llama", name).empty()) << name;
  }
  EXPECT_EQ(huggingface_name("gpt2", "blk.0.attn_q.weight"), std::nullopt);
}

TEST(TensorNames, LocatesUnderEitherName) {
  const FileTensors gguf({}, {{.name = "blk.0.attn_q.weight"}, {.name = "blk.0.ffn_gate_exps.weight", .shape = {5, 4, 2}}});
  EXPECT_EQ(locate(gguf, "mixtral", "blk.0.attn_q.weight").tensor, &gguf.tensors()[0]);
  EXPECT_EQ(locate(gguf, "mixtral", "model.layers.0.self_attn.q_proj.weight").tensor, &gguf.tensors()[0]);
  const Located expert = locate(gguf, "mixtral", "model.layers.0.block_sparse_moe.experts.4.w1.weight");
  EXPECT_EQ(expert.tensor, &gguf.tensors()[1]);
  EXPECT_EQ(expert.expert, 4);
  EXPECT_EQ(locate(gguf, "mixtral", "model.layers.0.block_sparse_moe.experts.5.w1.weight").tensor, nullptr);
  EXPECT_EQ(locate(gguf, "mixtral", "model.layers.0.block_sparse_moe.experts.4.w3.weight").tensor, nullptr);
  const FileTensors huggingface({}, {{.name = "model.layers.0.self_attn.q_proj.weight"}});
  EXPECT_EQ(locate(huggingface, "llama", "blk.0.attn_q.weight").tensor, &huggingface.tensors()[0]);
}

}  // namespace
}  // namespace tandem
