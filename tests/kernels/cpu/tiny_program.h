// Small random models built record by record, with their weights: run on the CPU backend and by the evaluator.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/cpu/backend.h"
#include "kernels/program/evaluate.h"

namespace tandem::testing {

struct TinyShape {
  int64_t hidden = 32, heads = 4, kv_heads = 2, head_dim = 16, ffn = 48, vocab = 61, layers = 2;
  int32_t experts = 0, top_k = 2;
  bool normalize = true, gated = true, biases = false, tied = false;
  int64_t rotary = -1, window = 0;  // -1: the whole head
  float soft_cap = 0;
  bool head_norms = false, shared = false;  // norms of each head of q and k; an expert that all rows go through
  bool normalizes = false;                  // what is pending, before it is added
  bool replaces = false;                    // norms after the sums, none before the first product and the head
  int64_t words = 0, positions = 0;         // width of the embeddings when it is another; rows of a table of learned positions
  NormKind norm = NormKind::rms;
  Activation activation = Activation::silu;
  std::string format = "fp32";
  uint64_t seed = 1;
};

struct TinyWeight {
  int64_t rows = 0, cols = 0;
  Use use = Use::product;
  std::string format = "fp32";
  std::vector<std::vector<std::byte>> stored;  // by component

  QuantizedView view() const {
    QuantizedView v{find_format(format), rows, cols};
    for (size_t i = 0; i < stored.size(); ++i) v.data[i] = stored[i].data();
    return v;
  }
};

struct TinyProgram {
  TinyShape shape;
  Program program;
  std::vector<TinyWeight> weights;
  std::vector<KvShape> kv;

  TinyProgram() = default;
  explicit TinyProgram(const TinyShape& s) : shape(s), random(s.seed) {
    kv.push_back({static_cast<int32_t>(s.layers), s.kv_heads, s.head_dim, s.window});
    const int64_t words = s.words > 0 ? s.words : s.hidden;
    const WeightSlice table = matrix(s.vocab, words, s.tied ? Use::product_and_table : Use::table);
    Positions positions;
    if (s.positions > 0) positions = {matrix(s.positions, s.hidden, Use::table).id, s.positions, 2};
    program.embed(table, 0, s.vocab, 1.5f, positions, s.words > 0 ? matrix(s.hidden, words) : WeightSlice{});
    Rope rope;
    rope.rotary = s.rotary < 0 ? s.head_dim : s.rotary;
    for (int64_t i = 0; i < rope.rotary / 2; ++i) {
      rope.inverse_frequency.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(rope.rotary)));
    }
    rope.scale = 1.1f;
    const HeadShape heads{s.heads, s.kv_heads, s.head_dim};
    for (int32_t l = 0; l < s.layers; ++l) {
      program.enter(s.replaces ? as_it_is : norm());
      const WeightSlice q = matrix(s.heads * s.head_dim, s.hidden), k = matrix(s.kv_heads * s.head_dim, s.hidden),
                        v = matrix(s.kv_heads * s.head_dim, s.hidden);
      program.project(q, k, v, heads, rope, {0, l}, s.head_norms ? norm(s.head_dim) : Norm{}, s.head_norms ? norm(s.head_dim) : Norm{});
      program.attend(heads, {0, l}, 1 / std::sqrt(static_cast<float>(s.head_dim)), s.window, s.soft_cap);
      program.contract(matrix(s.hidden, s.heads * s.head_dim));
      if (s.normalizes) program.normalize(norm());
      program.enter(norm(), s.replaces);
      if (s.experts > 0) {
        const WeightSlice router = matrix(s.experts, s.hidden, Use::product, 3, "fp32");
        std::vector<WeightSlice> gate, up, down;
        for (int32_t e = 0; e < s.experts; ++e) {
          gate.push_back(matrix(s.ffn, s.hidden)), up.push_back(matrix(s.ffn, s.hidden)), down.push_back(matrix(s.hidden, s.ffn));
        }
        SharedSlices shared;
        if (s.shared) shared = {matrix(s.ffn + 7, s.hidden), matrix(s.ffn + 7, s.hidden), matrix(s.hidden, s.ffn + 7), matrix(1, s.hidden)};
        program.moe(router, gate, up, down, s.experts, 0, s.top_k, s.normalize, s.activation, shared);
      } else {
        if (s.gated) {
          const WeightSlice gate = matrix(s.ffn, s.hidden);
          program.project(gate, matrix(s.ffn, s.hidden), s.activation);
        } else {
          program.project(matrix(s.ffn, s.hidden), s.activation);
        }
        program.contract(matrix(s.hidden, s.ffn));
      }
      if (s.normalizes) program.normalize(norm());
      if (s.replaces) program.enter(norm(), true);
    }
    const WeightSlice projection = s.words > 0 ? matrix(words, s.hidden) : WeightSlice{};
    program.head(s.replaces ? as_it_is : norm(), s.tied ? table : matrix(s.vocab, words), s.vocab, {}, 1.0f, s.soft_cap, projection);
    program.sample();
  }

  WeightSlice matrix(int64_t rows, int64_t cols, Use use = Use::product, double gain = 1, std::string format = "") {
    if (format.empty()) format = shape.format;
    const WeightId id = add(rows, cols, use, format, gain / std::sqrt(static_cast<double>(cols)), 0);
    WeightSlice slice{id, rows, cols};
    if (shape.biases && use == Use::product) slice.bias = add(1, rows, Use::vector, "fp32", 0.1, 0);
    return slice;
  }
  static constexpr Norm as_it_is{.kind = NormKind::none};
  Norm norm(int64_t width = 0) {
    Norm n;
    n.kind = shape.norm;
    n.weight = add(1, width > 0 ? width : shape.hidden, Use::vector, "fp32", 0.1, 1);
    if (shape.biases && width == 0) n.bias = add(1, shape.hidden, Use::vector, "fp32", 0.1, 0);
    return n;
  }
  WeightId add(int64_t rows, int64_t cols, Use use, const std::string& name, double deviation, double mean) {
    std::normal_distribution<double> normal(mean, deviation);
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (float& v : values) v = static_cast<float>(normal(random));
    TinyWeight w{rows, cols, use, name, {}};
    const Format& format = tandem::format(name);
    std::vector<std::byte*> out;
    for (const Component& c : format.components(rows, cols)) w.stored.emplace_back(c.bytes);
    for (auto& component : w.stored) out.push_back(component.data());
    format.quantize(values.data(), rows, cols, out);
    weights.push_back(std::move(w));
    return static_cast<WeightId>(weights.size() - 1);
  }

  Evaluator evaluator() const {
    Evaluator e;
    for (size_t id = 0; id < weights.size(); ++id) {
      const TinyWeight& w = weights[id];
      std::vector<float> values(static_cast<size_t>(w.rows * w.cols));
      find_format(w.format)->dequantize(w.view(), 0, w.rows, values.data());
      e.weights[static_cast<WeightId>(id)] = {w.rows, w.cols, {values.begin(), values.end()}};
    }
    return e;
  }

  std::mt19937_64 random;
};

