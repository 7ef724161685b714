// Checkpoints that were quantized before they were saved: what is found in them, and what is refused, by file, tensor and reason.
#include "runtime/model/checkpoint/quantized.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "kernels/base/error.h"
#include "runtime/model/blueprint.h"
#include "tests/kernels/formats/fixture.h"
#include "tests/runtime/model/checkpoint/files.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using nlohmann::json;
using testing::TemporaryDirectory;
using Tensors = std::map<std::string, test::Tensor>;

std::string fixture(const std::string& name) { return std::string(TANDEM_FIXTURES) + "/" + name; }

// A fixture, to be changed and written again.
struct Folder {
  explicit Folder(const std::string& name) : tensors(test::read_safetensors(fixture(name) + "/model.safetensors")) {
    std::ifstream file(fixture(name) + "/config.json");
    config = json::parse(file);
  }
  json& quantization() { return config["quantization_config"]; }
  std::string write(const TemporaryDirectory& to) const {
    json header = json::object();
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const size_t begin = data.size();
      data.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
      header[name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
    }
    const std::string text = header.dump();
    to.write("model.safetensors", testing::little<uint64_t>(text.size()) + text + data);
    to.write("config.json", config.dump());
    return to.path();
  }
  Tensors tensors;
  json config;
};

struct Wrong {
  const char* name;
  const char* model;
  std::function<void(Folder&)> change;
  std::vector<std::string> says;  // of the one line
};

std::function<void(Folder&)> drop(const std::string& tensor) {
  return [=](Folder& f) { ASSERT_EQ(f.tensors.erase(tensor), 1u); };
}
std::function<void(Folder&)> retype(const std::string& tensor, const std::string& dtype, const std::vector<int64_t>& shape, size_t bytes) {
  return [=](Folder& f) {
    test::Tensor& t = f.tensors.at(tensor);
    t.dtype = dtype, t.shape = shape;
    t.bytes.resize(bytes);
  };
}
std::function<void(Folder&)> config(const std::string& key, const json& value) {
  return [=](Folder& f) { f.quantization()[key] = value; };
}
std::function<void(Folder&)> state(const std::string& tensor, const std::string& key, const json& value) {
  return [=](Folder& f) {
    test::Tensor& t = f.tensors.at(tensor);
    json description = json::parse(std::string(reinterpret_cast<const char*>(t.bytes.data()), t.bytes.size()));
    description[key] = value;
    const std::string text = description.dump();
    const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
    t.bytes.assign(bytes.begin(), bytes.end());
    t.shape = {static_cast<int64_t>(text.size())};
  };
}

const std::string kDown = "model.layers.0.mlp.down_proj", kDownState = kDown + ".weight.quant_state.bitsandbytes__fp4";

