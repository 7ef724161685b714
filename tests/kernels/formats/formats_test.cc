// Bytes and values against the libraries that define them (fixtures), byte counts, cuts, refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>

#include "kernels/base/error.h"
#include "kernels/formats/format.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/nf4.h"
#include "tests/kernels/formats/fixture.h"

namespace tandem {
namespace {

using test::read_safetensors;
using test::Tensor;

struct Stored {
  std::vector<std::vector<std::byte>> bytes;
  QuantizedView view;
};
Stored allocate(const Format& format, int64_t rows, int64_t cols) {
  Stored s;
  s.view = {&format, rows, cols};
  for (const Component& c : format.components(rows, cols)) s.bytes.emplace_back(c.bytes);
  for (size_t i = 0; i < s.bytes.size(); ++i) s.view.data[i] = s.bytes[i].data();
  return s;
}
Stored quantize(const Format& format, const std::vector<float>& source, int64_t rows, int64_t cols) {
  Stored s = allocate(format, rows, cols);
  std::vector<std::byte*> out;
  for (auto& b : s.bytes) out.push_back(b.data());
  format.quantize(source.data(), rows, cols, out);
  return s;
}
std::vector<float> dequantize(const QuantizedView& view) {
  std::vector<float> out(static_cast<size_t>(view.rows * view.cols), std::nanf(""));
  view.format->dequantize(view, 0, view.rows, out.data());
  return out;
}
std::vector<float> random_values(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(generator);
  return values;
}
std::vector<uint32_t> bits(const std::vector<float>& values) {
  std::vector<uint32_t> list;
  for (float v : values) list.push_back(std::bit_cast<uint32_t>(v));
  return list;
}
DType dtype_of(const std::string& name) { return name == "F32" ? DType::f32 : name == "F16" ? DType::f16 : DType::bf16; }

// Copies what ranges() names, as a loader would.
Stored cut(const Stored& whole, const Rectangle& part) {
  const QuantizedView& v = whole.view;
  Stored s;
  s.view = {v.format, part.rows(), part.cols()};
  s.view.first_element = part.row_begin * v.cols + part.col_begin;
  s.view.whole_cols = v.cols;
  const auto ranges = v.format->ranges(v.rows, v.cols, part);
  EXPECT_EQ(ranges.size(), whole.bytes.size());
  for (size_t i = 0; i < ranges.size(); ++i) {
    auto& to = s.bytes.emplace_back();
    for (const ByteRange& r : ranges[i]) {
      EXPECT_LE(r.end, whole.bytes[i].size());
      to.insert(to.end(), whole.bytes[i].begin() + static_cast<int64_t>(r.begin), whole.bytes[i].begin() + static_cast<int64_t>(r.end));
    }
  }
  for (size_t i = 0; i < s.bytes.size(); ++i) s.view.data[i] = s.bytes[i].data();
  return s;
}

TEST(Formats, NamesAreUniqueAndFound) {
  for (const Format* f : formats()) EXPECT_EQ(find_format(f->name()), f);
  EXPECT_EQ(find_format("nf5"), nullptr);
  EXPECT_THAT([] { format("nf5"); }, testing::ThrowsMessage<Error>(testing::AllOf(testing::HasSubstr("nf5"), testing::HasSubstr("q4_k"))));
  EXPECT_EQ(dense_format(DType::bf16).name(), "bf16");
  EXPECT_THROW(dense_format(DType::i8), Error);
}

TEST(Formats, BlocksInTheName) {
  EXPECT_EQ(find_format("nf4:64"), find_format("nf4"));
  EXPECT_EQ(find_format("fp4_dq:256")->name(), "fp4_dq:256");
  EXPECT_EQ(find_format("fp4_dq:256")->block(), 256);
  EXPECT_EQ(family(*find_format("fp4_dq:256")), "fp4_dq");
  for (const char* name : {"nf4:48", "nf4:", "nf4:16", "nf4:8192", "nf4:64x", "q4_0:32", ":64", "bf16:1"}) EXPECT_EQ(find_format(name), nullptr) << name;
  EXPECT_THAT([] { format("nf4:48"); }, testing::ThrowsMessage<Error>(testing::HasSubstr("32, 64, 128")));
}

TEST(Formats, RefusesShapesByName) {
  for (const char* name : {"q4_0", "q8_0", "q6_k"}) {
    EXPECT_THAT([&] { format(name).components(3, 33); }, testing::ThrowsMessage<Error>(testing::HasSubstr("[3, 33]")));
  }
  for (const Format* f : formats()) {
    EXPECT_THROW(f->components(-1, 256), Error) << f->name();
    EXPECT_THROW(f->components(int64_t{1} << 40, int64_t{1} << 40), Error) << f->name();
  }
}

TEST(Formats, StoredBytes) {
  EXPECT_EQ(stored_bytes(format("q4_1"), 576, 1536), 576u * 1536 / 32 * 20);
  EXPECT_EQ(stored_bytes(format("q6_k"), 7, 512), 7u * 2 * 210);
  EXPECT_EQ(stored_bytes(format("fp16"), 3, 5), 30u);
  // 0.5 + 4/64 and 0.5 + 1/64 + 4/16384 bytes a parameter, besides the maps.
  EXPECT_EQ(stored_bytes(format("nf4"), 4096, 4096), 4096u * 4096 / 2 + 4096u * 4096 / 64 * 4 + 64);
  EXPECT_EQ(stored_bytes(format("nf4_dq"), 4096, 4096), 4096u * 4096 / 2 + 4096u * 64 + 1024u * 4 + 64 + 1024 + 4);
}

TEST(Formats, FourBitEqualsBitsandbytes) {
  const std::string folder = TANDEM_FIXTURES "/nf4/";
  const auto tensors = read_safetensors(folder + "cases.safetensors");
  std::ifstream file(folder + "cases.json");
  const auto cases = nlohmann::json::parse(file)["cases"];
  ASSERT_GT(cases.size(), 20u);
  for (const auto& c : cases) {
    const std::string name = c["name"], type = c["quant_type"];
    SCOPED_TRACE(name);
    const bool nested = c["double_quant"];
    const FourBit f("tested", type == "nf4" ? Codebook::nf4 : Codebook::fp4, nested, c["blocksize"].get<int64_t>());
    const Tensor& input = tensors.at(c["input"].get<std::string>());
    const int64_t rows = c["shape"][0], cols = c["shape"][1];
    std::vector<float> source(static_cast<size_t>(rows * cols));
    widen(dtype_of(input.dtype), input.bytes.data(), source.size(), source.data());
    const Stored s = quantize(f, source, rows, cols);
    EXPECT_EQ(s.bytes[0], tensors.at(name + ".packed").bytes);
    EXPECT_EQ(s.bytes[1], tensors.at(name + ".absmax").bytes);
    if (nested) {
      EXPECT_EQ(s.bytes[3], tensors.at(name + ".nested_absmax").bytes);
      EXPECT_EQ(s.bytes[5], tensors.at(name + ".offset").bytes);
      const auto expected = tensors.at(name + ".absmax_dequantized").as<float>();
      std::vector<float> absmax(expected.size());
      f.absmax(s.view, 0, static_cast<int64_t>(expected.size()), absmax.data());
      EXPECT_EQ(bits(absmax), bits(expected));
    }
    const auto values = dequantize(s.view);
    for (const auto& [suffix, type_name] : {std::pair{".fp32", "F32"}, {".bf16", "BF16"}, {".fp16", "F16"}}) {
      const auto found = tensors.find(name + suffix);
      if (found == tensors.end()) continue;
      const DType to = dtype_of(type_name);
      std::vector<std::byte> rounded(found->second.bytes.size());
      narrow(to, values.data(), values.size(), rounded.data());
      if (type == "nf4") {
        EXPECT_EQ(rounded, found->second.bytes) << suffix;
        continue;
      }
      // FP4 code 8 is +0 or -0 in bitsandbytes, depending on where the element lies: compared as numbers.
      std::vector<float> ours(values.size()), theirs(values.size());
      widen(to, rounded.data(), ours.size(), ours.data());
      widen(to, found->second.bytes.data(), theirs.size(), theirs.data());
      EXPECT_EQ(ours, theirs) << suffix;
    }
  }
}

TEST(Formats, Int8EqualsBitsandbytes) {
  const auto tensors = read_safetensors(TANDEM_FIXTURES "/int8/cases.safetensors");
  const Format& f = format("int8");
  int compared = 0;
  for (const auto& [name, codes] : tensors) {
    if (!name.ends_with(".codes")) continue;
    SCOPED_TRACE(name);
    const std::string key = name.substr(0, name.size() - 6);
    const Tensor& input = tensors.at(key);
    std::vector<float> source(static_cast<size_t>(codes.shape[0] * codes.shape[1]));
    widen(dtype_of(input.dtype), input.bytes.data(), source.size(), source.data());
    const Stored s = quantize(f, source, codes.shape[0], codes.shape[1]);
    EXPECT_EQ(s.bytes[0], codes.bytes);
    EXPECT_EQ(s.bytes[1], tensors.at(key + ".SCB").bytes);
    EXPECT_EQ(bits(dequantize(s.view)), bits(tensors.at(key + ".values").as<float>()));
    ++compared;
  }
  EXPECT_EQ(compared, 28);
}

TEST(Formats, Fp8EqualsTorch) {
  const auto tensors = read_safetensors(TANDEM_FIXTURES "/fp8/cases.safetensors");
  int compared = 0;
  for (const auto& [name, codes] : tensors) {
    if (!name.ends_with(".codes")) continue;
    SCOPED_TRACE(name);
    const std::string key = name.substr(0, name.size() - 6), input = key.substr(0, key.find('.'));
    const Stored s = quantize(format(key.substr(key.find('.') + 1)), tensors.at(input).as<float>(), codes.shape[0], codes.shape[1]);
    EXPECT_EQ(s.bytes[0], codes.bytes);
    EXPECT_EQ(s.bytes[1], tensors.at(key + ".scale").bytes);
    EXPECT_EQ(bits(dequantize(s.view)), bits(tensors.at(key + ".values").as<float>()));
    ++compared;
  }
  EXPECT_EQ(compared, 21);
  // Every code, every number between two codes, both neighbours of it.
  const Tensor& numbers = tensors.at("numbers");
  const auto values = numbers.as<float>();
  const auto& expected = tensors.at("numbers_codes").bytes;
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(float_to_e4m3(values[i]), static_cast<uint8_t>(expected[i])) << values[i];
}

TEST(Formats, AbsmaxAndItsKinEqualTheirFormulas) {
  const auto tensors = read_safetensors(TANDEM_FIXTURES "/absmax/cases.safetensors");
  int compared = 0;
  for (const auto& [name, codes] : tensors) {
    if (!name.ends_with(".codes")) continue;
    SCOPED_TRACE(name);
    const std::string key = name.substr(0, name.size() - 6), input = key.substr(0, key.find('.'));
    const Stored s = quantize(format(key.substr(key.find('.') + 1)), tensors.at(input).as<float>(), codes.shape[0], codes.shape[1]);
    EXPECT_EQ(s.bytes[0], codes.bytes);
    EXPECT_EQ(s.bytes[1], tensors.at(key + ".scale").bytes);
    if (s.bytes.size() > 2) {
      EXPECT_EQ(s.bytes[2], tensors.at(key + ".zero").bytes);
    }
    EXPECT_EQ(dequantize(s.view), tensors.at(key + ".values").as<float>());
    ++compared;
  }
  EXPECT_EQ(compared, 24);
  for (const char* name : {"absmax", "absmax_row", "zeropoint", "minmax"}) {  // zeros stay zeros
    const std::vector<float> zeros(15, 0.0f);
    EXPECT_EQ(dequantize(quantize(format(name), zeros, 3, 5).view), zeros) << name;
  }
}

TEST(Formats, Int4EqualsQuanto) {
  const auto tensors = read_safetensors(TANDEM_FIXTURES "/int4/cases.safetensors");
  int compared = 0;
  for (const auto& [name, codes] : tensors) {
    if (!name.ends_with(".codes")) continue;
    SCOPED_TRACE(name);
    const std::string key = name.substr(0, name.size() - 6);
    const int64_t rows = codes.shape[0], cols = codes.shape[1];
    const Stored s = quantize(format(name.substr(0, name.find('.'))), tensors.at(key).as<float>(), rows, cols);
    std::vector<std::byte> unpacked;
    for (const std::byte b : s.bytes[0]) unpacked.insert(unpacked.end(), {b & std::byte{15}, b >> 4});
    EXPECT_EQ(unpacked, codes.bytes);
    EXPECT_EQ(s.bytes[1], tensors.at(key + ".scale").bytes);
    EXPECT_EQ(s.bytes[2], tensors.at(key + ".shift").bytes);
    EXPECT_EQ(bits(dequantize(s.view)), bits(tensors.at(key + ".values").as<float>()));
    ++compared;
  }
  EXPECT_EQ(compared, 5);
}

TEST(Formats, GroupsOfOneValue) {
  for (const char* name : {"int4", "int8_group", "int4:row", "int8_group:row"}) {
    const std::vector<float> values(2 * 128, -0.37f);
    EXPECT_EQ(dequantize(quantize(format(name), values, 2, 128).view), values) << name;
  }
  EXPECT_EQ(find_format("int4:row")->name(), "int4:row");
  EXPECT_EQ(find_format("nf4:row"), nullptr);
  EXPECT_THROW(format("int4").components(3, 96), Error);
  EXPECT_THROW(format("int4:row").components(3, 33), Error);
}

TEST(Formats, GgufBlocksEqualTheGgufPackage) {
  const auto tensors = read_safetensors(TANDEM_FIXTURES "/gguf/blocks.safetensors");
  int compared = 0;
  for (const auto& [name, tensor] : tensors) {
    const size_t dot = name.find('.');
    std::string type = name.substr(0, dot);
    for (char& c : type) c = static_cast<char>(std::tolower(c));
    const Format* f = find_format(type);
    if (f == nullptr || !name.ends_with(".bytes")) continue;
    SCOPED_TRACE(name);
    const std::string stem = name.substr(0, name.size() - 6);
    const int64_t rows = tensor.shape[0];
    QuantizedView view{f, rows, f->block()};
    view.data[0] = tensor.bytes.data();
    const auto values = dequantize(view), expected = tensors.at(stem + ".values").as<float>();
    ASSERT_EQ(values.size(), expected.size());
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(expected[i])) {
        EXPECT_TRUE(std::isnan(values[i])) << i;
      } else {
        EXPECT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(expected[i])) << i << ": " << values[i] << " " << expected[i];
      }
    }
    ++compared;
    const auto source = tensors.find(stem + ".source");
    if (source == tensors.end()) continue;
    try {
      EXPECT_EQ(quantize(*f, source->second.as<float>(), rows, f->block()).bytes[0], tensor.bytes);
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Code::failed_precondition);
      EXPECT_NE(type.substr(0, 2), "q4");
      EXPECT_NE(type, "q8_0");
    }
  }
  EXPECT_GE(compared, 15);
}