// Fixed by its ids: a sequence in a slot, with page tables of its own.
struct TinySequence {
  int32_t slot = 0;
  std::vector<int32_t> ids;
  std::vector<int32_t> pages;
};

// How a test reaches a backend's memory: the host's own, unless a device is behind it.
struct TinyMemory {
  std::function<void(std::byte* memory, int value, uint64_t bytes)> fill = [](std::byte* memory, int value, uint64_t bytes) { std::memset(memory, value, bytes); };
  std::function<void(const std::byte* memory, void* host, uint64_t bytes)> read = [](const std::byte* memory, void* host, uint64_t bytes) {
    std::memcpy(host, memory, bytes);
  };
};

// A program bound to a backend.
class TinyRun {
 public:
  TinyRun(const TinyProgram& model, int threads, const Bucket& bucket, Arithmetic arithmetic, int32_t pages = 64, bool poison = true,
          cpu::Features features = cpu::detect_features())
      : TinyRun(model, cpu::make_cpu_backend(threads, features, poison), {}, bucket, arithmetic, pages) {}
  TinyRun(const TinyProgram& model, std::unique_ptr<Backend> backend, TinyMemory memory_access, const Bucket& bucket, Arithmetic arithmetic, int32_t pages = 64)
      : model_(model), bucket_(bucket), backend_(std::move(backend)), access_(std::move(memory_access)) {
    executable_ = backend_->compile(model.program, model.kv, bucket, arithmetic);
    for (size_t id = 0; id < model.weights.size(); ++id) {
      const TinyWeight& w = model.weights[id];
      const WeightLayout layout = backend_->layout(*find_format(w.format), w.rows, w.cols, w.use, arithmetic);
      std::byte* memory = block(layout.bytes());
      backend_->place(layout, w.view(), memory);
      executable_->bind(static_cast<WeightId>(id), layout, memory);
    }
    uint64_t bytes = 0;
    for (const SizeRow& row : backend_->workspace(model.program, model.kv, bucket, arithmetic)) bytes += row.bytes;
    workspace_ = {block(bytes), bytes};
    std::vector<std::span<std::byte>> caches;
    for (const KvShape& shape : model.kv) {
      const uint64_t cache = pages * page_bytes(shape, bucket.page_tokens, arithmetic.kv);
      caches.push_back({block(cache), cache});
      access_.fill(caches.back().data(), 0xff, cache);  // NaN wherever nothing was written
    }
    executable_->bind_memory(workspace_, caches);
  }
  ~TinyRun() {
    executable_.reset();
    for (const auto& [memory, bytes] : blocks_) {
      std::byte ring[64];
      access_.read(memory + bytes, ring, sizeof ring);
      for (const std::byte b : ring) EXPECT_EQ(b, std::byte{0x5a}) << "written past a block of " << bytes;
      backend_->release(memory, bytes + 64);
    }
  }

