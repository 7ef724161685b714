#include "kernels/cuda/moe.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

#include "kernels/base/error.h"
#include "kernels/cuda/prefill_moe.h"
#include "tests/kernels/cuda/device_memory.h"
#include "tests/kernels/cuda/elements.h"

namespace tandem::cuda {
namespace {

struct Device {
  DeviceInfo info = device_info();
  Launch how(bool dependent = true) const { return {nullptr, &info, dependent}; }
};

struct Mixture { int64_t rows; int32_t experts, begin, local, top_k; bool normalize; };

// What route() must write, by plain loops.
struct Lists {
  std::vector<int32_t> begin, row_of, pair_of;
  std::vector<double> weight;
};
Lists reference(const Mixture& m, const std::vector<float>& logits) {
  Lists out;
  std::vector<std::vector<int32_t>> chosen;
  for (int64_t row = 0; row < m.rows; ++row) {
    const float* l = logits.data() + row * m.experts;
    std::vector<int32_t> order(static_cast<size_t>(m.experts));
    for (int32_t e = 0; e < m.experts; ++e) order[static_cast<size_t>(e)] = e;
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return l[a] > l[b]; });
    const double most = l[order[0]];
    double all = 0, kept = 0;
    for (int32_t e = 0; e < m.experts; ++e) all += std::exp(l[e] - most);
    order.resize(static_cast<size_t>(m.top_k));
    std::sort(order.begin(), order.end());
    for (const int32_t e : order) kept += std::exp(l[e] - most) / all;
    for (const int32_t e : order) out.weight.push_back(std::exp(l[e] - most) / all / (m.normalize ? kept : 1));
    chosen.push_back(order);
  }
  out.pair_of.assign(static_cast<size_t>(m.rows * m.top_k), -1);
  out.begin.push_back(0);
  for (int32_t e = m.begin; e < m.begin + m.local; ++e) {
    for (int64_t row = 0; row < m.rows; ++row) {
      for (int32_t k = 0; k < m.top_k; ++k) {
        if (chosen[static_cast<size_t>(row)][static_cast<size_t>(k)] != e) continue;
        out.pair_of[static_cast<size_t>(row * m.top_k + k)] = static_cast<int32_t>(out.row_of.size());
        out.row_of.push_back(static_cast<int32_t>(row));
      }
    }
    out.begin.push_back(static_cast<int32_t>(out.row_of.size()));
  }
  return out;
}

struct DeviceLists {
  DeviceArray<int32_t> begin, row_of, pair_of;
  DeviceArray<float> weight;
  explicit DeviceLists(const Mixture& m)
      : begin(static_cast<size_t>(m.local) + 1), row_of(static_cast<size_t>(m.rows * m.top_k)), pair_of(row_of.size()), weight(row_of.size()) {}
  ExpertLists lists() { return {begin.data(), row_of.data(), pair_of.data(), weight.data()}; }
};
MoeCall route_call(const Mixture& m, const float* logits, DeviceLists& lists) {
  MoeCall call;
  call.router_logits = logits;
  call.rows = m.rows, call.experts = m.experts, call.expert_begin = m.begin, call.local_experts = m.local, call.top_k = m.top_k;
  call.normalize = m.normalize;
  call.lists = lists.lists();
  return call;
}
template <typename T>
std::vector<T> first_of(std::vector<T> values, size_t count) {
  values.resize(count);
  return values;
}

const Mixture kMixtures[] = {{1, 8, 0, 8, 2, true},    {1, 8, 4, 4, 2, true},     {2, 8, 0, 3, 2, false},   {7, 5, 1, 3, 5, true},    {64, 8, 2, 4, 2, true},
                             {63, 64, 0, 64, 6, true}, {33, 300, 40, 260, 8, true}, {64, 160, 0, 80, 32, false}, {65, 8, 0, 8, 2, true},  {100, 8, 5, 3, 1, false},
                             {513, 64, 16, 33, 6, true}, {1025, 300, 0, 300, 8, true}, {8256, 8, 0, 8, 2, true}, {8191, 8, 6, 2, 2, true}};

