#include "kernels/cpu/interpreter.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#include "kernels/base/error.h"
#include "tests/kernels/cpu/tiny_program.h"

namespace {
std::atomic<int64_t> allocations{0};
}
// Every allocation of this program is counted.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // new below is made of malloc
#endif
void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace tandem::testing {
namespace {

using Logits = std::vector<std::vector<float>>;

double worst(const Logits& got, const Matrix& want) {  // relative to the largest
  double largest = 0, worst = 0;
  for (const double v : want.values) largest = std::max(largest, std::abs(v));
  for (size_t r = 0; r < got.size(); ++r) {
    for (size_t c = 0; c < got[r].size(); ++c) {
      const double error = std::abs(got[r][c] - want.at(static_cast<int64_t>(r), static_cast<int64_t>(c)));
      worst = std::isfinite(error) ? std::max(worst, error) : 1e9;
    }
  }
  return worst / largest;
}

Logits in_chunks(TinyRun& run, const TinySequence& sequence, int32_t chunk) {
  Logits all;
  const auto length = static_cast<int32_t>(sequence.ids.size());
  for (int32_t at = 0; at < length; at += chunk) {
    for (auto& row : run.forward({{&sequence, at, std::min(chunk, length - at)}})) all.push_back(std::move(row));
  }
  return all;
}

struct Arith {
  const char* format;
  Arithmetic arithmetic;
  double tolerance;  // of the logits; int8 activations lose 1 in 254 each
};

class Formats : public ::testing::TestWithParam<int> {};

TEST_P(Formats, AgreeWithTheExpansionAndKeepTheirBits) {
  const Arith cases[] = {
      {"bf16", {Compute::fp32, KvType::fp32}, 1e-4},       {"fp16", {Compute::fp32, KvType::fp32, true}, 1e-4},
      {"nf4", {Compute::fp32, KvType::fp32, true}, 1e-4},  {"q4_0", {Compute::fp32, KvType::fp32}, 1e-4},
      {"q4_0", {Compute::int8, KvType::fp32, true}, 0.05}, {"q4_1", {Compute::int8, KvType::fp32, true}, 0.05},
      {"q8_0", {Compute::fp32, KvType::fp32, true}, 0.05}, {"q8_0", {Compute::int8, KvType::fp32}, 0.05},
      {"bf16", {Compute::bf16, KvType::fp32}, 0.05},       {"fp32", {Compute::fp16, KvType::fp32}, 0.01},
      {"fp32", {Compute::fp32, KvType::fp16}, 0.01},       {"fp32", {Compute::fp32, KvType::bf16}, 0.05},
  };
  const Arith& c = cases[GetParam()];
  for (const int32_t experts : {0, 4}) {
    TinyShape shape;
    shape.hidden = 64, shape.heads = 6, shape.kv_heads = 3, shape.ffn = 96, shape.format = c.format, shape.experts = experts;
    shape.head_dim = 32;
    const TinyProgram model(shape);
    const TinySequence sequence = random_sequence(0, 37, shape.vocab, 5, 16, 3);
    SCOPED_TRACE(std::string(c.format) + " " + std::string(name(c.arithmetic.compute)) + " experts " + std::to_string(experts));
    const Matrix want = judge(model, sequence, model.evaluator());
    Logits whole;
    for (const int threads : {1, 2, 3}) {
      TinyRun run(model, threads, {64, 64, 4, 16, 64}, c.arithmetic);
      const Logits got = run.forward({{&sequence, 0, 37}});
      if (whole.empty()) {
        whole = got;
        // A row whose experts change with the rounding is another model's: judged without experts only.
        if (experts == 0 || c.tolerance < 1e-3) {
          EXPECT_LE(worst(got, want), c.tolerance);
        }
      }
      ASSERT_EQ(got, whole) << threads << " threads";
      for (const int32_t chunk : {1, 3, 16})
        ASSERT_EQ(in_chunks(run, sequence, chunk), whole) << threads << " threads, chunks of " << chunk;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, Formats, ::testing::Range(0, 12));

// What only some models have: the same bits for any team and chunk, and right.
TEST(Records, OfSomeModelsOnlyAgreeWithTheirExpansions) {
  const auto with = [](const char* name, const auto& change) {
    TinyShape shape;
    change(shape);
    return std::pair(std::string(name), shape);
  };
  const std::pair<std::string, TinyShape> cases[] = {
      with("norms of heads", [](TinyShape& s) { s.head_norms = true; }),
      with("norms of results", [](TinyShape& s) { s.normalizes = true, s.activation = Activation::gelu_tanh, s.soft_cap = 5; }),
      with("norms after sums", [](TinyShape& s) { s.replaces = true, s.gated = false, s.biases = false, s.norm = NormKind::layer; }),
      with("learned positions", [](TinyShape& s) { s.positions = 66, s.rotary = 0, s.norm = NormKind::layer, s.biases = true; }),
      with("narrow embeddings", [](TinyShape& s) { s.words = 21, s.positions = 66, s.rotary = 0, s.tied = true; }),
      with("a shared expert", [](TinyShape& s) { s.experts = 5, s.shared = true, s.normalize = false; }),
  };
  for (const auto& [name, shape] : cases) {
    SCOPED_TRACE(name);
    const TinyProgram model(shape);
    const TinySequence sequence = random_sequence(0, 37, shape.vocab, 5, 16, 3);
    const Matrix want = judge(model, sequence, model.evaluator());
    Logits whole;
    for (const int threads : {1, 2, 3}) {
      TinyRun run(model, threads, {64, 64, 4, 16, 64}, {Compute::fp32, KvType::fp32});
      const Logits got = run.forward({{&sequence, 0, 37}});
      if (whole.empty()) {
        whole = got;
        EXPECT_LE(worst(got, want), 1e-4);
      }
      ASSERT_TRUE(got == whole) << threads << " threads";
      for (const int32_t chunk : {1, 3, 16})
        ASSERT_TRUE(in_chunks(run, sequence, chunk) == whole) << threads << " threads, chunks of " << chunk;
    }
  }
}

// Many splits of keys and values: divided among members or not, the same bits, and right.
TEST(Attention, LongSequencesInSplits) {
  for (const int64_t window : {0, 300}) {
    for (const auto& [heads, kv_heads, head_dim] : {std::tuple{3, 1, 16}, {4, 2, 80}, {2, 2, 64}}) {
      TinyShape shape;
      shape.layers = 1, shape.heads = heads, shape.kv_heads = kv_heads, shape.head_dim = head_dim, shape.window = window;
      const TinyProgram model(shape);
      const int32_t length = 601;
      const Matrix right = judge(model, random_sequence(0, length, shape.vocab, 0, length, 4), model.evaluator());  // however it is paged
      for (const int32_t page : {64, 100, 300, 9}) {
        SCOPED_TRACE("page " + std::to_string(page) + " window " + std::to_string(window) + " head_dim " + std::to_string(head_dim));
        const TinySequence sequence = random_sequence(0, length, shape.vocab, 0, page, 4);
        const TinySequence stranger = random_sequence(1, length, shape.vocab, 70, page, 5);
        Logits whole;
        for (const int threads : {1, 2, 3}) {
          TinyRun run(model, threads, {640, 640, 4, page, 640}, {Compute::fp32, KvType::fp32}, 140);
          const Logits got = run.forward({{&sequence, 0, length}});
          if (whole.empty()) {
            whole = got;
            EXPECT_LE(worst(got, right), 2e-5);
          }
          ASSERT_EQ(got, whole) << threads << " threads";
          ASSERT_EQ(in_chunks(run, sequence, 97), whole) << threads << " threads";
          run.forward({{&stranger, 0, 333}});
          for (const int32_t at : {0, 255, 256, 299, 300, 511, 512, 513, 600}) {
            ASSERT_EQ(run.forward({{&sequence, at, 1}})[0], whole[at]) << threads << " threads, position " << at;
            ASSERT_EQ(run.forward({{&stranger, 333, 1}, {&sequence, at, 1}})[1], whole[at]) << threads << " threads, position " << at;
          }
        }
      }
    }
  }
}

// ---- ranks that share tensors

class Rendezvous {  // all members give, all get what was given
 public:
  explicit Rendezvous(int size) : size_(size), given_(static_cast<size_t>(size)) {}
  std::vector<std::vector<float>> exchange(int index, std::vector<float> mine) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return broken_ || !leaving_; });
    given_[static_cast<size_t>(index)] = std::move(mine);
    if (++arrived_ == size_) leaving_ = true, changed_.notify_all();
    changed_.wait(lock, [&] { return broken_ || leaving_; });
    if (broken_) fail(Code::unavailable, "peer", "gone");
    auto all = given_;
    if (--arrived_ == 0) leaving_ = false, changed_.notify_all();
    return all;
  }
  void break_off() {
    std::lock_guard lock(mutex_);
    broken_ = true;
    changed_.notify_all();
  }

 private:
  const int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::vector<float>> given_;
  int arrived_ = 0;
  bool leaving_ = false, broken_ = false;
};

class ThreadPeers : public PeerGroup {
 public:
  ThreadPeers(Rendezvous& rendezvous, int index, int size) : rendezvous_(rendezvous), index_(index), size_(size) {}
  int index() const override { return index_; }
  int size() const override { return size_; }
  void all_reduce(float* values, size_t count) override {
    const auto all = rendezvous_.exchange(index_, {values, values + count});
    for (size_t i = 0; i < count; ++i) {
      float sum = 0;
      for (const auto& member : all) sum += member[i];
      values[i] = sum;
    }
    ++reductions;
  }
  void all_gather(const float* mine, std::span<const size_t> counts, float* all) override {
    for (const auto& member : rendezvous_.exchange(index_, {mine, mine + counts[static_cast<size_t>(index_)]}))
      all = std::copy(member.begin(), member.end(), all);
  }
  int reductions = 0;

 private:
  Rendezvous& rendezvous_;
  const int index_, size_;
};

// Rank `rank` of `size`: heads, MLP columns or experts, and the vocabulary are split; odd sizes unevenly.
TinyProgram slice(const TinyProgram& whole, int rank, int size) {
  TinyProgram out;
  out.shape = whole.shape;
  const auto values = [&](WeightId id) {
    const TinyWeight& w = whole.weights[static_cast<size_t>(id)];
    std::vector<float> floats(static_cast<size_t>(w.rows * w.cols));
    find_format(w.format)->dequantize(w.view(), 0, w.rows, floats.data());
    return floats;
  };
  const auto cut = [&](WeightId id, std::pair<int64_t, int64_t> rows, std::pair<int64_t, int64_t> cols) -> WeightId {
    const TinyWeight& w = whole.weights[static_cast<size_t>(id)];
    const auto floats = values(id);
    TinyWeight part{rows.second - rows.first, cols.second - cols.first, w.use, "fp32", {}};
    std::vector<float> kept;
    for (int64_t r = rows.first; r < rows.second; ++r)
      kept.insert(kept.end(), floats.begin() + r * w.cols + cols.first, floats.begin() + r * w.cols + cols.second);
    part.stored.emplace_back(kept.size() * sizeof(float));
    std::memcpy(part.stored[0].data(), kept.data(), kept.size() * sizeof(float));
    out.weights.push_back(std::move(part));
    return static_cast<WeightId>(out.weights.size() - 1);
  };
  using Range = std::pair<int64_t, int64_t>;
  const auto share = [&](int64_t total) { return Range(part(total, rank, size)); };
  const auto product = [&](const Product& p, Range rows, Range cols) {
    WeightSlice s{cut(p.weight, rows, cols), rows.second - rows.first, cols.second - cols.first, rows != Range{0, p.out},
                  cols != Range{0, p.in}};
    if (p.bias != kNoWeight) s.bias = cut(p.bias, {0, 1}, rows);
    return s;
  };
  const auto norm = [&](Norm n) {
    n.weight = cut(n.weight, {0, 1}, {0, whole.shape.hidden});
    if (n.bias != kNoWeight) n.bias = cut(n.bias, {0, 1}, {0, whole.shape.hidden});
    return n;
  };
  const auto heads = [&](Range kv, const HeadShape& shape) {
    return HeadShape{(kv.second - kv.first) * (shape.heads / shape.kv_heads), kv.second - kv.first, shape.head_dim};
  };
  const auto times = [](Range r, int64_t factor) { return Range{r.first * factor, r.second * factor}; };
  Range h;  // of the working value
  int64_t kv_heads = 0;
  for (const Record& record : whole.program.records()) {
    if (const auto* r = std::get_if<Embed>(&record)) {
      const Range rows = share(r->vocab_end);
      out.program.embed(product({r->table, kNoWeight, r->vocab_end, r->hidden}, rows, {0, r->hidden}), rows.first, rows.second, r->scale);
    } else if (const auto* r = std::get_if<Enter>(&record)) {
      out.program.enter(norm(r->norm));
    } else if (const auto* r = std::get_if<ProjectAttention>(&record)) {
      const Range kv = share(r->shape.kv_heads);
      kv_heads = kv.second - kv.first;
      h = times(kv, r->shape.heads / r->shape.kv_heads * r->shape.head_dim);
      const Range k = times(kv, r->shape.head_dim);
      out.program.project(product(r->q, h, {0, r->q.in}), product(r->k, k, {0, r->k.in}), product(r->v, k, {0, r->v.in}),
                          heads(kv, r->shape), r->rope, r->kv);
    } else if (const auto* r = std::get_if<Attend>(&record)) {
      out.program.attend(heads(share(r->shape.kv_heads), r->shape), r->kv, r->scale, r->window, r->soft_cap);
    } else if (const auto* r = std::get_if<ProjectMlp>(&record)) {
      h = share(r->up.out);
      if (r->gated)
        out.program.project(product(r->gate, h, {0, r->gate.in}), product(r->up, h, {0, r->up.in}), r->activation);
      else
        out.program.project(product(r->up, h, {0, r->up.in}), r->activation);
    } else if (const auto* r = std::get_if<Contract>(&record)) {
      out.program.contract(product(r->product, {0, r->product.out}, h));
    } else if (const auto* r = std::get_if<Moe>(&record)) {
      const Range experts = share(r->experts);
      std::vector<WeightSlice> gate, up, down;
      for (int64_t e = experts.first; e < experts.second; ++e) {
        gate.push_back(product(r->gate[e], {0, r->gate[e].out}, {0, r->gate[e].in}));
        up.push_back(product(r->up[e], {0, r->up[e].out}, {0, r->up[e].in}));
        down.push_back(product(r->down[e], {0, r->down[e].out}, {0, r->down[e].in}));
      }
      out.program.moe(product(r->router, {0, r->router.out}, {0, r->router.in}), gate, up, down, r->experts,
                      static_cast<int32_t>(experts.first), r->top_k, r->normalize, r->activation);
    } else if (const auto* r = std::get_if<Head>(&record)) {
      std::vector<int64_t> parts;
      for (int i = 0; i < size; ++i) parts.push_back(part(r->vocab, i, size).second - part(r->vocab, i, size).first);
      out.program.head(norm(r->norm), product(r->product, share(r->vocab), {0, r->product.in}), r->vocab, parts, r->scale, r->soft_cap);
    } else {
      out.program.sample();
    }
  }
  out.kv.push_back({static_cast<int32_t>(whole.shape.layers), kv_heads, whole.shape.head_dim, whole.shape.window});
  return out;
}

TEST(Peers, ShardedEqualsWhole) {
  for (const int32_t experts : {0, 5}) {
    for (const int size : {2, 3}) {
      TinyShape shape;
      shape.heads = 6, shape.kv_heads = 3, shape.biases = experts == 0, shape.experts = experts, shape.soft_cap = 10, shape.vocab = 67;
      const TinyProgram whole(shape);
      SCOPED_TRACE("experts " + std::to_string(experts) + " ranks " + std::to_string(size));
      const TinySequence sequence = random_sequence(0, 29, shape.vocab, 2, 16, 3);
      const Matrix want = judge(whole, sequence, whole.evaluator());
      Rendezvous rendezvous(size);
      std::vector<Logits> logits(static_cast<size_t>(size)), stepwise(static_cast<size_t>(size));
      std::vector<int> reductions(static_cast<size_t>(size));
      std::vector<std::thread> ranks;
      for (int rank = 0; rank < size; ++rank) {
        ranks.emplace_back([&, rank] {
          const TinyProgram mine = slice(whole, rank, size);
          ThreadPeers peers(rendezvous, rank, size);
          TinyRun run(mine, 2, {64, 64, 4, 16, 64}, {Compute::fp32, KvType::fp32});
          run.executable().bind_peers(&peers);
          logits[static_cast<size_t>(rank)] = run.forward({{&sequence, 0, 29}});
          reductions[static_cast<size_t>(rank)] = peers.reductions;
          stepwise[static_cast<size_t>(rank)] = in_chunks(run, sequence, 1);
        });
      }
      for (auto& rank : ranks) rank.join();
      for (int rank = 0; rank < size; ++rank) {
        EXPECT_LE(worst(logits[static_cast<size_t>(rank)], want), 2e-5);
        EXPECT_EQ(logits[static_cast<size_t>(rank)], logits[0]);
        EXPECT_EQ(stepwise[static_cast<size_t>(rank)], logits[0]);
        EXPECT_EQ(reductions[static_cast<size_t>(rank)], 1 + 2 * shape.layers);  // the look-up, and twice a layer
      }
    }
  }
}

TEST(Peers, AFailingCollectiveEndsTheStep) {
  const TinyProgram whole(TinyShape{});
  const TinyProgram mine = slice(whole, 0, 2);
  const TinySequence sequence = random_sequence(0, 5, whole.shape.vocab, 0, 16, 3);
  for (const int threads : {1, 3}) {
    Rendezvous rendezvous(2);
    ThreadPeers peers(rendezvous, 0, 2);
    TinyRun run(mine, threads, {8, 8, 4, 16, 64}, {Compute::fp32, KvType::fp32});
    run.executable().bind_peers(&peers);
    rendezvous.break_off();
    for (int i = 0; i < 5; ++i) EXPECT_THROW(run.forward({{&sequence, 0, 5}}), Error);
  }
}

// ---- stages

TinyProgram stage_of(const TinyProgram& whole, bool first) {  // the same weights; records up to the second layer, or from it
  TinyProgram out;
  out.shape = whole.shape, out.weights = whole.weights, out.kv = whole.kv;
  int enters = 0;
  if (!first) out.program.receive(whole.shape.hidden);
  const auto slice = [](const Product& p) { return WeightSlice{p.weight, p.out, p.in, false, false, p.bias}; };
  for (const Record& record : whole.program.records()) {
    enters += std::holds_alternative<Enter>(record);
    if ((enters <= 2) != first) continue;
    if (const auto* r = std::get_if<Embed>(&record)) out.program.embed({r->table, r->vocab_end, r->hidden}, 0, r->vocab_end, r->scale);
    if (const auto* r = std::get_if<Enter>(&record)) out.program.enter(r->norm);
    if (const auto* r = std::get_if<ProjectAttention>(&record))
      out.program.project(slice(r->q), slice(r->k), slice(r->v), r->shape, r->rope, r->kv);
    if (const auto* r = std::get_if<Attend>(&record)) out.program.attend(r->shape, r->kv, r->scale, r->window, r->soft_cap);
    if (const auto* r = std::get_if<ProjectMlp>(&record)) out.program.project(slice(r->gate), slice(r->up), r->activation);
    if (const auto* r = std::get_if<Contract>(&record)) out.program.contract(slice(r->product));
    if (const auto* r = std::get_if<Head>(&record)) out.program.head(r->norm, slice(r->product), r->vocab, {}, r->scale, r->soft_cap);
    if (std::holds_alternative<Sample>(record)) out.program.sample();
  }
  if (first) out.program.leave();
  return out;
}

TEST(Stages, PipelineSplitsKeepTheBits) {
  TinyShape shape;
  shape.biases = true;
  const TinyProgram whole(shape);
  const TinyProgram first = stage_of(whole, true), second = stage_of(whole, false);
  const TinySequence sequence = random_sequence(0, 29, shape.vocab, 2, 16, 3);
  const Bucket bucket{64, 64, 4, 16, 64};
  const Arithmetic arithmetic{Compute::fp32, KvType::fp16};
  TinyRun run(whole, 2, bucket, arithmetic), a(first, 1, bucket, arithmetic), b(second, 3, bucket, arithmetic);
  const Logits want = run.forward({{&sequence, 0, 29}});
  const auto hidden = a.stage({&sequence, 0, 29}, nullptr);
  b.stage({&sequence, 0, 29}, hidden.data());
  EXPECT_EQ(b.logits(), want);
}

// ---- promises of the executable

TEST(Executable, AllocatesNothingAfterTheFirstStep) {
  for (const int32_t experts : {0, 4}) {
    for (const char* format : {"fp32", "q8_0"}) {
      TinyShape shape;
      shape.hidden = 64, shape.ffn = 64, shape.experts = experts, shape.format = format;
      const TinyProgram model(shape);
      const TinySequence sequence = random_sequence(0, 40, shape.vocab, 2, 16, 3);
      for (const int threads : {1, 3}) {
        TinyRun run(model, threads, {32, 32, 4, 16, 64}, {Compute::fp32, KvType::fp16, true});
        run.forward({{&sequence, 0, 30}});
        Sampling sampling;
        sampling.temperature = 1, sampling.top_k = 7, sampling.top_p = 0.9f, sampling.logprobs = 5;
        std::vector<SampleRow> rows(2);
        std::vector<Sampled> sampled(2);
        for (SampleRow& row : rows) row.sampling = &sampling;
        draw(run.executable(), rows, sampled);
        for (const int32_t count : {1, 10}) {
          run.forget_step();
          run.add({&sequence, 30, count});
          const StepRows step = run.step();
          const int64_t before = allocations;
          run.executable().forward(step, nullptr, nullptr);
          draw(run.executable(), rows, sampled);
          EXPECT_EQ(allocations, before) << count << " rows, " << threads << " threads";
          rows.resize(1);
        }
      }
    }
  }
}

TEST(Executable, LogitsOnlyOfTheRowsAskedFor) {
  const TinyProgram model(TinyShape{});
  const TinySequence sequence = random_sequence(0, 20, model.shape.vocab, 2, 16, 3);
  TinyRun run(model, 2, {32, 32, 4, 16, 64}, {Compute::fp32, KvType::fp32});
  const Logits all = run.forward({{&sequence, 0, 20}});
  run.forget_step();
  run.add({&sequence, 0, 20});
  StepRows step = run.step();
  const int32_t heads[] = {3, 19};
  step.heads = heads;
  run.executable().forward(step, nullptr, nullptr);
  const int64_t vocab = model.program.vocab();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(std::vector<float>(run.executable().logits() + i * vocab, run.executable().logits() + (i + 1) * vocab), all[heads[i]]);
  }
  Sampling greedy;
  SampleRow rows[3];
  for (int i = 0; i < 3; ++i) rows[i].head = i % 2, rows[i].sampling = &greedy;
  Sampled sampled[3];
  draw(run.executable(), rows, sampled);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(sampled[i].id, std::max_element(all[heads[i % 2]].begin(), all[heads[i % 2]].end()) - all[heads[i % 2]].begin());
  step.heads = {};
  run.executable().forward(step, nullptr, nullptr);
  EXPECT_THROW(draw(run.executable(), std::span(rows).first(1), sampled), Error);
}

