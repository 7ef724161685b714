// Attention on a GPU against double loops over the rounded caches.
#include "kernels/cuda/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>

#include "kernels/base/dtype.h"
#include "kernels/cuda/attention_kernels.h"
#include "tests/kernels/cuda/device_memory.h"

namespace tandem::cuda {
namespace {

constexpr unsigned kSeed = 20240521;

struct Sequence { int32_t position, rows; };  // rows at [position, position + rows)
struct Case {
  int64_t heads, kv_heads, head_dim;
  int32_t page_tokens = 16;
  std::vector<Sequence> sequences;
  int64_t window = 0;
  float soft_cap = 0;
  int32_t rotary = -1;  // -1: the whole head
  int32_t spare = 0;    // sequences, rows and context that the launch could have held besides
  Element element = Element::bf16;
  KvType kv = KvType::bf16;
  bool every_kernel = false;  // of decoding: that for all devices with a matrix unit, clusters of every size, and with rope and append apart
};

uint16_t to_bits(float v, bool bf) { return bf ? float_to_bf16(v) : float_to_f16(v); }
float of_bits(uint16_t v, bool bf) { return bf ? bf16_to_float(v) : f16_to_float(v); }

// Memory of one kind of number: float, bf16 or f16.
struct Numbers {
  int kind;  // 0 float, 1 bf16, 2 f16
  int size() const { return kind == 0 ? 4 : 2; }
  float rounded(float v) const { return kind == 0 ? v : of_bits(to_bits(v, kind == 1), kind == 1); }
  void put(std::byte* memory, size_t i, float v) const {
    if (kind == 0) std::memcpy(memory + i * 4, &v, 4);
    else {
      const uint16_t bits = to_bits(v, kind == 1);
      std::memcpy(memory + i * 2, &bits, 2);
    }
  }
  float get(const std::byte* memory, size_t i) const {
    if (kind == 0) {
      float v;
      std::memcpy(&v, memory + i * 4, 4);
      return v;
    }
    uint16_t bits;
    std::memcpy(&bits, memory + i * 2, 2);
    return of_bits(bits, kind == 1);
  }
};
Numbers numbers(Element e) { return {e == Element::f32 ? 0 : e == Element::bf16 ? 1 : 2}; }
Numbers numbers(KvType t) { return {t == KvType::fp32 ? 0 : t == KvType::bf16 ? 1 : 2}; }

std::string describe(const Case& c) {
  std::string s = std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + "x" + std::to_string(c.head_dim) + " pages of " +
                  std::to_string(c.page_tokens) + " window " + std::to_string(c.window) + " cap " + std::to_string(c.soft_cap) + " rotary " +
                  std::to_string(c.rotary) + " element " + std::to_string(numbers(c.element).kind) + " cache " + std::to_string(numbers(c.kv).kind) + ":";
  for (const Sequence& q : c.sequences) s += " " + std::to_string(q.position) + "+" + std::to_string(q.rows);
  return s + ", seed " + std::to_string(kSeed);
}

// Scratch that all calls of a test share, as an executable's do: counters must be left zero whatever the calls' capacities.
struct Scratch {
  DeviceArray<unsigned char> memory;
  explicit Scratch(size_t bytes) : memory(bytes) { memory.zero(); }
};

void expect_attention(const Case& c, Scratch& scratch, bool graph = false) {
  SCOPED_TRACE(describe(c));
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  const Numbers e = numbers(c.element), k = numbers(c.kv);
  const int64_t D = c.head_dim, group = c.heads / c.kv_heads, stride = (c.heads + 2 * c.kv_heads) * D;
  const int32_t rotary = c.rotary < 0 ? static_cast<int32_t>(D) : c.rotary;
  const float rope_scale = 1.1f, scale = 1.0f / std::sqrt(static_cast<float>(D));
  const bool decode = std::all_of(c.sequences.begin(), c.sequences.end(), [](const Sequence& s) { return s.rows == 1; });

  // Two layers and two KV groups' tables, so that offsets matter: this is layer 1, group 1.
  std::vector<int32_t> table;
  std::vector<SequenceOnDevice> sequences;
  std::vector<int32_t> positions, sequence_of;
  int32_t rows = 0, most_context = 0, pages = 0, singles = 0;
  for (size_t i = 0; i < c.sequences.size(); ++i) {
    const Sequence& s = c.sequences[i];
    SequenceOnDevice on;
    on.slot = static_cast<int32_t>(i), on.row = rows, on.rows = s.rows, on.position = s.position;
    on.pages[1] = pages;
    pages += (s.position + s.rows - 1) / c.page_tokens + 1;
    for (int32_t r = 0; r < s.rows; ++r) positions.push_back(s.position + r), sequence_of.push_back(static_cast<int32_t>(i));
    rows += s.rows;
    if (s.rows == 1) singles = static_cast<int32_t>(i) + 1;
    most_context = std::max(most_context, s.position + s.rows);
    sequences.push_back(on);
  }
  const int32_t unused = 3;
  std::vector<int32_t> order(static_cast<size_t>(pages + unused));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  table.assign(order.begin(), order.begin() + pages);

  const size_t layer_elements = static_cast<size_t>(2 * c.kv_heads * D * c.page_tokens), page_elements = 2 * layer_elements;
  std::vector<std::byte> cache(page_elements * order.size() * static_cast<size_t>(k.size()), std::byte{0xFF});  // NaN
  const auto at = [&](const SequenceOnDevice& s, int32_t position, int64_t head, bool value, int64_t d) {
    const auto page = static_cast<size_t>(table[static_cast<size_t>(s.pages[1] + position / c.page_tokens)]);
    return page * page_elements + layer_elements +
           static_cast<size_t>(((head * 2 + value) * c.page_tokens + position % c.page_tokens) * D + d);
  };
  for (const SequenceOnDevice& s : sequences) {
    for (int32_t t = 0; t < s.position; ++t) {
      const bool freed = c.window > 0 && t <= s.position - c.window;  // behind the window of the first row: may hold anything
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        for (int64_t d = 0; d < D; ++d) {
          const float key = normal(random), value = normal(random);
          if (freed) continue;
          k.put(cache.data(), at(s, t, h, false, d), key), k.put(cache.data(), at(s, t, h, true, d), value);
        }
      }
    }
  }
  const size_t most_rows = static_cast<size_t>(rows + c.spare);
  std::vector<std::byte> qkv(most_rows * static_cast<size_t>(stride * e.size()), std::byte{0xFF});
  for (size_t i = 0; i < static_cast<size_t>(rows * stride); ++i) e.put(qkv.data(), i, normal(random));
  std::vector<float> frequency(static_cast<size_t>(rotary / 2));
  for (size_t i = 0; i < frequency.size(); ++i) frequency[i] = std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(rotary));