TEST(CudaMoe, RoutesAsPlainLoopsDo) {
  TANDEM_NEEDS_GPU();
  const Device device;
  unsigned seed = 1;
  for (const Mixture& m : kMixtures) {
    for (const bool ties : {false, true}) {
      std::mt19937 random(seed);
      std::normal_distribution<float> normal(0, 3);
      std::vector<float> logits(static_cast<size_t>(m.rows * m.experts));
      for (float& v : logits) v = ties ? std::round(normal(random)) : normal(random);
      DeviceArray<float> on_device(logits);
      DeviceLists lists(m);
      route(device.how(), route_call(m, on_device.data(), lists));
      const Lists expected = reference(m, logits);
      EXPECT_EQ(lists.begin.host(), expected.begin) << "seed " << seed << " rows " << m.rows << " experts " << m.experts;
      EXPECT_EQ(first_of(lists.row_of.host(), expected.row_of.size()), expected.row_of) << "seed " << seed << " rows " << m.rows << " experts " << m.experts;
      EXPECT_EQ(lists.pair_of.host(), expected.pair_of) << "seed " << seed << " rows " << m.rows << " experts " << m.experts;
      const auto weight = lists.weight.host();
      int64_t wrong = 0;
      for (size_t i = 0; i < weight.size(); ++i) wrong += !(std::abs(weight[i] - expected.weight[i]) <= 4e-6 * expected.weight[i]);
      EXPECT_EQ(wrong, 0) << "seed " << seed;
      ++seed;
    }
  }
}

TEST(CudaMoe, NanLogitsGiveNanWeightsAndGoodLists) {
  TANDEM_NEEDS_GPU();
  const Device device;
  for (const int64_t rows : {3, 70}) {
    const Mixture m{rows, 8, 0, 8, 2, true};
    std::vector<float> logits(static_cast<size_t>(rows * 8), 1.0f);
    for (int e = 0; e < 8; ++e) logits[8 + static_cast<size_t>(e)] = NAN;
    logits[16] = NAN;
    DeviceArray<float> on_device(logits);
    DeviceLists lists(m);
    route(device.how(), route_call(m, on_device.data(), lists));
    const auto weight = lists.weight.host();
    for (size_t i = 0; i < weight.size(); ++i) EXPECT_EQ(std::isnan(weight[i]), i / 2 == 1 || i / 2 == 2) << i;
    EXPECT_EQ(lists.begin.host().back(), 2 * rows);
    std::vector<int32_t> pairs = lists.pair_of.host();
    std::sort(pairs.begin(), pairs.end());
    for (size_t i = 0; i < pairs.size(); ++i) EXPECT_EQ(pairs[i], static_cast<int32_t>(i));
  }
}

TEST(CudaMoe, RefusesMoreChoicesThanAWarpHolds) {
  TANDEM_NEEDS_GPU();
  const Device device;
  MoeCall call;
  call.rows = 1, call.experts = call.local_experts = 64, call.top_k = 33;
  EXPECT_THROW(route(device.how(), call), Error);
}

// ---- one row's norm, router and choice in one kernel

void expect_entered(const Device& device, Element element, int64_t hidden, const Mixture& m, bool biased, unsigned seed) {
  std::mt19937 random(seed);
  const std::string what = "hidden " + std::to_string(hidden) + " experts " + std::to_string(m.experts) + " seed " + std::to_string(seed);
  const int64_t stride = dense_stride(hidden);
  const std::vector<float> x = random_values(hidden, Element::f32, random), norm = random_values(hidden, Element::f32, random);
  const std::vector<float> router = random_values(m.experts * hidden, element, random), bias = random_values(m.experts, Element::f32, random);
  DeviceArray<float> x_on(x), norm_on(norm), bias_on(bias);
  DeviceArray<std::byte> router_on(encoded(router, m.experts, hidden, stride, element, NAN)), h_on(static_cast<size_t>(hidden * size(element)));
  DeviceLists lists(m);
  EnterMixtureCall call;
  call.x = x_on.data(), call.norm_weight = norm_on.data(), call.epsilon = 1e-5f;
  call.router = router_on.data(), call.router_bias = biased ? bias_on.data() : nullptr;
  call.h = h_on.data(), call.element = element, call.hidden = hidden;
  call.choice = route_call(m, nullptr, lists);
  enter_mixture(device.how(), call);

  double squares = 0;
  for (const float v : x) squares += double{v} * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(hidden) + 1e-5);
  const std::vector<float> h = decoded(h_on.host(), hidden, element);
  int64_t wrong = 0;
  for (int64_t i = 0; i < hidden; ++i) {
    const auto at = static_cast<size_t>(i);
    const double value = x[at] * scale * norm[at];
    wrong += !(std::abs(h[at] - value) <= (unit_of(element) + 1e-6) * std::abs(value) + 1e-7);
  }
  EXPECT_EQ(wrong, 0) << what;
  std::vector<float> logits;  // of the rounded row, which is what the experts read too
  for (int32_t e = 0; e < m.experts; ++e) {
    double sum = biased ? bias[static_cast<size_t>(e)] : 0;
    for (int64_t i = 0; i < hidden; ++i) sum += double{h[static_cast<size_t>(i)]} * router[static_cast<size_t>(e * hidden + i)];
    logits.push_back(static_cast<float>(sum));
  }
  const Lists expected = reference(m, logits);
  EXPECT_EQ(lists.begin.host(), expected.begin) << what;
  EXPECT_EQ(first_of(lists.row_of.host(), expected.row_of.size()), expected.row_of) << what;
  EXPECT_EQ(lists.pair_of.host(), expected.pair_of) << what;
  const auto weight = lists.weight.host();
  for (size_t i = 0; i < weight.size(); ++i) EXPECT_NEAR(weight[i], expected.weight[i], 1e-3 * expected.weight[i] + 1e-7) << what;
}

