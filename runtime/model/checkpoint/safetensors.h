// Safetensors files: a length, a JSON header, the tensors' bytes (https://github.com/huggingface/safetensors). As strict as the
// reference reader: the tensors cover the data without a hole or an overlap. Opening reads headers only. Any thread.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "runtime/model/checkpoint/file_tensors.h"

namespace tandem {

// The tensors of one file, by offset; TensorInfo.file = `index`. Errors: Code::invalid_argument naming the file and the tensor.
std::vector<TensorInfo> read_safetensors_header(const Storage& file, uint32_t index = 0);

// The weights of a Hugging Face directory: model.safetensors, else the files that model.safetensors.index.json names, else the only
// *.safetensors there. Null when the directory has no weights at all. Errors: Code::not_found for a missing shard, with the index
// named; Code::invalid_argument, also for a directory that only has pickled weights (*.bin, *.pt, *.pth).
std::unique_ptr<FileTensors> open_safetensors(const std::string& directory);

// One file by its own path.
std::unique_ptr<FileTensors> open_safetensors_file(const std::string& path);

// model.safetensors.index.json: its weight_map, tensor to file name, in the order of the text. Errors: Code::invalid_argument, also for
// a file name that would leave the directory.
std::vector<std::pair<std::string, std::string>> parse_safetensors_index(std::string_view text, const std::string& where);

}  // namespace tandem
