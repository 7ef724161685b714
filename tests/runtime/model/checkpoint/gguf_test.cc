#include "runtime/model/checkpoint/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "tests/runtime/model/checkpoint/files.h"

namespace tandem {
namespace {

using testing::bytes_of;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::little;
using testing::small_llama;
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

TEST(Gguf, EveryValueType) {
  GgufBuilder b;
  b.raw("u8", GgufType::u8, "\xff").raw("i8", GgufType::i8, "\xff").u16("u16", 0xffff).raw("i16", GgufType::i16, "\xff\xff");
  b.u32("u32", 0xffffffff).i32("i32", -1).f32("f32", 1e-5f).boolean("yes", true).boolean("no", false).string("text", "a\nb");
  b.raw("u64", GgufType::u64, little(~0ull)).raw("small", GgufType::u64, little(7ull)).raw("i64", GgufType::i64, little(INT64_MIN));
  b.raw("f64", GgufType::f64, little(0.1)).f32("nan", std::numeric_limits<float>::quiet_NaN()).string("empty", "");
  b.strings("list", {"x", "", "yz"}).numbers<int16_t>("numbers", GgufType::i16, {-1, 2}).strings("none", {});
  for (const uint32_t version : {2u, 3u}) {
    b.version = version;
    const std::string bytes = b.build();
    const auto file = in_memory("x.gguf", bytes_of(bytes));
    const GgufHeader header = read_gguf_header(*file);
    const auto is = [&](const char* key, const auto& value) {
      using T = std::decay_t<decltype(value)>;
      const auto* found = std::get_if<T>(header.find(key));
      return found && *found == value;
    };
    EXPECT_EQ(header.version, version);
    EXPECT_TRUE(is("u8", int64_t{255}));
    EXPECT_TRUE(is("i8", int64_t{-1}));
    EXPECT_TRUE(is("u16", int64_t{65535}));
    EXPECT_TRUE(is("i16", int64_t{-1}));
    EXPECT_TRUE(is("u32", int64_t{0xffffffff}));
    EXPECT_TRUE(is("i32", int64_t{-1}));
    EXPECT_TRUE(is("u64", uint64_t{~0ull}));
    EXPECT_TRUE(is("small", int64_t{7}));
    EXPECT_TRUE(is("i64", int64_t{INT64_MIN}));
    EXPECT_TRUE(is("f32", 1e-5));  // not 9.999999747378752e-06
    EXPECT_TRUE(is("f64", 0.1));
    EXPECT_TRUE(std::isnan(std::get<double>(*header.find("nan"))));
    EXPECT_TRUE(is("yes", true));
    EXPECT_TRUE(is("no", false));
    EXPECT_TRUE(is("text", std::string("a\nb")));
    EXPECT_TRUE(is("empty", std::string()));
    EXPECT_EQ(header.find("absent"), nullptr);
    EXPECT_THAT(read_gguf_strings(*file, std::get<GgufArray>(*header.find("list")), "list"), ::testing::ElementsAre("x", "", "yz"));
    EXPECT_THAT(read_gguf_integers(*file, std::get<GgufArray>(*header.find("numbers")), "numbers"), ::testing::ElementsAre(-1, 2));
    EXPECT_TRUE(read_gguf_strings(*file, std::get<GgufArray>(*header.find("none")), "none").empty());
  }
}

TEST(Gguf, TensorsHaveTheirShapeOutermostFirst) {
  GgufBuilder b;
  b.alignment = 64;
  b.u32("general.alignment", 64);
  b.tensor({"a", {256, 3, 2}, 14}, 6 * 210).tensor({"b", {5}, 0}, 20).tensor({"c", {64, 2}, 20}, 4 * 18).tensor({"d", {3}, 27}, 24);
  const std::string bytes = b.build();
  const GgufHeader header = read_gguf_header(*in_memory("x.gguf", bytes_of(bytes)), 4);
  ASSERT_EQ(header.tensors.size(), 4u);
  const TensorInfo& a = header.tensors[0];
  EXPECT_EQ(a.type, "q6_k");
  EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3, 256}));
  EXPECT_EQ(a.bytes, 6u * 210);
  EXPECT_EQ(a.file, 4u);
  EXPECT_EQ(a.offset % 64, 0u);
  EXPECT_EQ(header.tensors[1].type, "fp32");
  EXPECT_EQ(header.tensors[2].type, "iq4_nl");
  EXPECT_EQ(header.tensors[3].type, "i64");
  EXPECT_EQ(header.tensors[3].offset + 24, bytes.size());
  EXPECT_EQ(header.tensors[1].offset, a.offset + 1280);
}

