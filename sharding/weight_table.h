// Every weight a model has, declared once with logical axes: name, shape, where it comes from. Constructing a family fills it; planner,
// slicer, loader and inspect read it. Built once, then immutable. A WeightId is a row's index.
#pragma once
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/program/record.h"
#include "sharding/axis.h"

namespace tandem {

enum class Role : uint8_t { linear, head, embedding, norm, bias, router };

enum class RowOrder : uint8_t {
  as_is,
  interleaved_rope,  // llama.cpp's q and k rows: pairs (2i, 2i + 1) of each head are Hugging Face's (i, i + head_dim / 2)
};

struct Origin {  // where a row's elements are in a checkpoint of one dialect
  std::string tensor;
  int64_t row_offset = 0;     // first row inside a fused tensor,
  int64_t fused_rows = 0;     // which has so many; 0: the tensor is the matrix
  int64_t stacked = -1;       // index of the matrix inside a stacked 3-D tensor, -1: the tensor is the matrix
  RowOrder order = RowOrder::as_is;
  bool transposed = false;    // stored [in, out]
  float plus = 0;             // to be added to every element (norms that are stored less one)
};

struct WeightRow {
  std::string name;           // Hugging Face's: "model.layers.0.self_attn.q_proj.weight"
  Role role = Role::linear;
  int layer = -1, expert = -1;
  Dim rows, cols;             // cols of a vector: {none, size}, rows: {none, 1}; except a bias: rows like its weight, cols 1
  Origin huggingface, gguf;
  bool embeds = false;        // of no layer: on the stage that embeds; else on the one with the head
  WeightId tied_to = kNoWeight;  // the same numbers as that row (a head tied to the embedding)
  int64_t elements() const { return rows.size() * cols.size(); }
};

class WeightTable {
 public:
  WeightId add(WeightRow row);                       // Errors: Code::internal on a second row of the same name
  const WeightRow& operator[](WeightId id) const { return rows_[id]; }
  WeightId find(std::string_view name) const;        // kNoWeight when absent
  int size() const { return static_cast<int>(rows_.size()); }
  const std::vector<WeightRow>& rows() const { return rows_; }

 private:
  std::vector<WeightRow> rows_;
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  std::unordered_map<std::string, WeightId, Hash, std::equal_to<>> index_;
};

}  // namespace tandem
