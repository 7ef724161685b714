#include "runtime/model/checkpoint/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "tests/runtime/model/checkpoint/files.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

Config config(const char* text) { return {parse_json(text, "config.json"), "config.json"}; }

template <typename F>
std::string error_of(F&& call) {
  try {
    (void)call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Config, SaysFileKeyValueAndRange) {
  const Config c =
      config(R"({"num_hidden_layers": -3, "hidden_size": "big", "eps": 2.5, "flag": 1, "name": 7, "list": [1, "x"], "half": 0.5})");
  EXPECT_EQ(error_of([&] { return c.integer("num_hidden_layers", 1, 1024); }), "config.json: num_hidden_layers: is -3 (must be 1 to 1024)");
  EXPECT_EQ(error_of([&] { return c.integer("hidden_size", 1, 9); }),
            "config.json: hidden_size: is the text 'big' (must be a whole number from 1 to 9)");
  EXPECT_EQ(error_of([&] { return c.integer("half", 0, 9); }), "config.json: half: is 0.5 (must be a whole number from 0 to 9)");
  EXPECT_EQ(error_of([&] { return c.integer("vocab_size", 1, 9); }), "config.json: vocab_size: is missing (must be a whole number from 1 to 9)");
  EXPECT_EQ(error_of([&] { return c.number("eps", 0, 1); }), "config.json: eps: is 2.5 (must be a number from 0 to 1)");
  EXPECT_EQ(error_of([&] { return c.number("name_", 0, 1); }), "config.json: name_: is missing (must be a number from 0 to 1)");
  EXPECT_EQ(error_of([&] { return c.boolean("flag", false); }), "config.json: flag: is 1 (must be true or false)");
  EXPECT_EQ(error_of([&] { return c.text("name"); }), "config.json: name: is 7 (must be text)");
  EXPECT_EQ(error_of([&] { return c.integers("list", 0, 9, 4); }),
            "config.json: list: holds the text 'x' (must be whole numbers from 0 to 9)");
  EXPECT_EQ(error_of([&] { return c.numbers("list", 0, 9, 1); }), "config.json: list: has 2 elements (at most 1)");
  EXPECT_EQ(error_of([&] { return c.object("name"); }), "config.json: name: is 7 (must be an object)");
  EXPECT_EQ(error_of([&] { return config("[]"); }), "config.json: is a list (must be a JSON object)");
}

TEST(Config, ReadsWhatIsThereAndFallsBack) {
  const Config c = config(R"({"a": 4096.0, "b": 1e4, "c": null, "eos": [1, 2], "one": 3, "f": [0.5, 1], "big": 18446744073709551615,
                              "inner": {"x": {"y": -1}}})");
  EXPECT_EQ(c.integer("a", 0, 9999), 4096);
  EXPECT_EQ(c.number("b", 0, 1e9), 10000.0);
  EXPECT_FALSE(c.has("c"));
  EXPECT_EQ(c.integer("c", 0, 5, 2), 2);
  EXPECT_EQ(c.text("c", "silu"), "silu");
  EXPECT_EQ(c.boolean("c", true), true);
  EXPECT_EQ(c.integers("eos", 0, 9, 8), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(c.integers("one", 0, 9, 8), std::vector<int64_t>{3});
  EXPECT_EQ(c.integers("c", 0, 9, 8), std::vector<int64_t>{});
  EXPECT_EQ(c.numbers("f", 0, 1, 8), (std::vector<double>{0.5, 1}));
  EXPECT_THAT(error_of([&] { return c.integer("big", 0, INT64_MAX); }), HasSubstr("18446744073709551615"));
  EXPECT_EQ(error_of([&] { return c.object("inner").object("x").integer("y", 0, 3); }), "config.json: inner.x.y: is -1 (must be 0 to 3)");
}

TEST(Config, BothSpellingsOfRotaryParametersAndType) {
  for (const char* text :
       {R"({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "torch_dtype": "bfloat16"})",
        R"({"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 8.0}, "torch_dtype": "torch.bfloat16"})",
        R"({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0}, "dtype": "bfloat16"})"}) {
    SCOPED_TRACE(text);
    const Config rope = config(text).rope();
    EXPECT_EQ(rope.text("rope_type"), "llama3");
    EXPECT_EQ(rope.number("rope_theta", 1, 1e9), 500000.0);
    EXPECT_EQ(rope.number("factor", 1, 1e9), 8.0);
    EXPECT_EQ(config(text).dtype(), DType::bf16);
  }
  for (const char* text : {R"({})", R"({"rope_scaling": null, "dtype": null})", R"({"rope_parameters": {"rope_type": "default"}})"}) {
    EXPECT_EQ(config(text).rope().text("rope_type"), "default");
    EXPECT_EQ(config(text).rope().number("rope_theta", 1, 1e9, 10000.0), 10000.0);
    EXPECT_EQ(config(text).dtype(), std::nullopt);
  }
  EXPECT_EQ(error_of([] { return config(R"({"rope_scaling": {"factor": -1}})").rope().number("factor", 1, 9); }),
            "config.json: rope_scaling.factor: is -1 (must be a number from 1 to 9)");
  EXPECT_EQ(error_of([] { return config(R"({"torch_dtype": "int4"})").dtype(); }),
            "config.json: torch_dtype: is 'int4' (must be float32, float16 or bfloat16)");
}

TEST(Config, TextFilesAreBounded) {
  const testing::TemporaryDirectory directory;
  const std::string path = directory.write("config.json", R"({"a": 1})");
  EXPECT_EQ(read_json_object(path)["a"], 1);
  EXPECT_THAT(error_of([&] { return read_json_object(path, 4); }), HasSubstr("has 8 bytes (at most 4 are read)"));
  EXPECT_THAT(error_of([&] { return read_json_object(directory.write("list.json", "[1]")); }), HasSubstr("must be a JSON object"));
  EXPECT_THAT(error_of([&] { return read_json_object(directory.path()); }), HasSubstr("is not a regular file"));
  EXPECT_THAT(error_of([&] { return read_json_object(directory.path() + "/none"); }), HasSubstr("no such file"));
}

}  // namespace
}  // namespace tandem