  // What is wanted.
  const auto rotate = [&](const float* head, int32_t position, std::vector<double>& out) {
    out.assign(head, head + D);
    for (int32_t i = 0; i < rotary / 2; ++i) {
      const float angle = static_cast<float>(position) * frequency[static_cast<size_t>(i)];
      const double cosine = std::cos(static_cast<double>(angle)) * rope_scale, sine = std::sin(static_cast<double>(angle)) * rope_scale;
      const double a = head[i], b = head[i + rotary / 2];
      out[static_cast<size_t>(i)] = a * cosine - b * sine, out[static_cast<size_t>(i + rotary / 2)] = b * cosine + a * sine;
    }
  };
  const auto row_head = [&](int64_t row, int64_t head) {
    std::vector<float> v(static_cast<size_t>(D));
    for (int64_t d = 0; d < D; ++d) v[static_cast<size_t>(d)] = e.get(qkv.data(), static_cast<size_t>(row * stride + head * D + d));
    return v;
  };
  std::vector<std::byte> wanted_cache = cache;
  std::vector<double> turned;
  for (int32_t r = 0; r < rows; ++r) {
    const SequenceOnDevice& s = sequences[static_cast<size_t>(sequence_of[static_cast<size_t>(r)])];
    for (int64_t h = 0; h < c.kv_heads; ++h) {
      rotate(row_head(r, c.heads + h).data(), positions[static_cast<size_t>(r)], turned);
      const auto value = row_head(r, c.heads + c.kv_heads + h);
      for (int64_t d = 0; d < D; ++d) {
        k.put(wanted_cache.data(), at(s, positions[static_cast<size_t>(r)], h, false, d), static_cast<float>(turned[static_cast<size_t>(d)]));
        k.put(wanted_cache.data(), at(s, positions[static_cast<size_t>(r)], h, true, d), value[static_cast<size_t>(d)]);
      }
    }
  }