TEST(CudaMoe, EntersWithOneRowAsPlainLoopsDo) {
  TANDEM_NEEDS_GPU();
  const Device device;
  unsigned seed = 700;
  const Mixture kOne[] = {{1, 8, 0, 8, 2, true}, {1, 8, 4, 4, 2, true}, {1, 8, 5, 3, 1, false}, {1, 5, 1, 3, 5, true}, {1, 1, 0, 1, 1, false}, {1, 8, 0, 8, 8, false}};
  for (const Element element : {Element::bf16, Element::f16}) {
    for (const int64_t hidden : {4, 12, 64, 1020, 4092, 4096, 4100, 6144, 8188, 8192}) {
      for (const Mixture& m : kOne) expect_entered(device, element, hidden, m, seed % 2 == 0, seed), ++seed;
    }
  }
}

TEST(CudaMoe, RefusesRowsAndRoutersThatABlockDoesNotHold) {
  TANDEM_NEEDS_GPU();
  const Device device;
  EnterMixtureCall call;
  call.hidden = 8196, call.choice.rows = 1, call.choice.experts = call.choice.local_experts = 8, call.choice.top_k = 2;
  EXPECT_THROW(enter_mixture(device.how(), call), Error);
  call.hidden = 4096, call.choice.experts = 9;
  EXPECT_THROW(enter_mixture(device.how(), call), Error);
  call.choice.experts = 8, call.choice.rows = 2;
  EXPECT_THROW(enter_mixture(device.how(), call), Error);
}

TEST(CudaMoe, GathersRowsByPair) {
  TANDEM_NEEDS_GPU();
  const Device device;
  std::mt19937 random(5);
  for (const Element element : {Element::f32, Element::bf16, Element::f16}) {
    for (const int64_t hidden : {1, 7, 64, 2056}) {
      const int64_t rows = 37, pairs = 71;
      const auto values = random_values(rows * hidden, element, random);
      DeviceArray<std::byte> h(encoded(values, rows, hidden, hidden, element, 0));
      std::vector<int32_t> row_of;
      std::vector<float> expected;
      for (int64_t i = 0; i < pairs; ++i) {
        row_of.push_back(static_cast<int32_t>((i * 11) % rows));
        expected.insert(expected.end(), values.begin() + row_of.back() * hidden, values.begin() + (row_of.back() + 1) * hidden);
      }
      DeviceArray<int32_t> rows_of(row_of);
      DeviceArray<std::byte> out(static_cast<size_t>(pairs * hidden * size(element)));
      gather_rows(device.how(), h.data(), element, hidden, rows_of.data(), pairs, out.data());
      EXPECT_EQ(decoded(out.host(), pairs * hidden, element), expected);
    }
  }
}

struct ExpertCase { Element element; Mixture mixture; int64_t hidden, ffn; bool add; };

