#include "runtime/model/checkpoint/gguf.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "kernels/base/error.h"

namespace tandem {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied out of the file as they stand");

constexpr uint64_t kMaxKeys = 1 << 16, kMaxTensors = 1 << 20, kMaxKeyBytes = 65535, kMaxNameBytes = 1024, kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxDimensions = 4;
constexpr size_t kMaxParts = 1024;

// ggml's table (ggml.h, ggml-common.h): numbers that it has retired are absent.
constexpr GgufTensorType kTensorTypes[] = {
    {0, "fp32", 1, 4},       {1, "fp16", 1, 2},        {2, "q4_0", 32, 18},    {3, "q4_1", 32, 20},    {6, "q5_0", 32, 22},
    {7, "q5_1", 32, 24},     {8, "q8_0", 32, 34},      {9, "q8_1", 32, 36},    {10, "q2_k", 256, 84},  {11, "q3_k", 256, 110},
    {12, "q4_k", 256, 144},  {13, "q5_k", 256, 176},   {14, "q6_k", 256, 210}, {15, "q8_k", 256, 292}, {16, "iq2_xxs", 256, 66},
    {17, "iq2_xs", 256, 74}, {18, "iq3_xxs", 256, 98}, {19, "iq1_s", 256, 50}, {20, "iq4_nl", 32, 18}, {21, "iq3_s", 256, 110},
    {22, "iq2_s", 256, 82},  {23, "iq4_xs", 256, 136}, {24, "i8", 1, 1},       {25, "i16", 1, 2},      {26, "i32", 1, 4},
    {27, "i64", 1, 8},       {28, "f64", 1, 8},        {29, "iq1_m", 256, 56}, {30, "bf16", 1, 2},     {34, "tq1_0", 256, 54},
    {35, "tq2_0", 256, 66},  {39, "mxfp4", 32, 17},    {40, "nvfp4", 64, 36},  {41, "q1_0", 128, 18},
};

uint64_t width(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    default:
      return 0;
  }
}

double shortest(float value) {
  if (!std::isfinite(value)) return value;
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  double parsed = value;
  std::from_chars(text, end, parsed);
  return parsed;
}

// Walks a file forward through one window. What is skipped beyond the window is never read.
class Reader {
 public:
  Reader(const Storage& file, uint64_t begin, uint64_t end) : file_(file), base_(begin), end_(end) {}

  uint64_t position() const { return base_ + at_; }
  uint64_t left() const { return end_ - position(); }

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, need(sizeof(T)), sizeof(T));
    return value;
  }
  std::string text(uint64_t limit, std::string_view what) {
    const auto length = number<uint64_t>();
    if (length > limit) broken(std::string(what) + " is " + std::to_string(length) + " bytes long (at most " + std::to_string(limit) + ")");
    return bytes(length);
  }
  std::string bytes(uint64_t length) {
    if (length > left()) ended();
    std::string out;
    if (length <= filled_ - at_) {
      out.assign(reinterpret_cast<const char*>(window_.data() + at_), length);
    } else {
      out.resize(length);
      file_.read(position(), length, out.data());
    }
    skip(length);
    return out;
  }
  void skip(uint64_t bytes) {
    if (bytes <= filled_ - at_) {
      at_ += bytes;
      return;
    }
    if (bytes > left()) ended();
    base_ = position() + bytes;
    at_ = filled_ = 0;
  }
  void skip_texts(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) skip(number<uint64_t>());
  }
  [[noreturn]] void broken(const std::string& what) const { bad_input(file_.name(), what); }

 private:
  static constexpr uint64_t kWindow = 256 << 10;
  [[noreturn]] void ended() const {
    broken("ends at byte " + std::to_string(end_) + ", in the middle of its header (the file was cut, or a length in it is broken)");
  }
  const std::byte* need(uint64_t bytes) {
    if (bytes > filled_ - at_) {
      if (bytes > left()) ended();
      base_ = position();
      at_ = 0;
      filled_ = std::min(kWindow, end_ - base_);
      window_.resize(filled_);
      file_.read(base_, filled_, window_.data());
    }
    const std::byte* here = window_.data() + at_;
    at_ += bytes;
    return here;
  }

  const Storage& file_;
  uint64_t base_, end_;           // where the window begins, where reading must end
  uint64_t at_ = 0, filled_ = 0;  // in the window
  std::vector<std::byte> window_;
};

