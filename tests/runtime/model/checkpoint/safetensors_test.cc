#include "runtime/model/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "tests/runtime/model/checkpoint/files.h"

namespace tandem {
namespace {

using testing::bytes_of;
using testing::entry;
using ::testing::HasSubstr;
using testing::safetensors;
using testing::TemporaryDirectory;

template <typename F>
std::string error_of(F&& call) {
  try {
    (void)call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Safetensors, EveryTypeWithItsNameShapeAndPlace) {
  const struct {
    const char *dtype, *type;
    uint64_t size;
  } types[] = {{"F32", "fp32", 4}, {"F16", "fp16", 2},        {"BF16", "bf16", 2}, {"F64", "f64", 8}, {"F8_E4M3", "f8_e4m3", 1},
               {"I8", "i8", 1},    {"F8_E5M2", "f8_e5m2", 1}, {"U8", "u8", 1},     {"I16", "i16", 2}, {"U16", "u16", 2},
               {"I32", "i32", 4},  {"U32", "u32", 4},         {"I64", "i64", 8},   {"U64", "u64", 8}, {"BOOL", "bool", 1}};
  std::string header;
  uint64_t at = 0;
  for (const auto& type : types) {
    header += (header.empty() ? "{" : ",") + entry(type.dtype, type.dtype, "[2,3]", at, at + 6 * type.size);
    at += 6 * type.size;
  }
  const std::string bytes = safetensors(header + "}   ", at);  // writers pad the header with spaces
  const auto file = in_memory("x.safetensors", bytes_of(bytes));
  const auto tensors = read_safetensors_header(*file, 7);
  ASSERT_EQ(tensors.size(), std::size(types));
  uint64_t offset = bytes.size() - at;
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(tensors[i].name, types[i].dtype);
    EXPECT_EQ(tensors[i].type, types[i].type);
    EXPECT_EQ(tensors[i].shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(tensors[i].bytes, 6 * types[i].size);
    EXPECT_EQ(tensors[i].offset, offset);
    EXPECT_EQ(tensors[i].file, 7u);
    offset += tensors[i].bytes;
  }
}

TEST(Safetensors, ScalarsEmptyTensorsAnyOrderAndUnknownFields) {
  const std::string bytes = safetensors(
      "{" + entry("last", "U8", "[4]", 8, 12) + "," + entry("scalar", "F32", "[]", 0, 4) + "," + entry("empty", "F32", "[0,5]", 4, 4) +
          ",\"x\":{\"extra\":{\"a\":[1,{}]},\"dtype\":\"I32\",\"more\":null,\"shape\":[1],\"data_offsets\":[4,8]}}",
      12);
  const auto tensors = read_safetensors_header(*in_memory("x", bytes_of(bytes)));
  ASSERT_EQ(tensors.size(), 4u);
  EXPECT_EQ(tensors[0].name, "scalar");
  EXPECT_EQ(tensors[0].shape, std::vector<int64_t>{});
  EXPECT_EQ(tensors[1].name, "empty");
  EXPECT_EQ(tensors[2].name, "x");
  EXPECT_EQ(tensors[3].name, "last");
  EXPECT_TRUE(read_safetensors_header(*in_memory("x", bytes_of(safetensors("{}", 0)))).empty());
}

TEST(Safetensors, ReadsAnyPartOfATensor) {
  const TemporaryDirectory directory;
  const std::string path = directory.write(
      "x.safetensors", safetensors("{" + entry("a", "U8", "[10]", 0, 10) + "," + entry("b", "U8", "[20]", 10, 30) + "}", 30));
  const auto source = open_safetensors_file(path);
  const TensorInfo* b = source->find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(source->find("c"), nullptr);
  EXPECT_EQ(source->file_name(*b), path);
  unsigned char out[4] = {};
  source->read(*b, {3, 7}, out);
  EXPECT_THAT(out, ::testing::ElementsAre(13, 14, 15, 16));
  source->read(*b, {20, 20}, out);
  EXPECT_THROW(source->read(*b, {18, 21}, out), Error);
  EXPECT_THROW(source->read(*b, {5, 4}, out), Error);
}

TEST(Safetensors, FileThatShrinksIsAnErrorThatNamesIt) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("x.safetensors", safetensors("{" + entry("a", "U8", "[100]", 0, 100) + "}", 100));
  const auto source = open_safetensors_file(path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 50);
  char out[100];
  EXPECT_NO_THROW(source->read(source->tensors()[0], {0, 50}, out));
  EXPECT_THAT(error_of([&] { return source->read(source->tensors()[0], {0, 100}, out), 0; }), HasSubstr(path + ": ends at byte"));
}

class Shards : public ::testing::Test {
 protected:
  void index(const std::string& map) {
    directory.write("model.safetensors.index.json", "{\"metadata\":{\"total_size\":8},\"weight_map\":{" + map + "}}");
  }
  void shard(const std::string& name, const std::string& tensor) {
    directory.write(name, safetensors("{" + entry(tensor, "U8", "[4]", 0, 4) + "}", 4));
  }
  std::string error() {
    return error_of([&] { return open_safetensors(directory.path()); });
  }
  TemporaryDirectory directory;
};

TEST_F(Shards, AreOneSource) {
  shard("model-2.safetensors", "b"), shard("model-1.safetensors", "a");
  index(R"("b":"model-2.safetensors","a":"model-1.safetensors")");
  const auto source = open_safetensors(directory.path());
  ASSERT_EQ(source->tensors().size(), 2u);
  EXPECT_EQ(source->tensors()[0].name, "a");  // files in the order of their names
  EXPECT_EQ(source->file_name(*source->find("b")), directory.path() + "/model-2.safetensors");
}

TEST_F(Shards, WrongIndexes) {
  shard("model-1.safetensors", "a"), shard("model-2.safetensors", "b");
  index(R"("a":"model-1.safetensors","b":"model-3.safetensors")");
  EXPECT_THAT(error(),
              HasSubstr("model-3.safetensors: is named in " + directory.path() + "/model.safetensors.index.json but is not there"));
  index(R"("a":"model-1.safetensors","b":"model-2.safetensors","c":"model-2.safetensors")");
  EXPECT_THAT(error(), HasSubstr("weight_map puts 'c' into model-2.safetensors, which does not hold it"));
  index(R"("a":"model-2.safetensors","b":"model-1.safetensors")");
  EXPECT_THAT(error(), HasSubstr("which does not hold it"));
  index(R"("a":"../model-1.safetensors")");
  EXPECT_THAT(error(), HasSubstr("must be the plain name"));
  shard("model-2.safetensors", "a");
  index(R"("a":"model-1.safetensors","b":"model-2.safetensors")");
  EXPECT_THAT(error(), HasSubstr("tensor 'a' is also in " + directory.path() + "/model-1.safetensors"));
}

TEST_F(Shards, LinkToNowhereIsAMissingFile) {
  std::filesystem::create_symlink("nowhere", directory.path() + "/model.safetensors");
  EXPECT_THAT(error(), HasSubstr("/model.safetensors: no such file"));
}

TEST_F(Shards, WhichFilesCount) {
  EXPECT_EQ(open_safetensors(directory.path()), nullptr);
  directory.write("training_args.bin", "x");
  EXPECT_EQ(open_safetensors(directory.path()), nullptr);
  directory.write("pytorch_model.bin", "x");
  EXPECT_THAT(error(), HasSubstr("/pytorch_model.bin: is a pickled checkpoint"));
  shard("adapter_model.safetensors", "lora");
  EXPECT_THAT(error(), HasSubstr("/pytorch_model.bin: is a pickled checkpoint"));
  shard("weights.safetensors", "w");
  EXPECT_NE(open_safetensors(directory.path())->find("w"), nullptr);
  shard("more.safetensors", "v");
  EXPECT_THAT(error(), HasSubstr("model.safetensors.index.json: no such file, and the directory has 2 .safetensors files"));
  index(R"("v":"more.safetensors")");
  EXPECT_NE(open_safetensors(directory.path())->find("v"), nullptr);
  shard("model.safetensors", "m");  // as transformers does, before any index
  EXPECT_NE(open_safetensors(directory.path())->find("m"), nullptr);
}

}  // namespace
}  // namespace tandem