TEST(Executable, CopiedPagesReadTheSame) {
  const TinyProgram model(TinyShape{});
  TinySequence sequence = random_sequence(0, 40, model.shape.vocab, 2, 16, 3);
  TinyRun run(model, 2, {64, 64, 4, 16, 64}, {Compute::fp32, KvType::fp16});
  const Logits want = run.forward({{&sequence, 0, 40}});
  const std::pair<int32_t, int32_t> copies[] = {{sequence.pages[0], 30}, {sequence.pages[1], 31}, {sequence.pages[2], 32}};
  run.executable().copy_pages(0, copies);
  sequence.pages = {30, 31, 32};
  EXPECT_EQ(run.forward({{&sequence, 39, 1}})[0], want[39]);
  const std::pair<int32_t, int32_t> outside[] = {{0, 64}};
  EXPECT_THROW(run.executable().copy_pages(0, outside), Error);
  EXPECT_THROW(run.executable().copy_pages(1, copies), Error);
}

TEST(Executable, RefusesStepsThatDoNotFit) {
  const TinyProgram model(TinyShape{});
  TinyRun run(model, 2, {8, 8, 4, 16, 64}, {Compute::fp32, KvType::fp32}, 10);
  TinySequence sequence = random_sequence(0, 80, model.shape.vocab, 0, 16, 3);
  const auto refused = [&](const TinyRun::Piece& piece, const std::string& words) {
    try {
      run.forward({piece});
      ADD_FAILURE() << "ran, though: " << words;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
    }
  };
  refused({&sequence, 0, 9}, "9 rows");
  refused({&sequence, 60, 5}, "64 is a position");
  TinySequence bad = sequence;
  bad.pages[0] = 10;
  refused({&bad, 0, 5}, "10 is a page");
  bad = sequence, bad.ids[2] = static_cast<int32_t>(model.shape.vocab);
  refused({&bad, 0, 5}, "vocabulary");
  run.forward({{&sequence, 0, 8}});  // still works
}

