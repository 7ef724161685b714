// How quantized weights are spelled in safetensors files, and quantization_config with them: the way back of quantized_method.h.
// quantized_writer.cc has the list. Values; any thread.
#pragma once
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/formats/format.h"

namespace tandem {

enum class Recoding : uint8_t { as_is, to_bf16 };  // to_bf16: of fp32

// One tensor that a weight becomes: a component of its format, `constant`, or `text`.
struct FilePiece {
  std::string name;
  DType dtype = DType::u8;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;  // of a text: the most that it can have
  int component = -1;
  Recoding recoding = Recoding::as_is;
  std::vector<std::byte> constant = {};
  std::function<std::string(const QuantizedView& weight)> text = {};  // known only once the weight is quantized; a vector of bytes
};
FilePiece component_piece(std::string name, DType dtype, std::vector<int64_t> shape, int component, Recoding recoding = Recoding::as_is);
FilePiece constant_piece(std::string name, DType dtype, std::vector<int64_t> shape, std::vector<std::byte> bytes);

// A range of a component's bytes as it stands in the file, and where it begins there.
uint64_t recoded_offset(Recoding recoding, uint64_t offset);
void recode(Recoding recoding, const std::byte* component, uint64_t bytes, std::vector<std::byte>& out);

struct WrittenModule {
  std::string name;  // without ".weight"
  const Format* format = nullptr;
  int64_t rows = 0, cols = 0;
  DType type = DType::bf16;  // that the model computes in
};

struct QuantizedWriter {
  std::string_view name;  // for messages; a checkpoint is written by one
  bool (*writes)(const Format& format);
  std::vector<FilePiece> (*pieces)(const WrittenModule& module);
  // left_alone: linear layers that stay as they are.
  nlohmann::ordered_json (*config)(std::span<const WrittenModule> modules, const std::vector<std::string>& left_alone);
};
extern const QuantizedWriter kBitsandbytes4Writer, kBitsandbytes8Writer, kPackedWriter, kFloatWriter, kFp8BlockWriter;

const QuantizedWriter* find_writer(const Format& format);  // null: no library reads it
std::string written_formats();                             // for messages: "nf4, nf4_dq, ..."
std::string torch_name(DType type);                        // "bfloat16"

}  // namespace tandem
