// GGUF files, versions 2 and 3, whole or split (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). A header is walked once;
// of long arrays and texts only the place is kept, so that opening a file does not pay for its vocabulary. Plain values; any thread.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "runtime/model/checkpoint/file_tensors.h"

namespace tandem {

enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
std::string_view name(GgufType type);

// An array, or a text of more than kLongText bytes, left in the file.
struct GgufArray {
  GgufType element = GgufType::u8;  // u8 for a long text
  uint64_t count = 0;
  uint64_t offset = 0, bytes = 0;  // of the elements in the file; each string is preceded by its length
  bool text = false;
};
constexpr uint64_t kLongText = 64 << 10;

// Integers of every width become int64_t, or uint64_t above its range; f32 becomes the double with its shortest spelling (1e-05, not
// 9.999999747378752e-06), as config.json has it.
using GgufValue = std::variant<int64_t, uint64_t, double, bool, std::string, GgufArray>;

struct GgufHeader {
  uint32_t version = 0;
  uint64_t alignment = 32;
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<TensorInfo> tensors;  // in the order of the file's table

  const GgufValue* find(std::string_view key) const;
};

// Errors: Code::invalid_argument naming the file, and the key or tensor.
GgufHeader read_gguf_header(const Storage& file, uint32_t index = 0);

// Elements of an array of integers (bools too), of numbers, of strings. Errors: Code::invalid_argument when it holds something else.
std::vector<int64_t> read_gguf_integers(const Storage& file, const GgufArray& array, std::string_view key);
std::vector<float> read_gguf_numbers(const Storage& file, const GgufArray& array, std::string_view key);
std::vector<std::string> read_gguf_strings(const Storage& file, const GgufArray& array, std::string_view key);

// The tokenizer.* keys. Absent keys leave their field empty.
GgufText read_gguf_text(const Storage& file, const GgufHeader& header);

// A whole model: the first file's metadata, the tensors of all parts.
struct GgufModel {
  GgufHeader header;  // of the first file; tensors moved into the source
  std::unique_ptr<FileTensors> tensors;
};
// Errors: Code::not_found for a missing part; Code::invalid_argument, also when `path` is a part other than the first.
GgufModel open_gguf(const std::string& path);

// Block size in elements and bytes of a tensor type by its number; null for a number that is not known.
struct GgufTensorType {
  uint32_t number;
  std::string_view name;  // TensorInfo.type
  uint32_t block, bytes;
};
const GgufTensorType* find_gguf_tensor_type(uint32_t number);

}  // namespace tandem