GgufType read_type(Reader& reader, const std::string& key) {
  const auto number = reader.number<uint32_t>();
  if (number > static_cast<uint32_t>(GgufType::f64)) {
    reader.broken("key " + in_quotes(key) + " has value type " + std::to_string(number) + " (known: 0 to 12)");
  }
  return static_cast<GgufType>(number);
}

GgufValue read_value(Reader& reader, const std::string& key) {
  switch (const GgufType type = read_type(reader, key)) {
    case GgufType::u8:
      return int64_t{reader.number<uint8_t>()};
    case GgufType::i8:
      return int64_t{reader.number<int8_t>()};
    case GgufType::u16:
      return int64_t{reader.number<uint16_t>()};
    case GgufType::i16:
      return int64_t{reader.number<int16_t>()};
    case GgufType::u32:
      return int64_t{reader.number<uint32_t>()};
    case GgufType::i32:
      return int64_t{reader.number<int32_t>()};
    case GgufType::i64:
      return reader.number<int64_t>();
    case GgufType::u64: {
      const auto value = reader.number<uint64_t>();
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return value;
      return static_cast<int64_t>(value);
    }
    case GgufType::f32:
      return shortest(reader.number<float>());
    case GgufType::f64:
      return reader.number<double>();
    case GgufType::boolean: {
      const auto value = reader.number<uint8_t>();
      if (value > 1) reader.broken("key " + in_quotes(key) + " is the bool " + std::to_string(value) + " (must be 0 or 1)");
      return value == 1;
    }
    case GgufType::string: {
      const auto length = reader.number<uint64_t>();
      if (length <= kLongText) return reader.bytes(length);
      const GgufArray place{.count = length, .offset = reader.position(), .bytes = length, .text = true};
      reader.skip(length);
      return place;
    }
    case GgufType::array: {
      GgufArray array{.element = read_type(reader, key)};
      array.count = reader.number<uint64_t>();
      array.offset = reader.position();
      if (array.element == GgufType::array) reader.broken("key " + in_quotes(key) + " is an array of arrays (must be an array of values)");
      const uint64_t smallest = array.element == GgufType::string ? 8 : width(array.element);
      if (array.count > reader.left() / smallest) {
        reader.broken("key " + in_quotes(key) + " declares " + std::to_string(array.count) + " elements of type " +
                      std::string(name(array.element)) + ", but only " + std::to_string(reader.left()) +
                      " bytes follow (the file was cut, or the count is broken)");
      }
      if (array.element == GgufType::string) {
        reader.skip_texts(array.count);
      } else {
        reader.skip(array.count * smallest);
      }
      array.bytes = reader.position() - array.offset;
      return array;
    }
    default:
      reader.broken("key " + in_quotes(key) + " has value type " + std::to_string(static_cast<uint32_t>(type)));
  }
}

uint64_t padded(uint64_t position, uint64_t alignment) { return (position + alignment - 1) / alignment * alignment; }