const std::vector<Wrong>& wrongs() {
  static const std::vector<Wrong> list = {
      {"Method", "bnb/mixed", config("quant_method", "magic"), {"config.json: quantization_config.quant_method", "magic", "bitsandbytes"}},
      {"MethodIsNumber", "bnb/mixed", config("quant_method", 4), {"quant_method"}},
      {"NeitherFourNorEight", "bnb/mixed", [](Folder& f) { f.quantization()["load_in_4bit"] = false; }, {"load_in_4bit"}},
      {"QuantType", "bnb/mixed", config("bnb_4bit_quant_type", "int4"), {"bnb_4bit_quant_type", "int4"}},
      {"FourBitNoAbsmax", "bnb/fp4-double-bf16", drop(kDown + ".weight.absmax"), {"model.safetensors", kDown + ".weight", ".absmax"}},
      {"FourBitNoMap", "bnb/fp4-double-bf16", drop(kDown + ".weight.quant_map"), {kDown + ".weight.quant_map"}},
      {"FourBitNoNested", "bnb/fp4-double-bf16", drop(kDown + ".weight.nested_absmax"), {kDown + ".weight.nested_absmax"}},
      {"FourBitNoCodes", "bnb/fp4-double-bf16", drop(kDown + ".weight"), {kDown + ".weight"}},
      {"FourBitNoState", "bnb/mixed", drop("model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4"), {"model.layers.0.self_attn.q_proj.weight", "has shape"}},
      {"FourBitAbsmaxShort", "bnb/fp4-double-bf16", retype(kDown + ".weight.absmax", "U8", {95}, 95), {kDown + ".weight.absmax", "[95]", "[96]"}},
      {"FourBitAbsmaxType", "bnb/fp4-double-bf16", retype(kDown + ".weight.absmax", "F32", {96}, 384), {kDown + ".weight.absmax", "fp32", "u8"}},
      {"FourBitMapShort", "bnb/fp4-double-bf16", retype(kDown + ".weight.quant_map", "F32", {15}, 60), {kDown + ".weight.quant_map", "[16]"}},
      {"FourBitCodesShort", "bnb/fp4-double-bf16", retype(kDown + ".weight", "BF16", {1535, 1}, 3070), {kDown + ".weight", "3070", "3072"}},
      {"FourBitStateNoJson", "bnb/fp4-double-bf16", retype(kDownState, "U8", {3}, 3), {kDownState, "JSON"}},
      {"FourBitStateType", "bnb/fp4-double-bf16", state(kDownState, "quant_type", "fp5"), {kDownState, "quant_type", "fp5"}},
      {"FourBitStateOtherType", "bnb/fp4-double-bf16", state(kDownState, "quant_type", "nf4"), {kDownState, "quant_type"}},
      {"FourBitBlocksize", "bnb/fp4-double-bf16", state(kDownState, "blocksize", 96), {kDownState, "blocksize", "96", "power of two"}},
      {"FourBitBlocksizeHuge", "bnb/fp4-double-bf16", state(kDownState, "blocksize", 1 << 30), {kDownState, "blocksize"}},
      {"FourBitNestedBlocksize", "bnb/fp4-double-bf16", state(kDownState, "nested_blocksize", 128), {kDownState, "nested_blocksize", "256"}},
      {"FourBitShapeHuge", "bnb/fp4-double-bf16", state(kDownState, "shape", json{int64_t{1} << 39, int64_t{1} << 39}), {kDown, "shape"}},
      {"FourBitShapeNegative", "bnb/fp4-double-bf16", state(kDownState, "shape", json{-1, 96}), {kDownState, "shape"}},
      {"FourBitShapeFlat", "bnb/fp4-double-bf16", state(kDownState, "shape", json{6144}), {kDownState, "shape"}},
      {"FourBitShapeOther", "bnb/fp4-double-bf16", state(kDownState, "shape", json{96, 64}), {kDown + ".weight", "[96, 64]", "[64, 96]"}},
      {"FourBitNoOffset", "bnb/fp4-double-bf16", state(kDownState, "nested_offset", "much"), {kDownState, "nested_offset"}},
      {"Int8NoScales", "int8/llama-int8", drop(kDown + ".SCB"), {kDown + ".weight", kDown + ".SCB"}},
      {"Int8ScalesShort", "int8/llama-int8", retype(kDown + ".SCB", "F32", {63}, 252), {kDown + ".SCB", "[63]", "[64]"}},
      {"Int8ScalesType", "int8/llama-int8", retype(kDown + ".SCB", "F16", {64}, 128), {kDown + ".SCB", "fp16", "fp32"}},
      {"Int8Shape", "int8/llama-int8", retype(kDown + ".weight", "I8", {6144}, 6144), {kDown + ".weight", "1 dimensions"}},
      {"Int8OldLayout", "int8/llama-int8", [](Folder& f) { f.tensors.at(kDown + ".weight_format").bytes[0] = std::byte{2}; }, {kDown + ".weight_format", "older layout"}},
      {"GptqBits", "gptq/llama-4bit-v1", config("bits", 3), {"config.json: quantization_config.bits", "3", "4 and 8"}},
      {"GptqOtherBits", "gptq/llama-4bit-v1", config("bits", 8), {".qzeros", "4 bits"}},
      {"GptqForm", "gptq/llama-4bit-v1", config("checkpoint_format", "marlin"), {"checkpoint_format", "marlin"}},
      {"GptqGroupZero", "gptq/llama-4bit-v1", config("group_size", 0), {"group_size"}},
      {"GptqGroupOdd", "gptq/llama-4bit-v1", config("group_size", 48), {"group_size", "48"}},
      {"GptqGroupOther", "gptq/llama-4bit-v1", config("group_size", 64), {".scales", "groups of 64"}},
      {"GptqGroupDoesNotDivide", "gptq/llama-4bit-v1", [](Folder& f) { retype(kDown + ".scales", "F16", {4, 64}, 512)(f), retype(kDown + ".qzeros", "I32", {4, 8}, 128)(f); }, {kDown + ".scales", "4 groups for 96 inputs"}},
      {"GptqNoGroups", "gptq/llama-4bit-v1", [](Folder& f) { retype(kDown + ".scales", "F16", {0, 64}, 0)(f), retype(kDown + ".qzeros", "I32", {0, 8}, 0)(f); }, {kDown + ".scales", "0 groups"}},
      {"GptqNoScales", "gptq/llama-4bit-v1", drop(kDown + ".scales"), {kDown + ".qweight", kDown + ".scales"}},
      {"GptqNoZeros", "gptq/llama-4bit-v1", drop(kDown + ".qzeros"), {kDown + ".qweight", kDown + ".qzeros"}},
      {"GptqNoCodes", "gptq/llama-4bit-v1", drop(kDown + ".qweight"), {kDown + ".weight"}},
      {"GptqScalesType", "gptq/llama-4bit-v1", retype(kDown + ".scales", "I16", {3, 64}, 384), {kDown + ".scales", "i16", "fp16"}},
      {"GptqScalesShape", "gptq/llama-4bit-v1", retype(kDown + ".scales", "F16", {3, 63}, 378), {kDown + ".scales", "[3, 63]", "[any, 64]"}},
      {"GptqZerosShape", "gptq/llama-4bit-v1", retype(kDown + ".qzeros", "I32", {3, 7}, 84), {kDown + ".qzeros", "7 words"}},
      {"GptqCodesType", "gptq/llama-4bit-v1", retype(kDown + ".qweight", "F32", {12, 64}, 3072), {kDown + ".qweight", "I32"}},
      {"GptqCodesFlat", "gptq/llama-4bit-v1", retype(kDown + ".qweight", "I32", {768}, 3072), {kDown + ".qweight", "I32"}},
      {"GptqIndexShort", "gptq/llama-4bit-v1", retype(kDown + ".g_idx", "I32", {95}, 380), {kDown + ".g_idx", "[95]", "[96]"}},
      {"GptqIndexOutOfRange", "gptq/llama-mixed-v2", [](Folder& f) { f.tensors.at(kDown + ".g_idx").bytes[4] = std::byte{3}; }, {kDown + ".g_idx", "group 3", "there are 3"}},
      {"GptqIndexNegative", "gptq/llama-mixed-v2", [](Folder& f) { f.tensors.at(kDown + ".g_idx").bytes[7] = std::byte{0xff}; }, {kDown + ".g_idx", "group -"}},
      {"AwqBits", "awq/llama-gemm", config("bits", 8), {"bits", "8"}},
      {"AwqVersion", "awq/llama-gemm", config("version", "gemv"), {"version", "gemv"}},
      {"AwqNoZeroPoint", "awq/llama-gemm", config("zero_point", false), {"zero_point"}},
      {"AwqZerosShape", "awq/llama-gemm", retype(kDown + ".qzeros", "I32", {3, 7}, 84), {kDown + ".qzeros", "[3, 7]", "[3, 8]"}},
      {"AwqScalesShape", "awq/llama-gemm", retype(kDown + ".scales", "F16", {2, 64}, 256), {kDown, "2"}},
      {"AwqCodesShape", "awq/llama-gemm", retype(kDown + ".qweight", "I32", {64, 8}, 2048), {kDown, "64 inputs"}},
      {"Fp8NoScale", "fp8/llama-blocks", drop(kDown + ".weight_scale_inv"), {kDown + ".weight", "weight_scale"}},
      {"Fp8ScaleShape", "fp8/llama-blocks", retype(kDown + ".weight_scale_inv", "F32", {1, 3}, 12), {kDown + ".weight_scale_inv", "48 rows and 136 columns", "[1, 2]"}},
      {"Fp8ScaleEmpty", "fp8/llama-blocks", retype(kDown + ".weight_scale_inv", "F32", {0}, 0), {kDown + ".weight_scale_inv"}},
      {"Fp8ScaleType", "fp8/llama-blocks", retype(kDown + ".weight_scale_inv", "I32", {1, 2}, 8), {kDown + ".weight_scale_inv", "i32"}},
      {"Fp8BlockSize", "fp8/llama-blocks", config("weight_block_size", json{64, 128}), {"weight_block_size", "[128, 128]"}},
      {"Fp8Flat", "fp8/llama-blocks", retype(kDown + ".weight", "F8_E4M3", {48 * 136}, 48 * 136), {kDown + ".weight", "1 dimensions"}},
      {"Fp8OtherShape", "fp8/llama-tensors", retype(kDown + ".weight", "F8_E4M3", {64, 95}, 64 * 95), {kDown + ".weight", "[64, 95]", "[64, 96]"}},
      {"CtFormat", "ct/llama-packed", config("format", "nvfp4-pack-quantized"), {"quantization_config.format", "nvfp4"}},
      {"CtGroups", "ct/llama-packed", config("config_groups", json::object()), {"config_groups", "empty"}},
      {"CtBits", "ct/llama-packed", [](Folder& f) { f.quantization()["config_groups"]["group_0"]["weights"]["num_bits"] = 3; }, {"config_groups.group_0.weights.num_bits", "3"}},
      {"CtStrategy", "ct/llama-packed", [](Folder& f) { f.quantization()["config_groups"]["group_0"]["weights"]["strategy"] = "tensor_group"; }, {"group_0.weights", "tensor_group"}},
      {"CtNoShape", "ct/llama-packed", drop(kDown + ".weight_shape"), {kDown + ".weight_packed", ".weight_shape"}},
      {"CtShape", "ct/llama-packed", [](Folder& f) { f.tensors.at(kDown + ".weight_shape").bytes[8] = std::byte{95}; }, {kDown + ".weight_shape", "[64, 95]"}},
      {"CtShapeHuge", "ct/llama-packed", [](Folder& f) { f.tensors.at(kDown + ".weight_shape").bytes[14] = std::byte{95}; }, {kDown + ".weight_shape", "[64, "}},
      {"CtNoScale", "ct/llama-packed", drop(kDown + ".weight_scale"), {kDown + ".weight_packed", ".weight_scale"}},
      {"CtScaleShape", "ct/llama-packed", retype(kDown + ".weight_scale", "BF16", {64, 5}, 640), {kDown + ".weight_scale", "5 groups for 96 inputs"}},
      {"CtScaleRows", "ct/llama-packed", retype(kDown + ".weight_scale", "BF16", {63, 3}, 378), {kDown + ".weight_scale", "[63, 3]"}},
      {"CtZeros", "ct/llama-packed", retype("model.layers.0.self_attn.q_proj.weight_zero_point", "I32", {7, 2}, 56), {"q_proj.weight_zero_point", "[7, 2]", "[8, 2]"}},
      {"CtIndex", "ct/llama-packed", [](Folder& f) { f.tensors.at("model.layers.0.mlp.up_proj.weight_g_idx").bytes[4] = std::byte{2}; }, {"up_proj.weight_g_idx", "group 2"}},
      {"CtInt8NoScale", "ct/llama-int8", drop(kDown + ".weight_scale"), {kDown + ".weight", ".weight_scale"}},
      {"CtInt8Flat", "ct/llama-int8", retype(kDown + ".weight", "I8", {6144}, 6144), {kDown + ".weight", "1 dimensions"}},
      {"WeightTwice", "awq/llama-gemm", [](Folder& f) { f.tensors[kDown + ".weight"] = f.tensors.at(kDown + ".scales"); }, {kDown + ".weight", "quantized and not quantized"}},
  };
  return list;
}

