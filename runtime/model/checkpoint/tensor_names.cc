#include "runtime/model/checkpoint/tensor_names.h"

#include <charconv>

namespace tandem {
namespace {

// '#' stands for the layer, '@' for the expert. The first row that fits wins, so what only some models have comes first.
struct Row {
  std::string_view models;  // " a b ", or "" for all that are not named gpt2
  std::string_view gguf, huggingface;
};
constexpr Row kRows[] = {
    {" gpt2 ", "token_embd", "transformer.wte"},
    {" gpt2 ", "position_embd", "transformer.wpe"},
    {" gpt2 ", "output_norm", "transformer.ln_f"},
    {" gpt2 ", "output", "lm_head"},
    {" gpt2 ", "blk.#.attn_norm", "transformer.h.#.ln_1"},
    {" gpt2 ", "blk.#.attn_qkv", "transformer.h.#.attn.c_attn"},
    {" gpt2 ", "blk.#.attn_output", "transformer.h.#.attn.c_proj"},
    {" gpt2 ", "blk.#.ffn_norm", "transformer.h.#.ln_2"},
    {" gpt2 ", "blk.#.ffn_up", "transformer.h.#.mlp.c_fc"},
    {" gpt2 ", "blk.#.ffn_down", "transformer.h.#.mlp.c_proj"},
    {" gemma2 ", "blk.#.post_attention_norm", "model.layers.#.post_attention_layernorm"},
    {" gemma2 ", "blk.#.ffn_norm", "model.layers.#.pre_feedforward_layernorm"},
    {" gemma2 ", "blk.#.post_ffw_norm", "model.layers.#.post_feedforward_layernorm"},
    {" phi3 ", "blk.#.ffn_up", "model.layers.#.mlp.gate_up_proj"},
    {" mixtral ", "blk.#.ffn_gate_inp", "model.layers.#.block_sparse_moe.gate"},
    {" mixtral ", "blk.#.ffn_gate_exps", "model.layers.#.block_sparse_moe.experts.@.w1"},
    {" mixtral ", "blk.#.ffn_down_exps", "model.layers.#.block_sparse_moe.experts.@.w2"},
    {" mixtral ", "blk.#.ffn_up_exps", "model.layers.#.block_sparse_moe.experts.@.w3"},
    {" mixtral ", "blk.#.ffn_gate.@", "model.layers.#.block_sparse_moe.experts.@.w1"},  // before experts were stacked
    {" mixtral ", "blk.#.ffn_down.@", "model.layers.#.block_sparse_moe.experts.@.w2"},
    {" mixtral ", "blk.#.ffn_up.@", "model.layers.#.block_sparse_moe.experts.@.w3"},
    {" qwen3_moe ", "blk.#.ffn_gate_inp", "model.layers.#.mlp.gate"},
    {" qwen3_moe ", "blk.#.ffn_gate_exps", "model.layers.#.mlp.experts.@.gate_proj"},
    {" qwen3_moe ", "blk.#.ffn_down_exps", "model.layers.#.mlp.experts.@.down_proj"},
    {" qwen3_moe ", "blk.#.ffn_up_exps", "model.layers.#.mlp.experts.@.up_proj"},
    {"", "token_embd", "model.embed_tokens"},
    {"", "output_norm", "model.norm"},
    {"", "output", "lm_head"},
    {"", "blk.#.attn_norm", "model.layers.#.input_layernorm"},
    {"", "blk.#.attn_q", "model.layers.#.self_attn.q_proj"},
    {"", "blk.#.attn_k", "model.layers.#.self_attn.k_proj"},
    {"", "blk.#.attn_v", "model.layers.#.self_attn.v_proj"},
    {"", "blk.#.attn_qkv", "model.layers.#.self_attn.qkv_proj"},
    {"", "blk.#.attn_output", "model.layers.#.self_attn.o_proj"},
    {"", "blk.#.attn_q_norm", "model.layers.#.self_attn.q_norm"},
    {"", "blk.#.attn_k_norm", "model.layers.#.self_attn.k_norm"},
    {"", "blk.#.ffn_norm", "model.layers.#.post_attention_layernorm"},
    {"", "blk.#.ffn_gate", "model.layers.#.mlp.gate_proj"},
    {"", "blk.#.ffn_up", "model.layers.#.mlp.up_proj"},
    {"", "blk.#.ffn_down", "model.layers.#.mlp.down_proj"},
};

bool applies(const Row& row, std::string_view model_type) {
  if (row.models.empty()) return model_type != "gpt2";
  return row.models.find(" " + std::string(model_type) + " ") != std::string_view::npos;
}

struct Numbers {
  int64_t layer = -1, expert = -1;
};

bool take_number(std::string_view& text, int64_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  const auto digits = static_cast<size_t>(end - text.data());
  if (error != std::errc() || digits > 6 || (digits > 1 && text.front() == '0') || out < 0) return false;
  text.remove_prefix(digits);
  return true;
}

std::optional<Numbers> match(std::string_view pattern, std::string_view text) {
  Numbers numbers;
  for (const char c : pattern) {
    if (c == '#' || c == '@') {
      if (!take_number(text, c == '#' ? numbers.layer : numbers.expert)) return std::nullopt;
    } else {
      if (text.empty() || text.front() != c) return std::nullopt;
      text.remove_prefix(1);
    }
  }
  return text.empty() ? std::optional(numbers) : std::nullopt;
}

std::string fill(std::string_view pattern, Numbers numbers, std::string_view suffix) {
  std::string out;
  for (const char c : pattern) {
    if (c == '#' || c == '@') {
      out += std::to_string(c == '#' ? numbers.layer : numbers.expert);
    } else {
      out += c;
    }
  }
  return out.append(suffix);
}

// ".weight" or ".bias" of a name; nothing for other names.
std::optional<std::string_view> suffix(std::string_view name) {
  for (const std::string_view end : {".weight", ".bias"}) {
    if (name.ends_with(end)) return end;
  }
  return std::nullopt;
}

}  // namespace

std::vector<GgufName> gguf_names(std::string_view model_type, std::string_view huggingface_name) {
  std::vector<GgufName> out;
  const auto end = suffix(huggingface_name);
  if (!end) return out;
  const std::string_view stem = huggingface_name.substr(0, huggingface_name.size() - end->size());
  for (const Row& row : kRows) {
    if (!applies(row, model_type)) continue;
    const auto numbers = match(row.huggingface, stem);
    if (!numbers) continue;
    const bool stacked = numbers->expert >= 0 && row.gguf.find('@') == std::string_view::npos;
    out.push_back({fill(row.gguf, *numbers, *end), stacked ? numbers->expert : -1});
    if (numbers->expert < 0) break;
  }
  return out;
}

std::optional<std::string> huggingface_name(std::string_view model_type, std::string_view gguf_name, int64_t expert) {
  const auto end = suffix(gguf_name);
  if (!end) return std::nullopt;
  const std::string_view stem = gguf_name.substr(0, gguf_name.size() - end->size());
  for (const Row& row : kRows) {
    if (!applies(row, model_type)) continue;
    auto numbers = match(row.gguf, stem);
    if (!numbers) continue;
    if (numbers->expert < 0) numbers->expert = expert;
    return fill(row.huggingface, *numbers, *end);
  }
  return std::nullopt;
}

Located locate(const TensorSource& source, std::string_view model_type, std::string_view name) {
  if (const TensorInfo* exact = source.find(name)) return {exact};
  for (const GgufName& candidate : gguf_names(model_type, name)) {
    const TensorInfo* tensor = source.find(candidate.name);
    if (!tensor) continue;
    if (candidate.expert >= 0 && (tensor->shape.size() != 3 || candidate.expert >= tensor->shape[0])) return {};
    return {tensor, candidate.expert};
  }
  if (const auto other = huggingface_name(model_type, name)) {
    if (const TensorInfo* tensor = source.find(*other)) return {tensor};
  }
  return {};
}

}  // namespace tandem