TEST(Executable, NaNWeightsReachTheSampler) {
  for (const size_t poisoned : {size_t{2}, size_t{4}, size_t{7}}) {  // queries, values, a gate
    TinyProgram model(TinyShape{});
    std::memset(model.weights[poisoned].stored[0].data(), 0xff, 64);
    const TinySequence sequence = random_sequence(0, 20, model.shape.vocab, 2, 16, 3);
    TinyRun run(model, 1, {32, 32, 4, 16, 64}, {Compute::fp32, KvType::fp32});
    run.forward({{&sequence, 0, 20}});
    Sampling greedy;
    SampleRow row;
    row.head = 19, row.sampling = &greedy;
    Sampled sampled;
    EXPECT_THROW(draw(run.executable(), std::span(&row, 1), std::span(&sampled, 1)), Error);
  }
}

TEST(Backend, WorkspaceListsEveryBuffer) {
  TinyShape shape;
  shape.experts = 4;
  const TinyProgram model(shape);
  const auto backend = cpu::make_cpu_backend(2);
  const Bucket bucket{16, 2, 4, 64, 512};
  std::string text;
  uint64_t total = 0;
  for (const SizeRow& row : backend->workspace(model.program, model.kv, bucket, {Compute::fp32, KvType::fp16})) {
    text += row.name + " " + std::to_string(row.bytes) + "\n";
    total += row.bytes;
  }
  EXPECT_EQ(total, cpu::plan_workspace(model.program, bucket, {Compute::fp32, KvType::fp16}, 2).plan.bytes);
  EXPECT_EQ(text,
            "attention scratch | expert gated | sampling | keys | head rows 147456\n"
            "attention states | expert up | values | logits 18432\n"
            "queries | expert rows 4096\n"
            "attended | expert results 4096\n"
            "hidden rows 2048\npending 2048\nnormalized 2048\nrope angles 1024\nexpert lists 640\nrouter logits 256\nrouting 256\n");
}