TEST(Gguf, TypesHaveTheirBlocks) {
  const struct {
    uint32_t number;
    const char* name;
    uint32_t block, bytes;
  } types[] = {{0, "fp32", 1, 4},      {1, "fp16", 1, 2},      {30, "bf16", 1, 2},       {2, "q4_0", 32, 18},
               {3, "q4_1", 32, 20},    {6, "q5_0", 32, 22},    {7, "q5_1", 32, 24},      {8, "q8_0", 32, 34},
               {10, "q2_k", 256, 84},  {11, "q3_k", 256, 110}, {12, "q4_k", 256, 144},   {13, "q5_k", 256, 176},
               {14, "q6_k", 256, 210}, {20, "iq4_nl", 32, 18}, {23, "iq4_xs", 256, 136}, {39, "mxfp4", 32, 17}};
  for (const auto& type : types) {
    const GgufTensorType* found = find_gguf_tensor_type(type.number);
    ASSERT_NE(found, nullptr) << type.name;
    EXPECT_EQ(found->name, type.name);
    EXPECT_EQ(found->block, type.block) << type.name;
    EXPECT_EQ(found->bytes, type.bytes) << type.name;
  }
  for (const uint32_t number : {4u, 5u, 31u, 36u, 38u, 1000u}) EXPECT_EQ(find_gguf_tensor_type(number), nullptr);
}