  struct Piece {  // rows of one sequence to run, from `position` on
    const TinySequence* sequence;
    int32_t position, rows;
  };
  // Logits of every row of the step, [rows][vocab].
  std::vector<std::vector<float>> forward(const std::vector<Piece>& pieces) {
    forget_step();
    for (const Piece& piece : pieces) add(piece);
    executable_->forward(step(), nullptr, nullptr);
    return logits();
  }
  void forward_only(const std::vector<Piece>& pieces) {
    forget_step();
    for (const Piece& piece : pieces) add(piece);
    executable_->forward(step(), nullptr, nullptr);
  }
  void forget_step() { ids_.clear(), positions_.clear(), heads_.clear(), rows_.clear(); }
  void add(const Piece& piece) {
    SequenceRows s{piece.sequence->slot, static_cast<int32_t>(ids_.size()), piece.rows, piece.position};
    s.pages[0] = piece.sequence->pages.data();
    for (int32_t i = 0; i < piece.rows; ++i) {
      heads_.push_back(static_cast<int32_t>(ids_.size()));
      ids_.push_back(piece.sequence->ids[static_cast<size_t>(piece.position + i)]);
      positions_.push_back(piece.position + i);
    }
    rows_.push_back(s);
  }
  std::vector<std::vector<float>> logits() const {
    std::vector<std::vector<float>> logits;
    const int64_t vocab = model_.program.vocab();
    const float* values = executable_->logits();
    for (size_t i = 0; i < heads_.size(); ++i) logits.emplace_back(values + i * vocab, values + (i + 1) * vocab);
    return logits;
  }
  // One stage of several: float[rows, hidden] comes in, unless it embeds, and goes out, unless it has the head.
  std::vector<float> stage(const Piece& piece, const float* hidden_in) {
    forget_step();
    add(piece);
    std::vector<float> out(static_cast<size_t>(piece.rows * model_.program.hidden()));
    executable_->forward(step(), hidden_in, out.data());
    return out;
  }
  void set_ids(int32_t id) { ids_.assign(ids_.size(), id); }
  StepRows step() const {
    StepRows s;
    s.rows = static_cast<int32_t>(ids_.size());
    s.ids = ids_.data(), s.positions = positions_.data(), s.sequences = rows_, s.heads = heads_;
    return s;
  }
  Executable& executable() { return *executable_; }

 private:
  std::byte* block(uint64_t bytes) {  // ringed
    std::byte* memory = backend_->allocate(bytes + 64);
    access_.fill(memory + bytes, 0x5a, 64);
    blocks_.emplace_back(memory, bytes);
    return memory;
  }

  const TinyProgram& model_;
  Bucket bucket_;
  std::unique_ptr<Backend> backend_;
  TinyMemory access_;
  std::unique_ptr<Executable> executable_;
  std::span<std::byte> workspace_;
  std::vector<std::pair<std::byte*, uint64_t>> blocks_;
  std::vector<int32_t> ids_, positions_, heads_;
  std::vector<SequenceRows> rows_;
};

inline TinySequence random_sequence(int32_t slot, int32_t length, int64_t vocab, int32_t first_page, int32_t page_tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  TinySequence s{slot, {}, {}};
  for (int32_t i = 0; i < length; ++i) s.ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
  const int32_t pages = (length + page_tokens - 1) / page_tokens;
  for (int32_t i = 0; i < pages; ++i) s.pages.push_back(first_page + i);
  std::shuffle(s.pages.begin(), s.pages.end(), random);
  return s;
}

// The whole sequence by the evaluator, in one step.
inline Matrix judge(const TinyProgram& model, const TinySequence& sequence, const Evaluator& prepared) {
  Evaluator evaluator = prepared;
  std::vector<int32_t> positions, heads;
  for (size_t i = 0; i < sequence.ids.size(); ++i) positions.push_back(static_cast<int32_t>(i)), heads.push_back(static_cast<int32_t>(i));
  const SequenceRows rows{sequence.slot, 0, static_cast<int32_t>(positions.size()), 0};
  StepRows step;
  step.rows = rows.rows, step.ids = sequence.ids.data(), step.positions = positions.data();
  step.sequences = {&rows, 1}, step.heads = heads;
  evaluator.run(model.program, step);
  return evaluator.value(kLogits);
}

inline void draw(Executable& executable, std::span<const SampleRow> rows, std::span<Sampled> out) {
  executable.sample(rows);
  executable.drawn(out.first(rows.size()));
}

}  // namespace tandem::testing