  DeviceArray<int32_t> on_counts(std::vector<int32_t>{rows, static_cast<int32_t>(sequences.size()), 0, singles, 0, 0, 0, 0});
  std::vector<SequenceOnDevice> padded_sequences = sequences;
  SequenceOnDevice poison;
  std::memset(static_cast<void*>(&poison), 0x7F, sizeof poison);
  padded_sequences.resize(sequences.size() + static_cast<size_t>(c.spare), poison);
  std::vector<int32_t> padded_positions = positions, padded_of = sequence_of;
  padded_positions.resize(most_rows, 0x7F7F7F7F), padded_of.resize(most_rows, 0x7F7F7F7F);
  DeviceArray<SequenceOnDevice> on_sequences(padded_sequences);
  DeviceArray<int32_t> on_positions(padded_positions), on_of(padded_of), on_table(table);
  DeviceArray<std::byte> on_cache(cache), on_qkv(qkv), on_out(most_rows * static_cast<size_t>(c.heads * D * e.size()));
  DeviceArray<float> on_frequency(frequency);
  const DeviceInfo device = device_info();

  AttentionCall call;
  call.step = {on_counts.data(), on_sequences.data(), on_positions.data(), on_of.data(), on_table.data()};
  call.cache.memory = on_cache.data() + layer_elements * static_cast<size_t>(k.size());
  call.cache.page_stride = page_elements * static_cast<size_t>(k.size());
  call.cache.type = c.kv, call.cache.group = 1, call.cache.page_tokens = c.page_tokens;
  call.cache.kv_heads = c.kv_heads, call.cache.head_dim = D;
  call.shape = {c.heads, c.kv_heads, D};
  call.rope = {on_frequency.data(), rotary, rope_scale};
  call.scale = scale, call.window = c.window, call.soft_cap = c.soft_cap;
  call.qkv = on_qkv.data(), call.qkv_stride = stride, call.out = on_out.data(), call.element = c.element;
  call.most_sequences = static_cast<int32_t>(sequences.size()) + c.spare;
  call.most_rows = static_cast<int32_t>(most_rows);
  call.most_context = most_context + c.spare * 100;
  call.singles = singles;
  call.scratch = reinterpret_cast<std::byte*>(scratch.memory.data());
  ASSERT_LE(attention_scratch_bytes(call.shape, call.most_sequences, call.most_context), scratch.memory.size());

  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "stream");
  const Launch how{stream, &device, true};
  struct Way {
    std::string name;
    std::function<bool()> start;  // false: not for this device
    bool again = true;            // leaves its input as it was
    std::vector<std::byte> out = {};
    size_t missing = 0;
    double worst = 0, error = 0;
  };
  std::vector<Way> ways;
  if (decode) ways.push_back({"decode", [&] { return attend_decode(how, call), true; }});
  else ways.push_back({"any", [&] { return attend_any(how, call), true; }, false});
  if (c.every_kernel) {
    ways.push_back({"splits", [&] { return attend_single_rows_mma(how, call, true); }});
    for (const int blocks : {1, 2, 4, 8, 16}) {
      ways.push_back({"clusters of " + std::to_string(blocks), [&, blocks] { return attend_single_rows_cluster(how, call, true, blocks); }});
    }
    ways.push_back({"any", [&] { return attend_any(how, call), true; }, false});
  }
  std::vector<std::byte> got_cache;  // the first way's; all are compared with what is wanted
  for (auto way = ways.begin(); way != ways.end();) {
    SCOPED_TRACE(way->name);
    check(cudaMemcpy(on_cache.data(), cache.data(), cache.size(), cudaMemcpyHostToDevice), "copy");
    check(cudaMemcpy(on_qkv.data(), qkv.data(), qkv.size(), cudaMemcpyHostToDevice), "copy");
    on_out.poison();
    check(cudaDeviceSynchronize(), "copy");
    bool started = false;
    if (graph) {
      cudaGraph_t captured = nullptr;
      cudaGraphExec_t ready = nullptr;
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
      started = way->start();
      check(cudaStreamEndCapture(stream, &captured), "capture");
      check(cudaGraphInstantiate(&ready, captured, 0), "graph");
      check(cudaGraphLaunch(ready, stream), "graph");
      check(cudaStreamSynchronize(stream), "attention");
      cudaGraphExecDestroy(ready), cudaGraphDestroy(captured);
    } else {
      started = way->start();
      check(cudaStreamSynchronize(stream), "attention");
    }
    if (!started) {
      EXPECT_NE(device.major, 9);
      way = ways.erase(way);
      continue;
    }
    // The cache: values and what was there before exactly, new keys within a rounding.
    const std::vector<std::byte> now = on_cache.host();
    size_t far = 0;
    for (size_t i = 0; i < cache.size() / static_cast<size_t>(k.size()); ++i) {
      const float want = k.get(wanted_cache.data(), i), got = k.get(now.data(), i);
      if (std::isnan(want) ? !std::isnan(got) : !(std::abs(want - got) <= (k.kind == 0 ? 2e-6f : k.kind == 1 ? 8e-3f : 1e-3f) * (1 + std::abs(want)))) ++far;
    }
    EXPECT_EQ(far, 0u) << "elements of the cache";
    if (got_cache.empty()) got_cache = now;
    way->out = on_out.host();
    if (way->again) {
      on_out.poison();
      check(cudaDeviceSynchronize(), "poison");
      way->start();
      check(cudaStreamSynchronize(stream), "attention");
      EXPECT_TRUE(on_out.host() == way->out) << "another result the second time";
    }
    ++way;
  }

  double square = 0;
  for (int32_t r = 0; r < rows; ++r) {
    const SequenceOnDevice& s = sequences[static_cast<size_t>(sequence_of[static_cast<size_t>(r)])];
    const int32_t position = positions[static_cast<size_t>(r)];
    // Every row of short prompts, some of long ones.
    if (s.rows > 200 && r % 37 != 0 && r + 1 != rows) continue;
    for (int64_t h = 0; h < c.heads; ++h) {
      if (c.heads * static_cast<int64_t>(rows) > 4096 && (h + r) % 5 != 0) continue;
      rotate(row_head(r, h).data(), position, turned);
      const int32_t first = c.window > 0 ? std::max<int32_t>(0, position - static_cast<int32_t>(c.window) + 1) : 0;
      std::vector<double> scores, sums(static_cast<size_t>(D), 0.0);
      double most = -std::numeric_limits<double>::infinity(), total = 0;
      for (int32_t t = first; t <= position; ++t) {
        double score = 0;
        const size_t key = at(s, t, h / group, false, 0);
        for (int64_t d = 0; d < D; ++d) score += turned[static_cast<size_t>(d)] * k.get(got_cache.data(), key + static_cast<size_t>(d));
        score *= scale;
        if (c.soft_cap > 0) score = c.soft_cap * std::tanh(score / c.soft_cap);
        scores.push_back(score);
        most = std::max(most, score);
      }
      for (int32_t t = first; t <= position; ++t) {
        const double weight = std::exp(scores[static_cast<size_t>(t - first)] - most);
        total += weight;
        const size_t value = at(s, t, h / group, true, 0);
        for (int64_t d = 0; d < D; ++d) sums[static_cast<size_t>(d)] += weight * k.get(got_cache.data(), value + static_cast<size_t>(d));
      }
      for (int64_t d = 0; d < D; ++d) {
        const double want = sums[static_cast<size_t>(d)] / total;
        square += want * want;
        for (Way& way : ways) {
          const float got = e.get(way.out.data(), static_cast<size_t>((r * c.heads + h) * D + d));
          if (std::isnan(got)) {
            ++way.missing;
            continue;
          }
          way.worst = std::max(way.worst, std::abs(want - got));
          way.error += (want - got) * (want - got);
        }
      }
    }
  }
  for (const Way& way : ways) {
    SCOPED_TRACE(way.name);
    EXPECT_EQ(way.missing, 0u) << "outputs were not written";
    const double relative = std::sqrt(way.error / std::max(square, 1e-30));
    EXPECT_LE(relative, e.kind == 0 ? 2e-5 : e.kind == 1 ? 8e-3 : 1.5e-3) << "worst " << way.worst;
    size_t touched = 0;  // rows that the step does not have
    for (size_t i = static_cast<size_t>(rows * c.heads * D * e.size()); i < way.out.size(); ++i) touched += way.out[i] != std::byte{0xFF};
    EXPECT_EQ(touched, 0u) << "bytes of padding rows were written";
  }
  cudaStreamDestroy(stream);
}