std::vector<TensorInfo> read_tensor_table(Reader& reader, uint64_t count, const std::string& file, uint32_t index) {
  std::vector<TensorInfo> tensors;
  for (uint64_t i = 0; i < count; ++i) {
    TensorInfo tensor{.name = reader.text(kMaxNameBytes, "the name of a tensor"), .file = index};
    const std::string what = "tensor " + in_quotes(tensor.name);
    const auto dimensions = reader.number<uint32_t>();
    if (dimensions > kMaxDimensions) reader.broken(what + " has " + std::to_string(dimensions) + " dimensions (at most 4)");
    for (uint32_t d = 0; d < dimensions; ++d) {
      const auto size = reader.number<uint64_t>();
      if (size == 0 || size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        reader.broken(what + " has a dimension of " + std::to_string(size) + " (must be 1 to 2^63 - 1)");
      }
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));  // the file has the innermost first
    }
    const auto number = reader.number<uint32_t>();
    const GgufTensorType* type = find_gguf_tensor_type(number);
    if (!type) reader.broken(what + " has type " + std::to_string(number) + ", which is not a known GGUF tensor type");
    const uint64_t elements = element_count(tensor.shape, file, tensor.name);
    const uint64_t row = tensor.shape.empty() ? 1 : static_cast<uint64_t>(tensor.shape.back());
    if (row % type->block != 0) {
      reader.broken(what + " has rows of " + std::to_string(row) + " elements (" + std::string(type->name) + " needs a multiple of " +
                    std::to_string(type->block) + ")");
    }
    if (__builtin_mul_overflow(elements / type->block, uint64_t{type->bytes}, &tensor.bytes)) {
      reader.broken(what + " has an impossible shape (its bytes must be fewer than 2^64)");
    }
    tensor.type = type->name;
    tensor.offset = reader.number<uint64_t>();  // in the data, for now
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

// Offsets become positions in the file; every tensor lies in the file, aligned, and on nobody else's bytes.
void place_tensors(std::vector<TensorInfo>& tensors, uint64_t data_begin, uint64_t alignment, const Storage& file) {
  std::vector<const TensorInfo*> order;
  for (TensorInfo& tensor : tensors) {
    const std::string what = "tensor " + in_quotes(tensor.name);
    if (tensor.offset % alignment != 0) {
      bad_input(file.name(),
                what + " has offset " + std::to_string(tensor.offset) + " (must be a multiple of " + std::to_string(alignment) + ")");
    }
    const uint64_t data_bytes = file.size() > data_begin ? file.size() - data_begin : 0;
    if (tensor.bytes > data_bytes || tensor.offset > data_bytes - tensor.bytes) {
      bad_input(file.name(), what + " needs " + std::to_string(tensor.bytes) + " bytes from byte " + std::to_string(tensor.offset) +
                                 " of the data, of which the file has " + std::to_string(data_bytes) + " (the file was cut)");
    }
    tensor.offset += data_begin;
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes) {
      bad_input(file.name(), "tensors " + in_quotes(order[i - 1]->name) + " and " + in_quotes(order[i]->name) + " overlap");
    }
  }
}

const int64_t* integer(const GgufHeader& header, std::string_view key) {
  const GgufValue* value = header.find(key);
  return value ? std::get_if<int64_t>(value) : nullptr;
}

template <typename T>
std::optional<T> scalar(const GgufHeader& header, std::string_view key, const std::string& file, std::string_view expected) {
  const GgufValue* value = header.find(key);
  if (!value) return std::nullopt;
  if (const T* found = std::get_if<T>(value)) return *found;
  bad_input(file, std::string(key) + " has another type (must be " + std::string(expected) + ")");
}

std::optional<std::string> text(const Storage& file, const GgufHeader& header, std::string_view key) {
  const GgufValue* value = header.find(key);
  if (!value) return std::nullopt;
  if (const auto* found = std::get_if<std::string>(value)) return *found;
  const auto* array = std::get_if<GgufArray>(value);
  if (!array || !array->text) bad_input(file.name(), std::string(key) + " has another type (must be text)");
  if (array->bytes > kTextLimit) bad_input(file.name(), std::string(key) + " has more than " + std::to_string(kTextLimit) + " bytes");
  std::string out(array->bytes, '\0');
  file.read(array->offset, out.size(), out.data());
  return out;
}