TEST(Formats, MeanFollowsTorch) {
  // Small integers have exact sums in any order: only the lengths of tails and levels are tried here, the fixtures have the rest.
  for (int64_t n : {1, 7, 8, 9, 31, 32, 33, 511, 512, 513, 4096, 70001}) {
    std::vector<float> values(static_cast<size_t>(n));
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += values[i] = static_cast<float>(i % 5);
    EXPECT_EQ(torch_mean(values.data(), n), static_cast<float>(sum) / static_cast<float>(n)) << n;
  }
}

TEST(Formats, SlicesDequantizeToTheirPartOfTheWhole) {
  std::vector<const Format*> all(formats().begin(), formats().end());
  for (const char* name : {"nf4:128", "fp4_dq:32", "nf4_dq:256", "int4:32", "int4:row", "int8_group:row", "fp8:128"}) all.push_back(&format(name));
  for (const Format* f : all) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{37, 512}, {70, 1280}, {9, 256}, {64, 96}, {40, 41}, {129, 64}}) {
      try {
        f->components(rows, cols);
      } catch (const Error&) {
        continue;
      }
      SCOPED_TRACE(std::string(f->name()) + " " + std::to_string(rows) + "x" + std::to_string(cols));
      const auto source = random_values(static_cast<size_t>(rows * cols), 7);
      Stored whole;
      try {
        whole = quantize(*f, source, rows, cols);
      } catch (const Error&) {  // random bytes are blocks too
        whole = allocate(*f, rows, cols);
        std::mt19937 generator(3);
        for (auto& part : whole.bytes) {
          for (auto& b : part) b = static_cast<std::byte>(generator() & 0x3f);
        }
      }
      const auto values = dequantize(whole.view);
      const Grain grain = f->grain(rows, cols);
      for (int64_t r0 = 0; r0 < rows; r0 += grain.rows * 5) {
        for (int64_t c0 = 0; c0 < cols; c0 += std::max(grain.cols, cols / 3 / grain.cols * grain.cols)) {
          const Rectangle part{r0, std::min(rows, r0 + grain.rows * 10), c0, std::min(cols, c0 + grain.cols * 3)};
          const auto slice = cut(whole, part);
          const auto got = dequantize(slice.view);
          for (int64_t r = 0; r < part.rows(); ++r) {
            for (int64_t c = 0; c < part.cols(); ++c) {
              const float expected = values[(r0 + r) * cols + c0 + c], actual = got[r * part.cols() + c];
              ASSERT_EQ(std::bit_cast<uint32_t>(expected), std::bit_cast<uint32_t>(actual)) << r0 + r << ", " << c0 + c;
            }
          }
          if (part.cols() > 1) {  // one row from the middle of a slice
            std::vector<float> row(static_cast<size_t>(part.cols()));
            const int64_t r = part.rows() / 2;
            f->dequantize(slice.view, r, 1, row.data());
            EXPECT_EQ(bits(row), bits({got.begin() + r * part.cols(), got.begin() + (r + 1) * part.cols()}));
          }
        }
      }
    }
  }
}

TEST(Formats, FourBitKeepsWhatIsNotANumberInSight) {
  const FourBit f("nf4", Codebook::nf4, false);
  std::vector<float> source(64, 0.5f);
  source[10] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(dequantize(quantize(f, source, 1, 64).view)[0]));
}

}  // namespace
}  // namespace tandem
