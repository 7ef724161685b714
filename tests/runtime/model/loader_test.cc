// Matrices that are converted in pieces and in slices have the bytes of the whole converted at once.
#include "runtime/model/loader.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tests/runtime/model/checkpoint/files.h"

namespace tandem {
namespace {

constexpr int64_t kHidden = 512, kFfn = 2377;  // a prime, and more elements than are converted at once
constexpr unsigned kSeed = 5;

// A llama of one layer, its weights random.
std::string write_model(const testing::TemporaryDirectory& to) {
  const std::string hidden = std::to_string(kHidden), ffn = std::to_string(kFfn);
  to.write("config.json", R"({"model_type": "llama", "hidden_size": )" + hidden + R"(, "intermediate_size": )" + ffn +
                              R"(, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 3,
                              "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "tie_word_embeddings": true})");
  std::string header;
  uint64_t bytes = 0;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    uint64_t size = 2;
    std::string text;
    for (const int64_t n : shape) size *= static_cast<uint64_t>(n), text += (text.empty() ? "[" : ",") + std::to_string(n);
    header += (header.empty() ? "{" : ",") + testing::entry(name, "BF16", text + "]", bytes, bytes + size);
    bytes += size;
  };
  add("model.embed_tokens.weight", {3, kHidden});
  add("model.norm.weight", {kHidden});
  const std::string layer = "model.layers.0.";
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) add(layer + norm + ".weight", {kHidden});
  for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) add(layer + "self_attn." + name + ".weight", {kHidden, kHidden});
  for (const char* name : {"gate_proj", "up_proj"}) add(layer + "mlp." + name + ".weight", {kFfn, kHidden});
  add(layer + "mlp.down_proj.weight", {kHidden, kFfn});
  std::string file = testing::safetensors(header + "}", 0);
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  for (uint64_t i = 0; i < bytes / 2; ++i) file += testing::little(float_to_bf16(normal(random)));
  to.write("model.safetensors", file);
  return to.path();
}

std::vector<std::vector<std::byte>> quantized(const Format& format, const std::vector<float>& values, int64_t rows, int64_t cols) {
  std::vector<std::vector<std::byte>> parts;
  std::vector<std::byte*> out;
  for (const Component& component : format.components(rows, cols)) parts.emplace_back(component.bytes);
  for (auto& part : parts) out.push_back(part.data());
  format.quantize(values.data(), rows, cols, out);
  return parts;
}

TEST(Loader, PiecesAndSlicesHaveTheBytesOfTheWhole) {
  const testing::TemporaryDirectory to;
  const std::string path = write_model(to);
  const Blueprint plain = make_blueprint(path, {}, {});
  for (const std::string name : {"nf4", "nf4_dq", "fp4:128", "int8", "fp16", "int4", "int8_group:row", "fp8", "fp8_tensor", "fp8:128", "absmax", "absmax_row", "minmax"}) {
    for (const std::string module : {"gate_proj", "down_proj"}) {
      if (module == "down_proj" && (name.starts_with("int4") || name.starts_with("int8_group"))) continue;  // rows of a prime length
      const Blueprint blueprint = make_blueprint(path, {module + "=" + name}, {});
      const WeightId id = blueprint.model->weights.find("model.layers.0.mlp." + module + ".weight");
      const WeightRow& row = blueprint.model->weights[id];
      const int64_t rows = row.rows.size(), cols = row.cols.size();
      const LoadedSlice source = load_slice(plain, id, {0, rows, 0, cols});
      std::vector<float> values(static_cast<size_t>(rows * cols));
      source.view.format->dequantize(source.view, 0, rows, values.data());
      const Format& format = *blueprint.formats.held[static_cast<size_t>(id)];
      const auto whole = quantized(format, values, rows, cols);
      const Grain grain = format.grain(rows, cols);
      const int64_t row_cut = rows / 3 / grain.rows * grain.rows, col_cut = cols / 2 / grain.cols * grain.cols;
      for (const Rectangle& part : {Rectangle{0, rows, 0, cols}, {row_cut, rows, 0, cols}, {0, row_cut, 0, cols}, {0, rows, col_cut, cols}}) {
        if (part.rows() == 0 || part.cols() == 0) continue;
        SCOPED_TRACE(name + " " + module + " rows " + std::to_string(part.row_begin) + " columns " + std::to_string(part.col_begin));
        const LoadedSlice slice = load_slice(blueprint, id, part);
        const auto ranges = format.ranges(rows, cols, part);
        for (size_t i = 0; i < ranges.size(); ++i) {
          const std::byte* at = slice.view.data[i];
          for (const ByteRange& range : ranges[i]) {
            ASSERT_EQ(std::memcmp(at, whole[i].data() + range.begin, range.size()), 0) << "component " << i;
            at += range.size();
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tandem