class Refused : public ::testing::TestWithParam<Wrong> {};

TEST_P(Refused, InOneLine) {
  Folder folder(GetParam().model);
  GetParam().change(folder);
  const TemporaryDirectory to;
  const std::string path = folder.write(to);
  try {
    make_blueprint(path, {}, {});
    FAIL() << "was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    for (const std::string& word : GetParam().says) EXPECT_THAT(error.what(), HasSubstr(word));
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(Quantized, Refused, ::testing::ValuesIn(wrongs()), [](const auto& info) { return std::string(info.param.name); });

// An unchanged copy is read, and says what each module is in.
TEST(Quantized, EachModuleInItsOwnFormat) {
  const TemporaryDirectory to;
  const Checkpoint checkpoint = open_checkpoint(Folder("bnb/mixed").write(to));
  const std::map<std::string, std::string> expected = {{"self_attn.q_proj", "nf4:128"}, {"self_attn.k_proj", "fp4_dq:32"}, {"self_attn.v_proj", "bf16"},
                                                       {"self_attn.o_proj", "nf4_dq:4096"}, {"mlp.gate_proj", "nf4"}, {"mlp.up_proj", "fp4:512"},
                                                       {"mlp.down_proj", "nf4_dq:256"}};
  for (const auto& [module, format] : expected) {
    const TensorInfo* tensor = checkpoint.tensors->find("model.layers.1." + module + ".weight");
    ASSERT_NE(tensor, nullptr) << module;
    EXPECT_EQ(tensor->type, format) << module;
  }
  const TensorInfo* down = checkpoint.tensors->find("model.layers.1.mlp.down_proj.weight");
  EXPECT_EQ(down->shape, (std::vector<int64_t>{64, 96}));
  EXPECT_EQ(down->bytes, 64u * 96 / 2);
  EXPECT_EQ(checkpoint.tensors->find("model.layers.1.mlp.down_proj.weight.quant_state.bitsandbytes__nf4"), nullptr) << "it is used up";
  ASSERT_NE(checkpoint.tensors->find("model.layers.1.mlp.down_proj.weight.nested_offset"), nullptr);
}

TEST(Quantized, GroupsAndActOrder) {
  const Checkpoint checkpoint = open_checkpoint(fixture("gptq/llama-mixed-v2"));
  const std::map<std::string, std::string> expected = {{"self_attn.q_proj", "int4:row"}, {"self_attn.k_proj", "fp16"}, {"mlp.up_proj", "int8_group:32"}, {"mlp.down_proj", "fp16"}};
  for (const auto& [module, format] : expected) EXPECT_EQ(checkpoint.tensors->find("model.layers.0." + module + ".weight")->type, format) << module;
  // Any range gives the bytes that reading everything gives, wherever it begins and ends.
  for (const char* model : {"gptq/llama-mixed-v2", "gptq/llama-4bit-v1", "awq/llama-gemm", "bnb/mixed", "ct/llama-packed", "ct/llama-int8", "fp8/llama-channels"}) {
    const Checkpoint other = open_checkpoint(fixture(model));
    for (const TensorInfo& tensor : other.tensors->tensors()) {
      std::vector<std::byte> whole(tensor.bytes), part(tensor.bytes);
      other.tensors->read(tensor, {0, tensor.bytes}, whole.data());
      for (const uint64_t parts : {2u, 3u, 7u}) {
        for (uint64_t i = 0; i < parts; ++i) {
          const ByteRange range{tensor.bytes * i / parts, tensor.bytes * (i + 1) / parts};
          other.tensors->read(tensor, range, part.data() + range.begin);
        }
        ASSERT_EQ(part, whole) << model << " " << tensor.name;
      }
    }
  }
}

// AutoGPTQ writes biases of zeros where a model has none: they change nothing. Others would.
TEST(Quantized, BiasesOfZeros) {
  Folder folder("gptq/llama-4bit-v1");
  test::Tensor& bias = folder.tensors[kDown + ".bias"];
  bias.dtype = "F16", bias.shape = {64}, bias.bytes.resize(128);
  const TemporaryDirectory zeros, others;
  EXPECT_NO_THROW(make_blueprint(folder.write(zeros), {}, {}));
  bias.bytes[5] = std::byte{0x3c};
  EXPECT_THROW(make_blueprint(folder.write(others), {}, {}), Error);
}

// A config.json alone plans as its weights would lie.
TEST(Quantized, ConfigAloneSaysTheFormat) {
  for (const char* model : {"bnb/fp4-double-bf16", "int8/llama-int8", "gptq/llama-4bit-v1", "awq/llama-gemm", "fp8/llama-tensors", "ct/llama-int8"}) {
    const TemporaryDirectory to;
    const std::string alone = to.write("config.json", Folder(model).config.dump());
    const Blueprint with = make_blueprint(fixture(model), {}, {}), without = make_blueprint(alone, {}, {});
    EXPECT_EQ(footprint_bytes(with), footprint_bytes(without)) << model;
    for (WeightId id = 0; id < with.model->weights.size(); ++id) {
      EXPECT_EQ(with.formats.held[static_cast<size_t>(id)]->name(), without.formats.held[static_cast<size_t>(id)]->name()) << with.model->weights[id].name;
    }
  }
}

}  // namespace
}  // namespace tandem