Scratch large_scratch() { return Scratch(attention_scratch_bytes({64, 32, 512}, 48, 16384)); }

const std::vector<Case> kShapes = {{32, 8, 128}, {9, 3, 64}, {3, 3, 16}, {5, 1, 24}, {8, 2, 96}, {64, 8, 128}, {16, 8, 256}};

TEST(CudaAttention, DecodesEveryShapeAtEveryLength) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  for (Case c : kShapes) {
    for (const int32_t page_tokens : {16, 64}) {
      c.page_tokens = page_tokens;
      c.sequences = {{0, 1}, {1, 1}, {62, 1}, {63, 1}, {64, 1}, {127, 1}, {128, 1}, {254, 1}, {255, 1}, {256, 1}, {999, 1}};
      if (page_tokens == 64) c.sequences.push_back({4096, 1});
      c.spare = page_tokens == 16 ? 5 : 0;
      expect_attention(c, scratch, page_tokens == 64);
    }
  }
}

TEST(CudaAttention, DecodesWithWindowsCapsAndPartialRotation) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  for (Case c : {Case{32, 8, 128}, Case{9, 3, 64}, Case{5, 1, 24}}) {
    c.sequences = {{0, 1}, {63, 1}, {299, 1}, {1500, 1}};
    for (const int64_t window : {int64_t{1}, int64_t{100}, int64_t{256}, int64_t{1000}}) {
      c.window = window;
      expect_attention(c, scratch);
    }
    c.window = 0, c.soft_cap = 2;
    expect_attention(c, scratch);
    c.soft_cap = 0, c.rotary = 8;
    expect_attention(c, scratch);
    c.rotary = 0, c.window = 77, c.soft_cap = 3, c.spare = 2;
    expect_attention(c, scratch);
  }
}