TEST(Gguf, Text) {
  const std::string bytes = small_llama()
                                .string("tokenizer.ggml.pre", "smollm")
                                .u32("tokenizer.ggml.padding_token_id", 0xffffffff)
                                .string("tokenizer.chat_template", std::string(100'000, 'j'))
                                .build();
  const auto file = in_memory("x.gguf", bytes_of(bytes));
  const GgufHeader header = read_gguf_header(*file);
  EXPECT_TRUE(std::holds_alternative<GgufArray>(*header.find("tokenizer.chat_template")));  // too long to read on opening
  const GgufText text = read_gguf_text(*file, header);
  EXPECT_THAT(text.tokens, ::testing::ElementsAre("a", "b", "ab"));
  EXPECT_THAT(text.merges, ::testing::ElementsAre("a b"));
  EXPECT_THAT(text.types, ::testing::ElementsAre(1, 1, 3));
  EXPECT_THAT(text.scores, ::testing::ElementsAre(0.f, -1.f, -2.f));
  EXPECT_EQ(text.model, "gpt2");
  EXPECT_EQ(text.pre, "smollm");
  EXPECT_EQ(text.chat_template, std::string(100'000, 'j'));
  EXPECT_EQ(text.bos, 2);
  EXPECT_EQ(text.eos, std::nullopt);
  EXPECT_EQ(text.padding, std::nullopt);
  EXPECT_EQ(text.add_bos, true);
  EXPECT_EQ(text.add_eos, std::nullopt);
}

// Longer than any window of the reader: strings at every place relative to its edges.
TEST(Gguf, LongArraysAndTexts) {
  std::vector<std::string> tokens;
  for (int i = 0; i < 60'000; ++i) tokens.push_back("token " + std::to_string(i) + std::string(i % 23, 'x'));
  tokens.push_back(std::string(700'000, 'y'));
  tokens.push_back("end");
  const std::string bytes =
      GgufBuilder().strings("tokenizer.ggml.tokens", tokens).string("long", std::string(600'000, 'z')).u32("after", 5).build();
  const auto file = in_memory("x.gguf", bytes_of(bytes));
  const GgufHeader header = read_gguf_header(*file);
  EXPECT_EQ(std::get<int64_t>(*header.find("after")), 5);
  EXPECT_EQ(read_gguf_text(*file, header).tokens, tokens);
}

class Split : public ::testing::Test {
 protected:
  GgufBuilder part(uint16_t number, uint16_t count, const std::string& tensor) {
    GgufBuilder b;
    if (number == 0) b.string("general.architecture", "llama").i32("split.tensors.count", total);
    b.u16("split.no", number).u16("split.count", count).tensor({tensor, {8}, 0}, 32);
    return b;
  }
  std::string error(const std::string& name) {
    return error_of([&] { return open_gguf(directory.path() + "/" + name); });
  }
  int32_t total = 3;
  TemporaryDirectory directory;
};

TEST_F(Split, IsOneSource) {
  const std::string first = directory.write("m-00001-of-00003.gguf", part(0, 3, "a").build());
  directory.write("m-00002-of-00003.gguf", part(1, 3, "b").build());
  directory.write("m-00003-of-00003.gguf", part(2, 3, "c").build());
  const GgufModel model = open_gguf(first);
  ASSERT_EQ(model.tensors->tensors().size(), 3u);
  const TensorInfo* c = model.tensors->find("c");
  EXPECT_EQ(c->file, 2u);
  EXPECT_EQ(model.tensors->file_name(*c), directory.path() + "/m-00003-of-00003.gguf");
  unsigned char bytes[2];
  model.tensors->read(*c, {1, 3}, bytes);
  EXPECT_THAT(bytes, ::testing::ElementsAre(1, 2));
  EXPECT_THAT(error("m-00002-of-00003.gguf"), HasSubstr("is part 2 of 3 (open the first, " + first + ")"));
}

TEST_F(Split, WrongParts) {
  directory.write("m-00001-of-00002.gguf", part(0, 2, "a").build());
  EXPECT_THAT(error("m-00001-of-00002.gguf"), HasSubstr("m-00002-of-00002.gguf: is part 2 of"));
  directory.write("m-00002-of-00002.gguf", part(0, 2, "b").build());
  EXPECT_THAT(error("m-00001-of-00002.gguf"), HasSubstr("does not say that it is part 2 of 2"));
  directory.write("m-00002-of-00002.gguf", part(1, 3, "b").build());
  EXPECT_THAT(error("m-00001-of-00002.gguf"), HasSubstr("does not say that it is part 2 of 2"));
  directory.write("m-00002-of-00002.gguf", part(1, 2, "b").build());
  EXPECT_THAT(error("m-00001-of-00002.gguf"), HasSubstr("declares 3 tensors, but its parts hold 2"));
  total = 2;
  directory.write("m-00001-of-00002.gguf", part(0, 2, "a").build());
  EXPECT_EQ(error("m-00001-of-00002.gguf"), "no error");
  directory.write("m-00002-of-00002.gguf", part(1, 2, "a").build());
  EXPECT_THAT(error("m-00001-of-00002.gguf"), HasSubstr("tensor 'a' is also in"));
  directory.write("renamed.gguf", part(0, 2, "a").build());
  EXPECT_THAT(error("renamed.gguf"), HasSubstr("is one of 2 parts (its name must end in -00001-of-00002.gguf)"));
  directory.write("m-00001-of-65535.gguf", part(0, 65535, "a").build());
  EXPECT_THAT(error("m-00001-of-65535.gguf"), HasSubstr("has 65535 parts (at most 1024)"));
  directory.write("one-00001-of-00001.gguf", part(0, 1, "a").build());
  EXPECT_EQ(error("one-00001-of-00001.gguf"), "no error");
}

}  // namespace
}  // namespace tandem
