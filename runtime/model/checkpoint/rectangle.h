// Reads a part of a stored matrix: a Format's byte ranges become few large reads. Memory is the result and one bounded buffer. Any
// thread; nothing is kept.
#pragma once
#include <span>
#include <vector>

#include "runtime/model/checkpoint/source.h"

namespace tandem {

constexpr uint64_t kReadThrough = 16 << 10;  // a gap below this costs less to read than a second call
constexpr uint64_t kBounce = 1 << 20;        // the largest buffer that holds what is read with its gaps

// The ranges of the tensor, each moved by `offset` bytes, one after the other into out, which has room for all of them.
void read_ranges(const TensorSource& source, const TensorInfo& tensor, std::span<const ByteRange> ranges, uint64_t offset, std::byte* out);

// Errors: Code::invalid_argument naming file and tensor when the tensor is too small for component `component` of the matrix
// [rows, cols] that begins `offset` bytes into it.
void check_holds(const TensorSource& source, const TensorInfo& tensor, const Format& format, int64_t rows, int64_t cols, uint64_t offset = 0,
                 size_t component = 0);

// The stored form of a rectangle of the matrix [rows, cols] whose component `component` is `tensor`: `out` is resized to it. The matrix
// begins `offset` bytes into the tensor (an expert of a stacked tensor: expert_offset). The rectangle obeys format.grain().
// Errors: those of TensorSource::read and check_holds.
void read_rectangle(const TensorSource& source, const TensorInfo& tensor, const Format& format, int64_t rows, int64_t cols,
                    const Rectangle& part, std::vector<std::byte>& out, uint64_t offset = 0, size_t component = 0);

// Where expert `expert` of a tensor [experts, rows, cols] begins. Errors: Code::invalid_argument when there is no such expert.
uint64_t expert_offset(const TensorSource& source, const TensorInfo& tensor, int64_t expert);

}  // namespace tandem