TEST(CudaAttention, DecodesEveryPairOfTypes) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  for (const Element e : {Element::f32, Element::bf16, Element::f16}) {
    for (const KvType kv : {KvType::fp32, KvType::bf16, KvType::fp16}) {
      Case c{8, 2, 64};
      c.element = e, c.kv = kv;
      c.sequences = {{0, 1}, {300, 1}, {64, 1}};
      expect_attention(c, scratch);
      c.sequences = {{5, 1}, {300, 70}, {64, 3}};
      expect_attention(c, scratch);
      for (const int64_t head_dim : {40, 96, 128, 256}) {
        c.head_dim = head_dim;
        expect_attention(c, scratch);
      }
    }
  }
}

TEST(CudaAttention, EveryKernelDecodesEveryShape) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  for (const int64_t head_dim : {64, 96, 128, 256}) {
    for (const int64_t group : {1, 4, 6, 8, 16}) {
      Case c{2 * group, 2, head_dim};
      c.every_kernel = true, c.page_tokens = group == 6 ? 16 : 64, c.spare = group == 8 ? 3 : 0;
      for (const int32_t position : {0, 1, 15, 16, 17, 127, 128, 129, 255, 1000, 3000}) c.sequences.push_back({position, 1});
      expect_attention(c, scratch, group == 4);
      c.element = Element::f16, c.kv = KvType::fp16;
      c.sequences = {{15, 1}, {16, 1}, {1000, 1}};
      expect_attention(c, scratch);
    }
  }
}

TEST(CudaAttention, EveryKernelDecodesWithWindowsCapsAndPartialRotation) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  for (const int64_t head_dim : {64, 96, 128, 256}) {
    Case c{12, 3, head_dim};
    c.every_kernel = true;
    c.sequences = {{0, 1}, {15, 1}, {63, 1}, {299, 1}, {1500, 1}};
    for (const int64_t window : {1, 15, 16, 17, 100, 129, 1000}) {
      c.window = window;
      expect_attention(c, scratch);
    }
    c.window = 0, c.soft_cap = 2;
    expect_attention(c, scratch);
    c.soft_cap = 50;
    expect_attention(c, scratch);
    c.soft_cap = 0;
    for (const int32_t rotary : {0, 8, 32, 48}) {  // 8: no whole pieces of eight elements
      c.rotary = rotary;
      expect_attention(c, scratch);
    }
    c.rotary = 16, c.window = 77, c.soft_cap = 3, c.spare = 2;
    expect_attention(c, scratch);
  }
}