const GgufArray* array(const Storage& file, const GgufHeader& header, std::string_view key) {
  const GgufValue* value = header.find(key);
  if (!value) return nullptr;
  if (const auto* found = std::get_if<GgufArray>(value); found && !found->text) return found;
  bad_input(file.name(), std::string(key) + " is a single value (must be an array)");
}

// "PREFIX-00001-of-00003.gguf": the prefix, 1 and 3; nothing for other names.
struct PartName {
  std::string prefix;
  int64_t part = 0, parts = 0;
  std::string path(int64_t number) const {
    char suffix[64];
    std::snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", static_cast<int>(number), static_cast<int>(parts));
    return prefix + suffix;
  }
};
std::optional<PartName> parse_part_name(const std::string& path) {
  constexpr std::string_view form = "-#####-of-#####.gguf";
  if (path.size() <= form.size()) return std::nullopt;
  PartName name{.prefix = path.substr(0, path.size() - form.size())};
  const std::string_view tail = std::string_view(path).substr(name.prefix.size());
  for (size_t i = 0; i < form.size(); ++i) {
    const bool digit = tail[i] >= '0' && tail[i] <= '9';
    if (form[i] == '#' ? !digit : tail[i] != form[i]) return std::nullopt;
    if (digit) {
      int64_t& number = i < 7 ? name.part : name.parts;
      number = number * 10 + (tail[i] - '0');
    }
  }
  return name;
}

}  // namespace

std::string_view name(GgufType type) {
  constexpr std::string_view names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
  return names[static_cast<uint32_t>(type)];
}

const GgufTensorType* find_gguf_tensor_type(uint32_t number) {
  const auto* found = std::ranges::find(kTensorTypes, number, &GgufTensorType::number);
  return found == std::end(kTensorTypes) ? nullptr : found;
}

const GgufValue* GgufHeader::find(std::string_view key) const {
  const auto found = metadata.find(key);
  return found == metadata.end() ? nullptr : &found->second;
}

GgufHeader read_gguf_header(const Storage& file, uint32_t index) {
  Reader reader(file, 0, file.size());
  if (file.size() < 24) reader.broken("has " + std::to_string(file.size()) + " bytes (a GGUF file has at least 24)");
  if (reader.bytes(4) != "GGUF") reader.broken("does not begin with GGUF (is this a GGUF file?)");
  GgufHeader header;
  header.version = reader.number<uint32_t>();
  if (header.version == 0x02000000 || header.version == 0x03000000) reader.broken("is a big-endian GGUF file (must be little-endian)");
  if (header.version != 2 && header.version != 3) {
    reader.broken("has GGUF version " + std::to_string(header.version) + " (must be 2 or 3)");
  }
  const auto tensors = reader.number<uint64_t>(), keys = reader.number<uint64_t>();
  // 13 and 25 bytes: an empty name and a one-byte value, an empty name and no dimension.
  if (keys > kMaxKeys || keys > reader.left() / 13) {
    reader.broken("declares " + std::to_string(keys) + " metadata keys (at most 65536, and no more than the file can hold)");
  }
  if (tensors > kMaxTensors || tensors > reader.left() / 24) {
    reader.broken("declares " + std::to_string(tensors) + " tensors (at most 1048576, and no more than the file can hold)");
  }
  for (uint64_t i = 0; i < keys; ++i) {
    std::string key = reader.text(kMaxKeyBytes, "the name of a metadata key");
    GgufValue value = read_value(reader, key);
    if (header.metadata.contains(key)) reader.broken("key " + in_quotes(key) + " appears twice");
    header.metadata.emplace(std::move(key), std::move(value));
  }
  if (const GgufValue* value = header.find("general.alignment")) {
    const auto* alignment = std::get_if<int64_t>(value);
    if (!alignment || *alignment < 1 || *alignment > static_cast<int64_t>(kMaxAlignment) ||
        !std::has_single_bit(static_cast<uint64_t>(*alignment))) {
      reader.broken("general.alignment is not usable (must be a power of two from 1 to 1048576)");
    }
    header.alignment = static_cast<uint64_t>(*alignment);
  }
  header.tensors = read_tensor_table(reader, tensors, file.name(), index);
  place_tensors(header.tensors, padded(reader.position(), header.alignment), header.alignment, file);
  return header;
}