void expect_experts(const Device& device, const ExpertCase& c, unsigned seed) {
  std::mt19937 random(seed);
  const Mixture& m = c.mixture;
  const Resident resident{"dense", Kind::dense, c.element, false};
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> logits(static_cast<size_t>(m.rows * m.experts));
  for (float& v : logits) v = normal(random);
  const Lists expected = reference(m, logits);
  std::vector<std::vector<float>> values[3];
  std::vector<std::unique_ptr<DeviceArray<std::byte>>> memory;
  std::vector<const std::byte*> addresses[3];
  std::vector<std::unique_ptr<DeviceArray<const std::byte*>>> tables;
  const int64_t heights[3] = {c.ffn, c.ffn, c.hidden}, widths[3] = {c.hidden, c.hidden, c.ffn};
  for (int i = 0; i < 3; ++i) {
    for (int32_t e = 0; e < m.local; ++e) {
      values[i].push_back(random_values(heights[i] * widths[i], c.element, random));
      for (float& v : values[i].back()) v = rounded(v / std::sqrt(static_cast<float>(widths[i])), c.element);
      memory.push_back(std::make_unique<DeviceArray<std::byte>>(encoded(values[i].back(), heights[i], widths[i], dense_stride(widths[i]), c.element, 0)));
      addresses[i].push_back(memory.back()->data());
    }
    tables.push_back(std::make_unique<DeviceArray<const std::byte*>>(addresses[i]));
  }
  const auto h = random_values(m.rows * c.hidden, c.element, random), before = random_values(m.rows * c.hidden, Element::f32, random);
  DeviceArray<std::byte> rows(encoded(h, m.rows, c.hidden, c.hidden, c.element, 0)), gated(static_cast<size_t>(m.rows * m.top_k * c.ffn * size(c.element)));
  DeviceArray<float> on_device(logits), results(static_cast<size_t>(m.rows * m.top_k * c.hidden)), y(before);
  DeviceArray<std::byte> scratch(linear_scratch_bytes(c.ffn));
  scratch.zero();
  DeviceLists lists(m);
  route(device.how(), route_call(m, on_device.data(), lists));
  ExpertCall call;
  call.gate = {{&resident, nullptr, nullptr, c.ffn, c.hidden}, tables[0]->data()};
  call.up = {{&resident, nullptr, nullptr, c.ffn, c.hidden}, tables[1]->data()};
  call.down = {{&resident, nullptr, nullptr, c.hidden, c.ffn}, tables[2]->data()};
  call.h = rows.data(), call.element = c.element;
  call.rows = m.rows, call.hidden = c.hidden, call.ffn = c.ffn, call.local_experts = m.local, call.top_k = m.top_k;
  call.lists = lists.lists();
  call.gated = gated.data(), call.results = results.data(), call.y = y.data(), call.add = c.add;
  experts(device.how(), call, {scratch.data(), scratch.bytes()});
  const auto got = y.host();

  // The rows in the middle are rounded: each stage is judged by what it was given.
  const std::string what = "seed " + std::to_string(seed) + " element " + std::to_string(static_cast<int>(c.element)) + " rows " + std::to_string(m.rows) + " hidden " +
                           std::to_string(c.hidden) + " ffn " + std::to_string(c.ffn);
  const std::vector<float> middle = decoded(gated.host(), m.rows * m.top_k * c.ffn, c.element);
  std::vector<double> sums(got.size());
  int64_t wrong = 0;
  for (int32_t e = 0; e < m.local; ++e) {
    for (int32_t pair = expected.begin[static_cast<size_t>(e)]; pair < expected.begin[static_cast<size_t>(e) + 1]; ++pair) {
      const int64_t row = expected.row_of[static_cast<size_t>(pair)];
      const auto product = [&](int which, int64_t i, const float* x) {
        const float* w = values[which][static_cast<size_t>(e)].data() + i * widths[which];
        double sum = 0;
        for (int64_t k = 0; k < widths[which]; ++k) sum += static_cast<double>(w[k]) * x[k];
        return sum;
      };
      for (int64_t i = 0; i < c.ffn; ++i) {
        const double gate = product(0, i, h.data() + row * c.hidden), up = product(1, i, h.data() + row * c.hidden), value = gate / (1 + std::exp(-gate)) * up;
        wrong += !(std::abs(middle[static_cast<size_t>(pair * c.ffn + i)] - value) <= (unit_of(c.element) + 1e-5) * std::abs(value) + 1e-5 * (1 + std::abs(up)));
      }
      double weight = 0;
      for (int32_t k = 0; k < m.top_k; ++k) {
        if (expected.pair_of[static_cast<size_t>(row * m.top_k + k)] == pair) weight = expected.weight[static_cast<size_t>(row * m.top_k + k)];
      }
      for (int64_t i = 0; i < c.hidden; ++i) sums[static_cast<size_t>(row * c.hidden + i)] += weight * product(2, i, middle.data() + pair * c.ffn);
    }
  }
  EXPECT_EQ(wrong, 0) << what;
  double off = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = sums[i] + (c.add ? before[i] : 0);
    off += (got[i] - value) * (got[i] - value), size += value * value;
  }
  EXPECT_LE(std::sqrt(off), 2e-6 * std::sqrt(size) + 1e-9) << what;
}

TEST(CudaMoe, ExpertsAsPlainLoopsDo) {
  TANDEM_NEEDS_GPU();
  const Device device;
  unsigned seed = 300;
  for (const Element element : {Element::f32, Element::bf16, Element::f16}) {
    for (const int64_t rows : {1, 2, 8, 9, 40, 64}) {
      expect_experts(device, {element, {rows, 8, 0, 8, 2, true}, 64, 136, true}, seed++);
      expect_experts(device, {element, {rows, 8, 3, 4, 2, true}, 67, 45, false}, seed++);
      expect_experts(device, {element, {rows, 5, 0, 5, 3, false}, 520, 33, true}, seed++);
    }
    expect_experts(device, {element, {5, 4, 0, 4, 2, true}, 1030, 2056, true}, seed++);
    expect_experts(device, {element, {30, 2, 0, 2, 2, true}, 264, 4400, false}, seed++);
    expect_experts(device, {element, {20, 2, 0, 2, 2, true}, 72, 14344, true}, seed++);
  }
}

}  // namespace
}  // namespace tandem::cuda