TEST(Backend, LayoutsNameTheirKernels) {
  const auto backend = cpu::make_cpu_backend(1);
  const Arithmetic automatic{Compute::int8, KvType::fp16, true}, fp32{Compute::fp32, KvType::fp16};
  const auto kernel = [&](const char* format, Use use, const Arithmetic& a) {
    return backend->layout(*find_format(format), 64, 256, use, a).kernel;
  };
  EXPECT_EQ(kernel("bf16", Use::vector, automatic), "fp32_vector");
  EXPECT_EQ(kernel("q4_0", Use::table, automatic), kernel("q4_0", Use::product, fp32));
  EXPECT_EQ(kernel("nf4", Use::product, automatic), kernel("nf4", Use::product, fp32));
  EXPECT_EQ(backend->layout(*find_format("bf16"), 3, 5, Use::vector, fp32).bytes(), 60u);
  EXPECT_EQ(backend->name(), "cpu");
}

TEST(Backend, RefusesCachesItHasNot) {
  const TinyProgram model(TinyShape{});
  const auto backend = cpu::make_cpu_backend(1);
  for (const KvType type : {KvType::fp8, KvType::int8}) {
    EXPECT_THROW(backend->compile(model.program, model.kv, {1, 1, 1, 16, 16}, {Compute::fp32, type}), Error);
  }
}

TEST(Backend, MemoryIsZeroAlignedAndUntouched) {
  const auto backend = cpu::make_cpu_backend(1);
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{4096}, uint64_t{5000000}, uint64_t{1} << 40}) {
    std::byte* memory = backend->allocate(bytes);
    EXPECT_EQ(reinterpret_cast<uint64_t>(memory) % 64, 0u);
    EXPECT_EQ(memory[0], std::byte{0});
    EXPECT_EQ(memory[bytes - 1], std::byte{0});
    memory[bytes - 1] = std::byte{1};
    backend->release(memory, bytes);
  }
  EXPECT_THROW(backend->allocate(uint64_t{1} << 60), Error);
  EXPECT_EQ(backend->allocate(0), nullptr);
}

}  // namespace
}  // namespace tandem::testing