std::vector<int64_t> read_gguf_integers(const Storage& file, const GgufArray& array, std::string_view key) {
  if (array.element == GgufType::string || array.element == GgufType::f32 || array.element == GgufType::f64 || array.text) {
    bad_input(file.name(), std::string(key) + " is an array of " + std::string(name(array.element)) + " (must be integers)");
  }
  Reader reader(file, array.offset, array.offset + array.bytes);
  std::vector<int64_t> out(array.count);
  for (int64_t& value : out) {
    switch (array.element) {
      case GgufType::u8:
      case GgufType::boolean:
        value = reader.number<uint8_t>();
        break;
      case GgufType::i8:
        value = reader.number<int8_t>();
        break;
      case GgufType::u16:
        value = reader.number<uint16_t>();
        break;
      case GgufType::i16:
        value = reader.number<int16_t>();
        break;
      case GgufType::u32:
        value = reader.number<uint32_t>();
        break;
      case GgufType::i32:
        value = reader.number<int32_t>();
        break;
      default:
        value = static_cast<int64_t>(reader.number<uint64_t>());
        break;
    }
  }
  return out;
}

std::vector<float> read_gguf_numbers(const Storage& file, const GgufArray& array, std::string_view key) {
  std::vector<float> out;
  if (array.element == GgufType::f32 || array.element == GgufType::f64) {
    Reader reader(file, array.offset, array.offset + array.bytes);
    out.resize(array.count);
    for (float& value : out) value = array.element == GgufType::f32 ? reader.number<float>() : static_cast<float>(reader.number<double>());
    return out;
  }
  for (const int64_t value : read_gguf_integers(file, array, key)) out.push_back(static_cast<float>(value));
  return out;
}

std::vector<std::string> read_gguf_strings(const Storage& file, const GgufArray& array, std::string_view key) {
  if (array.element != GgufType::string) {
    bad_input(file.name(), std::string(key) + " is an array of " + std::string(name(array.element)) + " (must be strings)");
  }
  Reader reader(file, array.offset, array.offset + array.bytes);
  std::vector<std::string> out;
  out.reserve(array.count);
  for (uint64_t i = 0; i < array.count; ++i) out.push_back(reader.text(array.bytes, key));
  return out;
}