TEST(CudaAttention, EveryKernelDecodesEveryNumberOfSequences) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  Case c{32, 8, 128};
  c.every_kernel = true, c.page_tokens = 64;
  for (const int32_t position : {0, 16, 129, 3000, 12345}) {  // the last: more tiles than a warp looks up at a time
    c.sequences = {{position, 1}};
    expect_attention(c, scratch, true);
  }
  c.sequences = {{255, 1}, {3, 1}, {1000, 1}};
  expect_attention(c, scratch, true);
  for (int32_t i = 3; i < 40; ++i) c.sequences.push_back({37 * i % 700, 1});
  expect_attention(c, scratch, true);
}

TEST(CudaAttention, ClustersFitTheDevice) {
  for (const int64_t sequences : {1, 2, 7, 40, 512}) {
    for (const int64_t kv_heads : {1, 8, 32}) {
      for (const int64_t context : {1, 128, 1000, 8192, 131072}) {
        const int blocks = cluster_blocks(sequences, kv_heads, context, 132);
        EXPECT_TRUE(blocks == 0 || blocks == 1 || blocks == 2 || blocks == 4 || blocks == 8 || blocks == 16) << blocks;
        if (blocks > 1) {
          EXPECT_LE(sequences * kv_heads * blocks, 4 * 132);
        }
        if (blocks == 0) {
          EXPECT_GT(context, 8192) << "left to another kernel";
        }
      }
    }
  }
}

// Executables replay graphs of different capacities over one scratch.
TEST(CudaAttention, LeavesTheScratchReadyForOtherCapacities) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  Case one{32, 8, 128};
  one.every_kernel = true;
  one.sequences = {{3000, 1}};
  Case many = one;
  for (int32_t i = 0; i < 40; ++i) many.sequences.push_back({130 + 17 * i, 1});
  Case other{8, 2, 96};
  other.every_kernel = true;
  other.sequences = {{700, 1}, {800, 1}};
  for (const Case& c : {one, many, other, one, many, other, many}) expect_attention(c, scratch);
}

TEST(CudaAttention, DecodesOverManySplits) {
  TANDEM_NEEDS_GPU();
  for (Case c : {Case{8, 2, 128}, Case{3, 1, 64}, Case{16, 1, 256}}) {
    Scratch scratch{attention_scratch_bytes({c.heads, c.kv_heads, c.head_dim}, 1, 40000)};
    c.page_tokens = 64;
    c.sequences = {{39000, 1}};  // more splits than are folded at a time
    expect_attention(c, scratch);
  }
}

TEST(CudaAttention, PromptsOfEveryShape) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  for (Case c : kShapes) {
    for (const int32_t page_tokens : {16, 64}) {
      c.page_tokens = page_tokens;
      c.spare = page_tokens == 64 ? 7 : 0;
      c.sequences = {{0, 63}, {0, 64}, {0, 65}, {100, 2}, {255, 130}};
      expect_attention(c, scratch);
    }
  }
}

TEST(CudaAttention, MixesPromptsWithDecodes) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  for (Case c : kShapes) {
    c.sequences = {{10, 1}, {700, 1}, {0, 129}, {333, 17}, {0, 1}, {256, 64}};
    c.spare = 3;
    expect_attention(c, scratch, true);
  }
}

TEST(CudaAttention, PromptsWithWindowsCapsAndPartialRotation) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  for (Case c : {Case{32, 8, 128}, Case{9, 3, 64}, Case{16, 8, 256}, Case{5, 1, 24}}) {
    c.sequences = {{0, 200}, {400, 70}, {77, 1}, {500, 5}};
    for (const int64_t window : {int64_t{1}, int64_t{64}, int64_t{100}}) {
      c.window = window;
      expect_attention(c, scratch);
    }
    c.window = 0, c.soft_cap = 2;
    expect_attention(c, scratch);
    c.soft_cap = 0, c.rotary = 8;
    expect_attention(c, scratch);
    c.rotary = 0, c.window = 77, c.soft_cap = 3;
    expect_attention(c, scratch);
  }
}

TEST(CudaAttention, ALongPrompt) {
  TANDEM_NEEDS_GPU();
  Scratch scratch = large_scratch();
  Case c{32, 8, 128};
  c.page_tokens = 64;
  c.sequences = {{3000, 1100}};
  expect_attention(c, scratch);
}

}  // namespace
}  // namespace tandem::cuda
