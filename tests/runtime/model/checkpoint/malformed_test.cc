// Hostile files: each gives one Error on one line that names the file, and no allocation that the file's true size does not justify.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <new>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/gguf_config.h"
#include "runtime/model/checkpoint/safetensors.h"
#include "tests/runtime/model/checkpoint/files.h"

namespace {
std::atomic<size_t> largest_allocation{0};
}
#ifndef __SANITIZE_ADDRESS__  // the sanitizer has its own, which refuses absurd sizes
// Not inlined: the compiler would see malloc paired with delete.
[[gnu::noinline]] void* operator new(size_t bytes) {
  for (size_t seen = largest_allocation; bytes > seen && !largest_allocation.compare_exchange_weak(seen, bytes);) {
  }
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
#endif

namespace tandem {
namespace {

using testing::bytes_of;
using testing::entry;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::little;
using testing::safetensors;
using testing::small_llama;

// Larger than any of the files below, and than the window that reads them.
constexpr size_t kJustified = 512 << 10;

void expect_refused(const std::string& about, const std::string& expected, const std::function<void()>& parse) {
  SCOPED_TRACE(about);
  largest_allocation = 0;
  try {
    parse();
    ADD_FAILURE() << "was accepted";
  } catch (const Error& error) {
    EXPECT_THAT(std::string(error.what()), HasSubstr(expected));
    EXPECT_THAT(std::string(error.what()), HasSubstr("file"));
    EXPECT_EQ(std::string(error.what()).find_first_of("\n\r"), std::string::npos);
    EXPECT_LT(std::string(error.what()).size(), 1000u);
    EXPECT_EQ(error.code, Code::invalid_argument);
  }
  EXPECT_LT(largest_allocation, kJustified);
}

void parse_safetensors(const std::string& bytes) { (void)read_safetensors_header(*in_memory("file.safetensors", bytes_of(bytes))); }

// Everything that may be asked of a GGUF file when it is opened and when its text is read.
void parse_gguf(const std::string& bytes) {
  const auto file = in_memory("file.gguf", bytes_of(bytes));
  GgufHeader header = read_gguf_header(*file);
  std::vector<std::unique_ptr<Storage>> files;
  files.push_back(in_memory("file.gguf", bytes_of(bytes)));
  const FileTensors tensors(std::move(files), header.tensors);
  (void)gguf_config(*file, header, tensors);
  (void)gguf_generation_config(*file, header);
  (void)read_gguf_text(*file, header);
}

const std::string kTwo =
    "{" + entry("a", "F32", "[2,3]", 0, 24) + "," + entry("b", "BF16", "[4]", 24, 32) + ",\"__metadata__\":{\"format\":\"pt\"}}";

TEST(Malformed, SafetensorsHeaders) {
  parse_safetensors(safetensors(kTwo, 32));  // the valid one
  const std::string a = entry("a", "F32", "[2,3]", 0, 24);
  const auto one = [](const std::string& body, size_t data = 24) { return safetensors("{" + body + "}", data); };
  const std::string two63 = "9223372036854775808", two64 = "18446744073709551616";
  const struct {
    std::string about, bytes, expected;
  } cases[] = {
      {"empty file", "", "at least 8"},
      {"seven bytes", std::string(7, '\0'), "at least 8"},
      {"no header", little<uint64_t>(0), "no JSON object"},
      {"header length 2^64 - 1", little<uint64_t>(~0ull) + "{}", "at most 100000000"},
      {"header length 2^63", little<uint64_t>(1ull << 63) + "{}", "at most 100000000"},
      {"header length just above the cap", little<uint64_t>(100'000'001) + "{}", "at most 100000000"},
      {"header longer than the file", little<uint64_t>(3) + "{}", "it was cut"},
      {"header of the cap in a small file", little<uint64_t>(100'000'000) + "{}", "it was cut"},
      {"header that is a list", safetensors("[]", 0), "no JSON object"},
      {"header that begins with a space", safetensors(" {}", 0), "no JSON object"},
      {"broken JSON", safetensors("{\"a\":", 0), "broken at its byte"},
      {"text after the object", safetensors("{}x", 0), "broken at its byte"},
      {"invalid UTF-8 in a name", one("\"\xff\xfe\":{}", 0), "broken at its byte"},
      {"comma at the end", one(a + ","), "broken at its byte"},
      {"NUL padding", safetensors(std::string("{}\0\0", 4), 0), "NUL byte"},
      {"tensor that is a number", one("\"a\":1"), "must be an object"},
      {"tensor that is a list", one("\"a\":[]"), "must be an object"},
      {"tensor that is null", one("\"a\":null"), "must be an object"},
      {"no dtype", one("\"a\":{\"shape\":[6],\"data_offsets\":[0,24]}"), "has no dtype"},
      {"no shape", one("\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,24]}"), "has no shape"},
      {"no offsets", one("\"a\":{\"dtype\":\"F32\",\"shape\":[6]}"), "has no data_offsets"},
      {"unknown dtype", one(entry("a", "F4", "[6]", 0, 24)), "known: F32"},
      {"dtype in lower case", one(entry("a", "f32", "[6]", 0, 24)), "known: F32"},
      {"dtype that is a number", one("\"a\":{\"dtype\":7,\"shape\":[6],\"data_offsets\":[0,24]}"), "must be text"},
      {"dtype that is an object", one("\"a\":{\"dtype\":{},\"shape\":[6],\"data_offsets\":[0,24]}"), "must be text"},
      {"dtype twice", one("\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24]}"), "dtype twice"},
      {"shape twice", one("\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"shape\":[6],\"data_offsets\":[0,24]}"), "shape twice"},
      {"shape that is a number", one(entry("a", "F32", "6", 0, 24)), "list of whole numbers"},
      {"negative dimension", one(entry("a", "F32", "[-6]", 0, 24)), "list of whole numbers"},
      {"fraction as dimension", one(entry("a", "F32", "[6.0]", 0, 24)), "list of whole numbers"},
      {"text as dimension", one(entry("a", "F32", "[\"6\"]", 0, 24)), "list of whole numbers"},
      {"list as dimension", one(entry("a", "F32", "[[6]]", 0, 24)), "list of whole numbers"},
      {"null as dimension", one(entry("a", "F32", "[null]", 0, 24)), "list of whole numbers"},
      {"dimension of 2^63", one(entry("a", "F32", "[" + two63 + "]", 0, 24)), "list of whole numbers"},
      {"dimension of 2^64", one(entry("a", "F32", "[" + two64 + "]", 0, 24)), "list of whole numbers"},
      {"product that overflows", one(entry("a", "F32", "[4294967296,4294967296]", 0, 24)), "impossible shape"},
      {"product that overflows to the right size", one(entry("a", "U8", "[4294967297,4294967296,4294967296]", 0, 24)), "impossible shape"},
      {"bytes that overflow", one(entry("a", "F64", "[4611686018427387904]", 0, 0), 0), "impossible shape"},
      {"nine dimensions", one(entry("a", "F32", "[1,1,1,1,1,1,1,1,6]", 0, 24)), "more than 8 dimensions"},
      {"one offset", one("\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0]}"), "two whole numbers"},
      {"three offsets", one("\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24,24]}"), "two whole numbers"},
      {"negative offset", one("\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[-24,0]}"), "two whole numbers"},
      {"offsets that are an object", one("\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":{}}"), "two whole numbers"},
      {"offsets in reverse", one(entry("a", "F32", "[6]", 24, 0)), "the file was cut"},
      {"offsets beyond the file", one(entry("a", "F32", "[6]", 8, 32)), "the file was cut"},
      {"offset of 2^64 - 1", one(entry("a", "F32", "[6]", 0, ~0ull)), "the file was cut"},
      {"fewer bytes than the shape", one(entry("a", "F32", "[7]", 0, 24)), "need 28"},
      {"more bytes than the shape", one(entry("a", "F32", "[5]", 0, 24)), "need 20"},
      {"scalar with two elements' bytes", one(entry("a", "F32", "[]", 0, 8), 8), "need 4"},
      {"a hole before the first", one(entry("a", "F32", "[5]", 4, 24)), "must be 0"},
      {"a hole between", one(entry("a", "U8", "[4]", 0, 4) + "," + entry("b", "U8", "[4]", 8, 12), 12), "must be 4"},
      {"an overlap", one(entry("a", "U8", "[8]", 0, 8) + "," + entry("b", "U8", "[8]", 4, 12), 12), "must be 8"},
      {"the same bytes twice", one(entry("a", "U8", "[8]", 0, 8) + "," + entry("b", "U8", "[8]", 0, 8), 8), "must be 8"},
      {"bytes after the last tensor", one(a, 25), "1 bytes after"},
      {"data without tensors", safetensors("{}", 4), "4 bytes after"},
      {"metadata that is a list", one("\"__metadata__\":[]", 0), "must be text"},
      {"metadata with a number", one("\"__metadata__\":{\"a\":1}", 0), "must be text"},
      {"metadata twice", one("\"__metadata__\":{},\"__metadata__\":{}", 0), "twice"},
      {"deep nesting in an unknown field", one("\"a\":{\"x\":" + std::string(10000, '[') + std::string(10000, ']') + "}", 0),
       "nested deeper"},
      {"a name with a line break, cut", one(entry("a\\nerror: b", "F32", "[7]", 0, 24)), "'a\\x0aerror: b'"},
      {"a very long name", one(entry(std::string(5000, 'n'), "F32", "[7]", 0, 24)), "nnn...'"},
  };
  for (const auto& c : cases) expect_refused(c.about, c.expected, [&] { parse_safetensors(c.bytes); });

  const std::string twice = one(entry("a", "U8", "[4]", 0, 4) + "," + entry("a", "U8", "[4]", 4, 8), 8);
  expect_refused("one name twice", "appears twice", [&] {
    std::vector<std::unique_ptr<Storage>> files;
    files.push_back(in_memory("file.safetensors", bytes_of(twice)));
    auto tensors = read_safetensors_header(*files.front());
    FileTensors(std::move(files), std::move(tensors));
  });
}

TEST(Malformed, SafetensorsIndex) {
  const struct {
    std::string about, text, expected;
  } cases[] = {
      {"empty", "", "broken"},
      {"a list", "[]", "must be an object"},
      {"a number", "3", "must be an object"},
      {"no map", "{\"metadata\":{\"total_size\":7}}", "has no weight_map"},
      {"map that is a list", "{\"weight_map\":[]}", "weight_map is a list"},
      {"empty map", "{\"weight_map\":{}}", "empty weight_map"},
      {"map twice", "{\"weight_map\":{},\"weight_map\":{}}", "appears twice"},
      {"file that is a number", "{\"weight_map\":{\"a\":1}}", "must be a file name"},
      {"file that is a list", "{\"weight_map\":{\"a\":[]}}", "must be a file name"},
      {"parent directory", "{\"weight_map\":{\"a\":\"../x.safetensors\"}}", "plain name"},
      {"absolute path", "{\"weight_map\":{\"a\":\"/etc/x.safetensors\"}}", "plain name"},
      {"inner directory", "{\"weight_map\":{\"a\":\"b/x.safetensors\"}}", "plain name"},
      {"backslash", "{\"weight_map\":{\"a\":\"..\\\\x.safetensors\"}}", "plain name"},
      {"NUL in the name", "{\"weight_map\":{\"a\":\"x\\u0000.safetensors\"}}", "plain name"},
      {"another kind of file", "{\"weight_map\":{\"a\":\"pytorch_model.bin\"}}", "plain name"},
      {"no name", "{\"weight_map\":{\"a\":\"\"}}", "plain name"},
      {"tensor twice", "{\"weight_map\":{\"a\":\"x.safetensors\",\"a\":\"y.safetensors\"}}", "twice"},
      {"text after a NUL", std::string("{\"weight_map\":{\"a\":\"x.safetensors\"}}") + std::string("\0{", 2), "NUL byte"},
      {"cut", "{\"weight_map\":{\"a\":\"x.safetensors\"", "broken"},
  };
  for (const auto& c : cases) expect_refused(c.about, c.expected, [&] { parse_safetensors_index(c.text, "file.index.json"); });
}

TEST(Malformed, GgufHeaders) {
  parse_gguf(small_llama().build());  // the valid one
  const std::string valid = small_llama().build();
  const auto with = [](const std::function<void(GgufBuilder&)>& change) {
    GgufBuilder b = small_llama();
    change(b);
    return b.build();
  };
  const auto key = [&](GgufType type, const std::string& value) { return with([&](GgufBuilder& b) { b.raw("x.y", type, value); }); };
  const auto array = [&](uint32_t element, uint64_t count, const std::string& rest = "") {
    return key(GgufType::array, little(element) + little(count) + rest);
  };
  const auto tensor = [&](const GgufBuilder::Tensor& t) { return with([&](GgufBuilder& b) { b.tensors[2] = t; }); };
  const uint64_t huge = ~0ull, two63 = 1ull << 63, two62 = 1ull << 62;
  const struct {
    std::string about, bytes, expected;
  } cases[] = {
      {"empty file", "", "at least 24"},
      {"magic only", "GGUF", "at least 24"},
      {"other magic", "GGML" + valid.substr(4), "does not begin with GGUF"},
      {"version 0", with([](auto& b) { b.version = 0; }), "must be 2 or 3"},
      {"version 1", with([](auto& b) { b.version = 1; }), "must be 2 or 3"},
      {"version 4", with([](auto& b) { b.version = 4; }), "must be 2 or 3"},
      {"big-endian", with([](auto& b) { b.version = 0x03000000; }), "big-endian"},
      {"2^64 - 1 keys", with([&](auto& b) { b.declared_keys = huge; }), "metadata keys"},
      {"more keys than bytes", with([&](auto& b) { b.declared_keys = 60000; }), "metadata keys"},
      {"2^64 - 1 tensors", with([&](auto& b) { b.declared_tensors = huge; }), "tensors (at most"},
      {"more tensors than bytes", with([&](auto& b) { b.declared_tensors = 1000000; }), "tensors (at most"},
      {"one key too many", with([](auto& b) { b.declared_keys = b.key_count + 1; }), ""},
      {"one key too few", with([](auto& b) { b.declared_keys = b.key_count - 1; }), ""},
      {"one tensor too many", with([](auto& b) { b.declared_tensors = 4; }), ""},
      {"key name of 2^64 - 1 bytes", with([&](auto& b) { b.keys += little(huge), ++b.key_count; }), "name of a metadata key"},
      {"key name beyond the file", with([](auto& b) { b.keys += little<uint64_t>(60000), ++b.key_count; }), "in the middle of its header"},
      {"a key twice", with([](auto& b) { b.u32("llama.block_count", 2); }), "appears twice"},
      {"value type 13", key(static_cast<GgufType>(13), "1234"), "value type 13"},
      {"value type 2^32 - 1", key(static_cast<GgufType>(0xffffffff), "1234"), "value type 4294967295"},
      {"bool of 2", key(GgufType::boolean, "\x02"), "must be 0 or 1"},
      {"text of 2^64 - 1 bytes", key(GgufType::string, little(huge)), "in the middle of its header"},
      {"text of 2^63 bytes", key(GgufType::string, little(two63)), "in the middle of its header"},
      {"text beyond the file", key(GgufType::string, little<uint64_t>(1 << 20)), "in the middle of its header"},
      {"array of arrays", array(9, 1, little<uint32_t>(0) + little<uint64_t>(0)), "array of arrays"},
      {"array of type 13", array(13, 1), "value type 13"},
      {"2^64 - 1 strings", array(8, huge), "elements of type string"},
      {"2^61 strings", array(8, 1ull << 61), "elements of type string"},
      {"2^63 numbers", array(10, two63), "elements of type u64"},
      {"2^62 floats: 2^64 bytes", array(6, two62), "elements of type f32"},
      {"more bytes than there are", array(0, 1 << 20), "elements of type u8"},
      {"string in an array of 2^64 - 1 bytes", array(8, 1, little(huge)), "in the middle of its header"},
      {"strings whose lengths add up to an overflow", array(8, 2, GgufBuilder::text("ab") + little(huge - 7)), "in the middle"},
      {"alignment 0", with([](auto& b) { b.u32("general.alignment", 0); }), "power of two"},
      {"alignment 24", with([](auto& b) { b.u32("general.alignment", 24); }), "power of two"},
      {"alignment 2^31", with([](auto& b) { b.u32("general.alignment", 1u << 31); }), "power of two"},
      {"alignment as text", with([](auto& b) { b.string("general.alignment", "32"); }), "power of two"},
      {"tensor name of 2^63 bytes",
       with([&](auto& b) { b.tensors.clear(), b.declared_tensors = 1, b.keys += "", b.key_count += 0; }) + little(two63) +
           std::string(64, 'x'),
       "name of a tensor"},
      {"five dimensions", tensor({"t", {32, 1, 1, 1, 1}, 0, 256}), "5 dimensions"},
      {"2^32 - 1 dimensions",
       with([](auto& b) { b.tensors.clear(), b.declared_tensors = 1; }) + GgufBuilder::text("t") + little<uint32_t>(0xffffffff) +
           std::string(64, 'x'),
       "4294967295 dimensions"},
      {"dimension of 0", tensor({"t", {32, 0}, 0, 256}), "a dimension of 0"},
      {"dimension of 2^63", tensor({"t", {32, two63}, 0, 256}), "a dimension of 9223372036854775808"},
      {"product that overflows", tensor({"t", {1ull << 32, 1ull << 32}, 0, 256}), "impossible shape"},
      {"product that overflows to 32", tensor({"t", {32, (1ull << 59) + 1}, 24, 256}), "impossible shape"},
      {"bytes that overflow", tensor({"t", {two62}, 28, 256}), "impossible shape"},
      {"unknown type", tensor({"t", {32}, 99, 256}), "has type 99"},
      {"retired type", tensor({"t", {32}, 4, 256}), "has type 4"},
      {"rows that cut a block", tensor({"t", {33}, 2, 256}), "multiple of 32"},
      {"rows that cut a large block", tensor({"t", {32, 8}, 12, 256}), "multiple of 256"},
      {"offset that is not aligned", tensor({"t", {4}, 0, 257}), "multiple of 32"},
      {"offset beyond the file", tensor({"t", {4}, 0, 1 << 20}), "the file was cut"},
      {"offset of 2^64 - 32", tensor({"t", {4}, 0, huge - 31}), "the file was cut"},
      {"more bytes than the file", tensor({"t", {1 << 20}, 0, 256}), "the file was cut"},
      {"two tensors on the same bytes", tensor({"t", {4}, 0, 0}), "overlap"},
      {"tensors that overlap in part", tensor({"t", {8}, 0, 96}), "overlap"},
      {"one name twice", tensor({"output_norm.weight", {4}, 0, 256}), "appears twice"},
      {"a name with a line break", tensor({"t\nerror: x", {33}, 2, 256}), "'t\\x0aerror: x'"},
      {"no architecture", GgufBuilder().u32("llama.block_count", 1).build() + std::string(8, 'x'), "general.architecture"},
      {"architecture that is a number", GgufBuilder().u32("general.architecture", 1).build(), "must be text"},
      {"rope base that is text", with([](auto& b) { b.string("llama.rope.scaling.factor", "2"); }), "must be a number"},
      {"length that is a fraction", GgufBuilder().string("general.architecture", "llama").f32("llama.embedding_length", 3e38f).build(),
       "must be an integer"},
      {"length above 2^63",
       GgufBuilder().string("general.architecture", "llama").raw("llama.embedding_length", GgufType::u64, little(huge)).build(),
       "must be an integer"},
      {"tokens that are numbers",
       GgufBuilder().string("general.architecture", "llama").numbers<int32_t>("tokenizer.ggml.tokens", GgufType::i32, {1}).build(),
       "must be strings"},
      {"tokens that are one text", GgufBuilder().string("general.architecture", "llama").string("tokenizer.ggml.tokens", "a").build(),
       "must be an array"},
      {"scores for other tokens",
       GgufBuilder().string("general.architecture", "llama").numbers<float>("tokenizer.ggml.scores", GgufType::f32, {1}).build(),
       "for each of the 0 tokens"},
      {"types that are floats",
       GgufBuilder().string("general.architecture", "llama").numbers<float>("tokenizer.ggml.token_type", GgufType::f32, {1}).build(),
       "must be integers"},
      {"beginning beyond the vocabulary", with([](auto& b) { b.u32("tokenizer.ggml.eos_token_id", 3); }), "there are 3 tokens"},
      {"beginning that is text", with([](auto& b) { b.string("tokenizer.ggml.eos_token_id", "3"); }), "must be an integer"},
      {"template that is a number", with([](auto& b) { b.u32("tokenizer.chat_template", 3); }), "must be text"},
      {"add_eos that is a number", with([](auto& b) { b.u32("tokenizer.ggml.add_eos_token", 1); }), "must be a bool"},
  };
  for (const auto& c : cases) expect_refused(c.about, c.expected, [&] { parse_gguf(c.bytes); });
}

TEST(Malformed, EveryTruncationIsRefused) {
  const std::string tensors = safetensors(kTwo, 32), gguf = small_llama().build();
  for (size_t length = 0; length < tensors.size(); ++length) {
    expect_refused("safetensors cut to " + std::to_string(length), "", [&] { parse_safetensors(tensors.substr(0, length)); });
  }
  for (size_t length = 0; length < gguf.size(); ++length) {
    expect_refused("GGUF cut to " + std::to_string(length), "", [&] { parse_gguf(gguf.substr(0, length)); });
  }
}

// Changing any one byte gives a valid file or an Error, never anything else.
TEST(Malformed, EveryChangedByteIsSurvived) {
  const auto survives = [](const std::string& valid, size_t length, const std::function<void(const std::string&)>& parse) {
    size_t refused = 0;
    for (size_t at = 0; at < length; ++at) {
      for (const unsigned char value :
           {0x00, 0x01, 0x7f, 0x80, 0xff, static_cast<int>(valid[at] ^ 0x01), static_cast<int>(valid[at] ^ 0x20)}) {
        std::string changed = valid;
        changed[at] = static_cast<char>(value);
        largest_allocation = 0;
        try {
          parse(changed);
        } catch (const Error& error) {
          ++refused;
        }
        EXPECT_LT(largest_allocation, kJustified) << "byte " << at << " = " << int{value};
      }
    }
    return refused;
  };
  const std::string tensors = safetensors(kTwo, 32), gguf = small_llama().build();
  EXPECT_GT(survives(tensors, tensors.size() - 32, parse_safetensors), 500u);
  EXPECT_GT(survives(gguf, gguf.size() - 800, parse_gguf), 500u);
}

TEST(Malformed, ConfigurationTexts) {
  const struct {
    std::string about, text, expected;
  } cases[] = {
      {"empty", "", "broken at its byte"},
      {"cut", "{\"a\":", "broken at its byte"},
      {"not JSON", "hello", "broken at its byte"},
      {"invalid UTF-8", "{\"a\":\"\xff\"}", "broken at its byte"},
      {"nested too deep", std::string(65, '[') + std::string(65, ']'), "nested deeper than 64"},
      {"nested far too deep", std::string(300000, '['), "nested deeper than 64"},
      {"text after a NUL", std::string("{}\0x", 4), "NUL byte"},
      {"a number out of range", "{\"a\":1e999}", "cannot be held"},
  };
  for (const auto& c : cases) expect_refused(c.about, c.expected, [&] { (void)parse_json(c.text, "file.json"); });
  EXPECT_NO_THROW(parse_json("\"" + std::string(100, '[') + "\\\"" + std::string(100, '[') + "\"", "file.json"));
}

}  // namespace
}  // namespace tandem