GgufText read_gguf_text(const Storage& file, const GgufHeader& header) {
  GgufText out;
  const auto strings = [&](std::string_view key) {
    const GgufArray* found = array(file, header, key);
    return found ? read_gguf_strings(file, *found, key) : std::vector<std::string>{};
  };
  out.tokens = strings("tokenizer.ggml.tokens");
  out.merges = strings("tokenizer.ggml.merges");
  if (const GgufArray* types = array(file, header, "tokenizer.ggml.token_type")) {
    for (const int64_t type : read_gguf_integers(file, *types, "tokenizer.ggml.token_type"))
      out.types.push_back(static_cast<int32_t>(type));
  }
  if (const GgufArray* scores = array(file, header, "tokenizer.ggml.scores")) {
    out.scores = read_gguf_numbers(file, *scores, "tokenizer.ggml.scores");
  }
  const auto matches = [&](size_t count, std::string_view key) {
    if (count != 0 && count != out.tokens.size()) {
      bad_input(file.name(), std::string(key) + " has " + std::to_string(count) + " elements (must have one for each of the " +
                                 std::to_string(out.tokens.size()) + " tokens)");
    }
  };
  matches(out.types.size(), "tokenizer.ggml.token_type");
  matches(out.scores.size(), "tokenizer.ggml.scores");
  out.model = text(file, header, "tokenizer.ggml.model").value_or("");
  out.pre = text(file, header, "tokenizer.ggml.pre").value_or("");
  out.architecture = text(file, header, "general.architecture").value_or("");
  out.chat_template = text(file, header, "tokenizer.chat_template").value_or("");
  const auto id = [&](std::string_view key) -> std::optional<int32_t> {
    const auto value = scalar<int64_t>(header, key, file.name(), "an integer");
    if (!value || *value == 0xffffffff || *value == -1) return std::nullopt;  // how "none" is written
    if (*value < 0 || *value >= static_cast<int64_t>(out.tokens.size())) {
      bad_input(file.name(),
                std::string(key) + " is " + std::to_string(*value) + " (there are " + std::to_string(out.tokens.size()) + " tokens)");
    }
    return static_cast<int32_t>(*value);
  };
  out.bos = id("tokenizer.ggml.bos_token_id");
  out.eos = id("tokenizer.ggml.eos_token_id");
  out.eot = id("tokenizer.ggml.eot_token_id");
  out.unknown = id("tokenizer.ggml.unknown_token_id");
  out.padding = id("tokenizer.ggml.padding_token_id");
  out.add_bos = scalar<bool>(header, "tokenizer.ggml.add_bos_token", file.name(), "a bool");
  out.add_eos = scalar<bool>(header, "tokenizer.ggml.add_eos_token", file.name(), "a bool");
  out.add_space_prefix = scalar<bool>(header, "tokenizer.ggml.add_space_prefix", file.name(), "a bool");
  return out;
}

GgufModel open_gguf(const std::string& path) {
  std::vector<std::unique_ptr<Storage>> files;
  files.push_back(open_file(path));
  GgufModel model{.header = read_gguf_header(*files.front())};
  std::vector<TensorInfo> tensors = std::move(model.header.tensors);
  const int64_t* count = integer(model.header, "split.count");
  if (count && *count > 1) {
    const int64_t* number = integer(model.header, "split.no");
    const auto name = parse_part_name(path);
    if (!name || name->parts != *count) {
      bad_input(path, "is one of " + std::to_string(*count) + " parts (its name must end in " + PartName{.parts = *count}.path(1) + ")");
    }
    if (!number || *number != 0 || name->part != 1) {
      bad_input(path,
                "is part " + std::to_string(name->part) + " of " + std::to_string(*count) + " (open the first, " + name->path(1) + ")");
    }
    if (*count > static_cast<int64_t>(kMaxParts)) bad_input(path, "has " + std::to_string(*count) + " parts (at most 1024)");
    for (int64_t part = 2; part <= *count; ++part) {
      const std::string other = name->path(part);
      try {
        files.push_back(open_file(other));
      } catch (const Error& error) {
        if (error.code != Code::not_found) throw;
        fail(Code::not_found, other, "is part " + std::to_string(part) + " of " + path + " but is not there (the download is incomplete)");
      }
      GgufHeader header = read_gguf_header(*files.back(), static_cast<uint32_t>(files.size() - 1));
      const int64_t *its_number = integer(header, "split.no"), *its_count = integer(header, "split.count");
      if (!its_number || *its_number != part - 1 || !its_count || *its_count != *count) {
        bad_input(other,
                  "does not say that it is part " + std::to_string(part) + " of " + std::to_string(*count) + " (split.no, split.count)");
      }
      std::move(header.tensors.begin(), header.tensors.end(), std::back_inserter(tensors));
    }
    const int64_t* total = integer(model.header, "split.tensors.count");
    if (total && *total != static_cast<int64_t>(tensors.size())) {
      bad_input(path, "declares " + std::to_string(*total) + " tensors, but its parts hold " + std::to_string(tensors.size()));
    }
  }
  model.tensors = std::make_unique<FileTensors>(std::move(files), std::move(tensors));
  return model;
}

}  // namespace tandem
