// The planner against brute force over every order, subset and split of small cases; what must hold for any case; and plans as people
// and programs read them.
#include "sharding/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <random>

#include "kernels/base/error.h"

namespace tandem {
namespace {

constexpr uint64_t kMiB = 1 << 20;
using testing::HasSubstr;

Piece piece(int members, uint64_t weights, uint64_t scales, std::vector<uint64_t> kv = {}) {
  Piece p;
  p.resident.assign(members, {weights, scales});
  p.read_bytes = (weights + scales) * members;
  p.flops = 2.0 * static_cast<double>(weights) * members * 2;  // four-bit codes
  p.kv_page_bytes = std::move(kv);
  return p;
}

Profile some_model(int layers, int members = 1) {
  Profile profile;
  profile.name = "test", profile.digest = "d", profile.format = "nf4";
  profile.parameters = 1000000, profile.footprint_bytes = 12345, profile.hidden = 64, profile.context_limit = 8192;
  profile.group = {1, 1, members};
  for (int l = 0; l < layers; ++l) profile.layers.push_back(piece(members, 100 * kMiB, 13 * kMiB, {1 * kMiB}));
  profile.embedding = piece(members, 60 * kMiB, 0);
  profile.embedding.read_bytes = 0, profile.embedding.flops = 0;
  profile.head = piece(members, 60 * kMiB, 0);
  profile.embedding_name = "model.embed_tokens", profile.head_name = "lm_head", profile.layer_prefix = "model.layers.";
  profile.last_modules = {"model.norm"};
  for (auto& row : profile.workspace) std::fill(std::begin(row), std::end(row), 10 * kMiB);
  profile.workspace[0][1] = profile.workspace[1][1] = 20 * kMiB;
  profile.communication_bytes = 2 * kMiB;
  return profile;
}

Device gpu(std::string id, uint64_t mib, double gigabytes_per_second = 0, std::string kind = "gpu") {
  Device d;
  d.id = std::move(id), d.kind = std::move(kind);
  d.total_bytes = d.free_bytes = mib * kMiB;
  d.reserve_bytes = 16 * kMiB, d.overhead_bytes = 8 * kMiB;
  d.bandwidth = gigabytes_per_second * 1e9;
  return d;
}

Workload workload(int context = 256, int batch = 1) { return {context, batch, 512, 64}; }

// ---- brute force, from the definitions

struct Brute {
  const Profile& profile;
  const Cluster& cluster;
  Workload work;
  int least_stages, most_stages;
  int size() const { return profile.group.group_size(); }

  int64_t pages(size_t group) const {
    const int64_t whole = (work.context + work.page_tokens - 1) / work.page_tokens;
    const int64_t window = group < profile.kv_windows.size() ? profile.kv_windows[group] : 0;
    if (window == 0 || window >= work.context) return whole * work.batch;
    return std::min(whole, (window - 1 + work.page_tokens - 1) / work.page_tokens + 1) * work.batch;
  }
  int64_t used(int group, int member, int from, int to) const {
    const bool first = from == 0, last = to == static_cast<int>(profile.layers.size());
    uint64_t bytes = profile.workspace[first][last] + profile.communication_bytes + cluster.devices[group * size() + member].overhead_bytes;
    for (int l = from; l < to; ++l) {
      bytes += profile.layers[l].resident[member].sum();
      for (size_t k = 0; k < profile.layers[l].kv_page_bytes.size(); ++k) bytes += profile.layers[l].kv_page_bytes[k] * pages(k);
    }
    if (first) bytes += profile.embedding.resident[member].sum();
    if (last && !(first && profile.tied)) bytes += profile.head.resident[member].sum();
    return static_cast<int64_t>(bytes);
  }
  // Calls visit(order, cuts) for every placement.
  void each(const std::function<void(const std::vector<int>&, const std::vector<int>&)>& visit) const {
    const int groups = static_cast<int>(cluster.devices.size()) / size(), layers = static_cast<int>(profile.layers.size());
    std::vector<int> order, cuts{0};
    const std::function<void(int)> cut = [&](int stages) {
      if (static_cast<int>(cuts.size()) == stages + 1) {
        if (cuts.back() == layers) visit(order, cuts);
        return;
      }
      for (int end = cuts.back() + 1; end <= layers; ++end) {
        cuts.push_back(end);
        cut(stages);
        cuts.pop_back();
      }
    };
    const std::function<void(int)> pick = [&](int stages) {
      if (static_cast<int>(order.size()) == stages) return cut(stages);
      for (int g = 0; g < groups; ++g) {
        if (std::find(order.begin(), order.end(), g) != order.end()) continue;
        order.push_back(g);
        pick(stages);
        order.pop_back();
      }
    };
    for (int stages = least_stages; stages <= most_stages; ++stages) pick(stages);
  }
  bool inside(const std::vector<int>& order, const std::vector<int>& cuts, bool keep_reserve) const {
    for (size_t s = 0; s < order.size(); ++s) {
      for (int m = 0; m < size(); ++m) {
        const Device& d = cluster.devices[order[s] * size() + m];
        const auto limit = static_cast<int64_t>(d.free_bytes) - (keep_reserve ? static_cast<int64_t>(d.reserve_bytes) : 0);
        if (used(order[s], m, cuts[s], cuts[s + 1]) > limit) return false;
      }
    }
    return true;
  }
  bool feasible(bool keep_reserve) const {
    bool any = false;
    each([&](const auto& order, const auto& cuts) { any = any || inside(order, cuts, keep_reserve); });
    return any;
  }
};

struct Case {
  Profile profile;
  Cluster cluster;
  Workload work;
};

Case random_case(std::mt19937& random) {
  const auto pick = [&random](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  Case c;
  const int members = pick(0, 3) == 0 ? 2 : 1, layers = pick(1, 6), devices = pick(1, members == 2 ? 4 : 3);
  c.profile = some_model(layers, members);
  c.profile.tied = pick(0, 1);
  if (pick(0, 1)) c.profile.kv_windows = {0, pick(1, 300)};
  for (Piece& layer : c.profile.layers) {
    layer = piece(members, pick(20, 200) * kMiB, pick(0, 20) * kMiB, {});
    for (Bytes& b : layer.resident) b.weights += pick(0, 5) * kMiB;  // members need not be alike
    layer.kv_page_bytes = pick(0, 1) ? std::vector<uint64_t>{static_cast<uint64_t>(pick(0, 8)) * kMiB}
                                     : std::vector<uint64_t>{0, static_cast<uint64_t>(pick(0, 8)) * kMiB};
  }
  const bool speeds = pick(0, 2) > 0;
  for (int d = 0; d < std::max(devices, members); ++d) {
    c.cluster.devices.push_back(gpu(std::to_string(d), pick(100, 900), speeds ? pick(1, 4) * 100 : 0));
    if (d > 0 && pick(0, 2) == 0) {
      c.cluster.devices[d] = c.cluster.devices[d - 1];
      c.cluster.devices[d].id = std::to_string(d);
    }
  }
  c.work = workload(pick(1, 700), pick(1, 3));
  c.profile.context_limit = 2048;
  return c;
}

int most_stages(const Case& c) {
  return static_cast<int>(std::min(c.cluster.devices.size() / c.profile.group.group_size(), c.profile.layers.size()));
}

void check_sums(const Case& c, const Plan& plan) {
  uint64_t total = 0, expected = 0;
  int layer = 0;
  size_t rank = 0;
  const Brute brute{c.profile, c.cluster, c.work, 1, 1};
  for (const PlanStage& stage : plan.stages) {
    EXPECT_EQ(stage.first_layer, layer);
    EXPECT_LE(stage.first_layer, stage.last_layer);
    EXPECT_EQ(stage.embedding, &stage == &plan.stages.front());
    EXPECT_EQ(stage.head, &stage == &plan.stages.back());
    ASSERT_EQ(static_cast<int>(stage.devices.size()), c.profile.group.group_size());
    for (int m = 0; m < c.profile.group.group_size(); ++m, ++rank) {
      const PlanDevice& d = plan.devices.at(rank);
      EXPECT_EQ(stage.devices[m], d.id);
      const auto found =
          std::find_if(c.cluster.devices.begin(), c.cluster.devices.end(), [&d](const Device& other) { return other.id == d.id; });
      ASSERT_NE(found, c.cluster.devices.end());
      const int group = static_cast<int>(found - c.cluster.devices.begin()) / c.profile.group.group_size();
      EXPECT_EQ(static_cast<int64_t>(d.used_bytes()), brute.used(group, m, stage.first_layer, stage.last_layer + 1));
      EXPECT_EQ(d.free_bytes, found->free_bytes);
      total += d.weights_bytes + d.scales_bytes;
    }
    layer = stage.last_layer + 1;
  }
  EXPECT_EQ(layer, static_cast<int>(c.profile.layers.size()));
  EXPECT_EQ(rank, plan.devices.size());
  for (int m = 0; m < c.profile.group.group_size(); ++m) {
    for (const Piece& l : c.profile.layers) expected += l.resident[m].sum();
    expected += c.profile.embedding.resident[m].sum();
    if (!(c.profile.tied && plan.stages.size() == 1)) expected += c.profile.head.resident[m].sum();
  }
  EXPECT_EQ(total, expected);
  EXPECT_EQ(plan.mesh.size(), static_cast<int>(plan.devices.size()));
  EXPECT_EQ(plan.device_map.size(), c.profile.layers.size() + 3);
}

TEST(Planner, AgreesWithBruteForce) {
  int fits = 0, tight = 0, no = 0;
  for (int seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const Case c = random_case(random);
    const Brute brute{c.profile, c.cluster, c.work, 1, most_stages(c)};
    const bool roomy = brute.feasible(true), possible = roomy || brute.feasible(false);
    const Verdict expected = roomy ? Verdict::fits : possible ? Verdict::tight : Verdict::no;
    (roomy ? fits : possible ? tight : no)++;
    for (const Objective objective : {Objective::throughput, Objective::latency, Objective::capacity}) {
      const Plan p = plan(c.profile, c.cluster, c.work, objective, {});
      EXPECT_EQ(name(p.verdict), name(expected));
      check_sums(c, p);
      EXPECT_EQ(p.objective_value, p.objective_bound);
      if (p.verdict == Verdict::no) {
        EXPECT_THAT(p.reason, HasSubstr("lacks"));
        continue;
      }
      // The value is the objective of the plan itself, and no other placement is better.
      const bool known = c.cluster.devices[0].bandwidth > 0 &&
                         std::all_of(c.cluster.devices.begin(), c.cluster.devices.end(), [](const Device& d) { return d.bandwidth > 0; });
      if (!known || objective == Objective::capacity) continue;
      double value = 0;
      for (const PlanStage& s : p.stages)
        value = objective == Objective::latency ? value + s.decode_seconds : std::max(value, s.decode_seconds);
      if (objective == Objective::latency) value += 20e-6 * static_cast<double>(p.stages.size() - 1);
      EXPECT_NEAR(p.objective_value, value, 1e-9);
    }
  }
  EXPECT_GT(fits, 50);
  EXPECT_GT(tight, 3);
  EXPECT_GT(no, 50);
}

// No other placement that is allowed beats the plan's value: each is planned with its layers fixed and its devices in its order.
TEST(Planner, NothingBeatsTheBest) {
  for (int seed = 1000; seed < 1120; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const Case c = random_case(random);
    for (const Objective objective : {Objective::throughput, Objective::latency, Objective::capacity}) {
      const Plan p = plan(c.profile, c.cluster, c.work, objective, {});
      if (p.verdict != Verdict::fits) continue;
      const Brute brute{c.profile, c.cluster, c.work, 1, most_stages(c)};
      double best = objective == Objective::capacity ? 0 : std::numeric_limits<double>::infinity();
      brute.each([&](const auto& order, const auto& cuts) {
        if (!brute.inside(order, cuts, true)) return;
        Cluster ordered;
        for (const int g : order) {
          for (int m = 0; m < brute.size(); ++m) ordered.devices.push_back(c.cluster.devices[g * brute.size() + m]);
        }
        // Speeds must be known or unknown for the same cluster: unknown anywhere means bytes count.
        const bool known = std::all_of(c.cluster.devices.begin(), c.cluster.devices.end(), [](const Device& d) { return d.bandwidth > 0; });
        if (!known) std::for_each(ordered.devices.begin(), ordered.devices.end(), [](Device& d) { d.bandwidth = 0; });
        Placement placement;
        for (size_t s = 0; s < order.size(); ++s) placement.layers_per_stage.push_back(cuts[s + 1] - cuts[s]);
        const Plan other = plan(c.profile, ordered, c.work, objective, placement);
        ASSERT_EQ(name(other.verdict), "fits");
        best = objective == Objective::capacity ? std::max(best, other.objective_value) : std::min(best, other.objective_value);
      });
      EXPECT_DOUBLE_EQ(p.objective_value, best) << name(objective);
    }
  }
}

TEST(Planner, LimitsAreTheLargestThatFit) {
  for (int seed = 2000; seed < 2060; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    Case c = random_case(random);
    c.profile.context_limit = 400;
    const Plan p = plan(c.profile, c.cluster, c.work, Objective::throughput, {});
    int context = 0, batch = 0;
    for (int n = 1; n <= 400; ++n) {
      Brute brute{c.profile, c.cluster, c.work, 1, most_stages(c)};
      brute.work.context = n;
      if (brute.feasible(true)) context = n;
    }
    EXPECT_EQ(p.max_context, context);
    for (int n = 1; n <= 40; ++n) {
      Brute brute{c.profile, c.cluster, c.work, 1, most_stages(c)};
      brute.work.batch = n;
      if (brute.feasible(true)) batch = n;
    }
    EXPECT_EQ(std::min(p.max_batch, 40), batch);
  }
}

TEST(Planner, MoreMemoryNeverHurtsAndOrderNeverMatters) {
  for (int seed = 3000; seed < 3100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    Case c = random_case(random);
    if (c.profile.group.group_size() == 1) {
      const Plan before = plan(c.profile, c.cluster, c.work, Objective::throughput, {});
      std::shuffle(c.cluster.devices.begin(), c.cluster.devices.end(), random);
      const Plan after = plan(c.profile, c.cluster, c.work, Objective::throughput, {});
      EXPECT_EQ(name(before.verdict), name(after.verdict));
      EXPECT_EQ(before.objective_value, after.objective_value);
      EXPECT_EQ(before.max_context, after.max_context);
    }
    Plan last = plan(c.profile, c.cluster, c.work, Objective::latency, {});
    for (int step = 0; step < 6; ++step) {
      c.cluster.devices[random() % c.cluster.devices.size()].free_bytes += 70 * kMiB;
      const Plan next = plan(c.profile, c.cluster, c.work, Objective::latency, {});
      EXPECT_LE(next.verdict, last.verdict);
      EXPECT_GE(next.max_context, last.max_context);
      EXPECT_GE(next.max_batch, last.max_batch);
      EXPECT_TRUE(last.verdict != Verdict::fits || next.objective_value <= last.objective_value);
      last = next;
    }
  }
}

// ---- single cases

Cluster three_gpus(uint64_t a, uint64_t b, uint64_t c) { return {{gpu("0", a, 936), gpu("1", b, 936), gpu("2", c, 448)}, {}}; }

TEST(Planner, FillsUnequalDevices) {
  const Plan p = plan(some_model(24), three_gpus(1500, 1500, 800), workload(), Objective::throughput, {});
  EXPECT_EQ(name(p.verdict), "fits");
  ASSERT_EQ(p.stages.size(), 3u);
  EXPECT_THAT(p.binding, HasSubstr("% of 1.46 GiB used: weights "));
  EXPECT_GT(p.decode_low, 0);
  EXPECT_LT(p.decode_low, p.decode_mid);
  EXPECT_LT(p.decode_mid, p.decode_high);
  EXPECT_TRUE(p.remedies.empty());
  EXPECT_EQ(p.kv_pages, (std::vector<int32_t>{4}));
  EXPECT_EQ(p.device_map.front(), (std::pair<std::string, std::string>{"model.embed_tokens", p.stages[0].devices[0]}));
  EXPECT_EQ(p.device_map.back(), (std::pair<std::string, std::string>{"lm_head", p.stages[2].devices[0]}));
}

TEST(Planner, LatencyTakesTheFewestAndFastest) {
  const Plan p = plan(some_model(6), {{gpu("slow", 4000, 300), gpu("fast", 4000, 900), gpu("faster", 4000, 1000)}, {}}, workload(),
                      Objective::latency, {});
  ASSERT_EQ(p.stages.size(), 1u);
  EXPECT_EQ(p.devices[0].id, "faster");
  EXPECT_EQ(plan(some_model(6), three_gpus(4000, 4000, 4000), workload(), Objective::latency, {.pp = 2}).stages.size(), 2u);
}

TEST(Planner, OnCpusEveryRankTakesPart) {
  Cluster cluster;
  for (int rank = 0; rank < 3; ++rank) {
    Device d = gpu("cpu:" + std::to_string(rank), 4000);
    d.is_cpu = true, d.kind = "cpu";
    cluster.devices.push_back(d);
  }
  for (const Objective objective : {Objective::latency, Objective::throughput, Objective::capacity}) {
    const Plan p = plan(some_model(7), cluster, workload(), objective, {});
    ASSERT_EQ(p.stages.size(), 3u);
    for (size_t s = 0; s < 3; ++s) {
      EXPECT_EQ(p.devices[s].id, "cpu:" + std::to_string(s));
      EXPECT_GE(p.stages[s].last_layer - p.stages[s].first_layer, 1);  // balanced: 2 or 3 of 7
    }
    EXPECT_EQ(p.decode_mid, 0);
  }
}

TEST(Planner, GroupsOfDevicesAreStages) {
  const Plan p = plan(some_model(8, 2), {{gpu("a", 900), gpu("b", 900), gpu("c", 900), gpu("d", 900), gpu("e", 900)}, {}}, workload(),
                      Objective::throughput, {.pp = 2});
  EXPECT_EQ(p.mesh.text(), "pp2 x ep1 x tp2");
  EXPECT_EQ(p.stages[1].devices, (std::vector<std::string>{"c", "d"}));
  EXPECT_EQ(p.device_map.back().second, "c,d");
}

TEST(Planner, SaysWhatDoesNotFitAndWhatWouldHelp) {
  // 12 layers of 113 MiB and 16 MiB of keys and values each do not fit into 2 x 700 MiB.
  const Plan p = plan(some_model(12), {{gpu("0", 700, 900), gpu("1", 700, 900)}, {}}, workload(1024), Objective::throughput, {});
  EXPECT_EQ(name(p.verdict), "no");
  // The worse device holds six layers: 6 x 129 + 60 + 20 + 2 + 8 = 864 MiB.
  EXPECT_THAT(p.reason,
              HasSubstr("on device 1, which lacks 164.00 MiB (171966464 bytes); all devices together lack 318.00 MiB (333447168 bytes)"));
  EXPECT_EQ(p.max_context, 0);
  std::vector<std::string> changes;
  for (const Remedy& r : p.remedies) {
    changes.push_back(r.change);
    EXPECT_GT(r.gains_bytes, 0u);
  }
  EXPECT_THAT(changes, testing::UnorderedElementsAre("--kv-dtype fp8", "--double-quant", "one more gpu"));
  EXPECT_EQ(p.remedies.front().change, "one more gpu");
  EXPECT_TRUE(p.remedies.front().enough);

  const Plan context = plan(some_model(4), {{gpu("0", 640)}, {}}, workload(4096), Objective::throughput, {});
  EXPECT_THAT(context.reason, HasSubstr("the KV cache of model.layers."));
  ASSERT_FALSE(context.remedies.empty());
  EXPECT_EQ(context.remedies.front().change, "--context " + std::to_string(context.max_context));
  EXPECT_GT(context.max_context, 64);

  const Plan tight = plan(some_model(4), {{gpu("0", 4 * 117 + 60 + 60 + 20 + 2 + 8 + 5)}, {}}, workload(256), Objective::throughput, {});
  EXPECT_EQ(name(tight.verdict), "tight");
  EXPECT_EQ(tight.reason, "device 0 keeps 5.00 MiB (5242880 bytes) of the reserve of 16.00 MiB (16777216 bytes)");
  EXPECT_THAT(tight.remedies, testing::Contains(testing::Field(&Remedy::change, "--reserve 5242880")));
}

TEST(Planner, ChangesOfFormatAreOffered) {
  Profile profile = some_model(8);
  profile.format = "bf16";
  for (Piece& layer : profile.layers) layer.resident[0] = {400 * kMiB, 0}, layer.flops = 2.0 * 200 * kMiB;
  const Plan p = plan(profile, {{gpu("0", 1300)}, {}}, workload(), Objective::throughput, {});
  EXPECT_EQ(name(p.verdict), "no");
  const auto found = std::find_if(p.remedies.begin(), p.remedies.end(), [](const Remedy& r) { return r.change == "--format nf4"; });
  ASSERT_NE(found, p.remedies.end());
  EXPECT_TRUE(found->enough);
  EXPECT_NEAR(static_cast<double>(found->gains_bytes), 8 * 400 * kMiB * (1 - 4.5 / 16), 1e6);
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    return error.what();
  }
  return "nothing was refused";
}

TEST(Planner, RefusesWhatMakesNoSense) {
  const Profile profile = some_model(4, 2);
  const Cluster cluster = three_gpus(4000, 4000, 4000);
  const auto refused = [&](const Profile& model, const Workload& work, const Placement& placement) {
    return refusal([&] { plan(model, cluster, work, Objective::throughput, placement); });
  };
  EXPECT_EQ(refused(profile, workload(), {.pp = 2}), "--pp: 2 stages of 2 devices, there are 3 (at most 1)");
  EXPECT_EQ(refused(some_model(2), workload(), {.pp = 3}), "--pp: 3 stages for 2 layers (every stage has at least one)");
  EXPECT_EQ(refused(some_model(2, 4), workload(), {}), "--tp: a stage takes 4 devices, there are 3 (ep x tp may be at most that)");
  EXPECT_EQ(refused(profile, workload(256, 0), {}), "--max-batch: is 0 (must be 1 or more)");
  EXPECT_EQ(refused(profile, workload(0), {}), "--context: is 0 (must be 1 or more)");
  EXPECT_EQ(refused(some_model(4), workload(), {.layers_per_stage = {1, 2}}), "layers per stage: must be 1 or more each and 4 together");
  EXPECT_EQ(refusal([&] { plan(profile, {}, workload(), Objective::throughput, {}); }), "--gpus: there is no device to plan for");
}

TEST(Planner, ManyUnequalDevicesArePlannedQuicklyWithABound) {
  Cluster cluster;
  for (int d = 0; d < 12; ++d) cluster.devices.push_back(gpu(std::to_string(d), 1000 + 100 * d, 300 + 50 * d));
  const Plan p = plan(some_model(60), cluster, workload(), Objective::throughput, {});
  EXPECT_EQ(name(p.verdict), "fits");
  EXPECT_LE(p.objective_bound, p.objective_value);
  EXPECT_GT(p.objective_bound, 0.5 * p.objective_value);
}

// Mixtral-8x7B in NF4 over 24 + 24 + 16 GB: accelerate's automatic map puts 13 of 32 layers on the smallest card, which leaves room for
// about 115 thousand tokens of keys and values; 12, 12 and 8 leave room for 301 thousand.
TEST(Planner, MixtralOverUnequalCards) {
  Profile profile = some_model(32);
  const uint64_t elements = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096 + 8ull * 3 * 4096 * 14336;
  for (Piece& layer : profile.layers) layer = piece(1, elements / 2 + 4 * 4096, elements / 16, {64 * 2 * 8 * 128 * 2});
  profile.embedding = profile.head = piece(1, 32000 * 4096 * 2, 0);
  profile.context_limit = 1 << 20;
  for (auto& row : profile.workspace) row[0] = row[1] = 0;
  profile.communication_bytes = 0;
  Cluster cluster = three_gpus(24 * 1024 - 512, 24 * 1024 - 512, 16 * 1024 - 512);
  for (Device& d : cluster.devices) d.reserve_bytes = d.overhead_bytes = 0;
  const Plan p = plan(profile, cluster, workload(4096), Objective::capacity, {});
  ASSERT_EQ(p.stages.size(), 3u);
  std::vector<std::pair<uint64_t, int>> layers;
  for (size_t s = 0; s < 3; ++s) layers.emplace_back(p.devices[s].free_bytes >> 30, p.stages[s].last_layer - p.stages[s].first_layer + 1);
  EXPECT_THAT(layers, testing::UnorderedElementsAre(testing::Pair(23, 12), testing::Pair(23, 12), testing::Pair(15, 8)));
  EXPECT_NEAR(p.objective_value, 301e3, 9e3);  // ours may put the 8 layers with the embedding or the head
}

// ---- as JSON and as a table

TEST(Plan, JsonRoundTrip) {
  for (int seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const Case c = random_case(random);
    const Plan p = plan(c.profile, c.cluster, c.work, Objective::throughput, {});
    const auto json = to_json(p);
    EXPECT_EQ(to_json(plan_from_json(nlohmann::json::parse(json.dump()), "p.json"))["stages"], json["stages"]);
    auto again = to_json(plan_from_json(nlohmann::json::parse(json.dump()), "p.json"));
    again["device_map"] = json["device_map"];  // a parsed object is sorted by name
    EXPECT_EQ(again, json);
    for (const char* field : {"schema", "verdict", "model", "workload", "objective", "footprint_bytes", "device_bytes", "stages", "devices",
                              "device_map", "max_context", "max_batch", "predicted", "binding", "remedies", "optimality"}) {
      EXPECT_TRUE(json.contains(field)) << field;
    }
  }
}

TEST(Plan, JsonRefusesWrongFieldsByName) {
  const auto good =
      nlohmann::json::parse(to_json(plan(some_model(12), three_gpus(900, 900, 900), workload(), Objective::throughput, {.pp = 2})).dump());
  const auto refused = [&good](const char* pointer, const nlohmann::json& value) {
    nlohmann::json bad = good;
    bad[nlohmann::json::json_pointer(pointer)] = value;
    return refusal([&] { plan_from_json(bad, "p.json"); });
  };
  EXPECT_EQ(refused("/schema", "tandem.plan/2"), "p.json: schema: is \"tandem.plan/2\" (must be \"tandem.plan/1\")");
  EXPECT_EQ(refused("/verdict", "maybe"), "p.json: verdict: is \"maybe\" (must be fits, tight or no)");
  EXPECT_EQ(refused("/model", 3), "p.json: model: is 3 (must be an object)");
  EXPECT_EQ(refused("/model/layers", "12"), "p.json: model.layers: is \"12\" (must be a whole number from 1 to 65536)");
  EXPECT_EQ(refused("/workload/batch", 0), "p.json: workload.batch: is 0 (must be a whole number from 1 to 1073741824)");
  EXPECT_EQ(refused("/workload/kv_dtype", "q4"), "p.json: workload.kv_dtype: is \"q4\" (must be fp32, bf16, fp16, fp8 or int8)");
  EXPECT_EQ(refused("/stages", nlohmann::json::array()), "p.json: stages: is [] (must be a list of at least one stage)");
  EXPECT_THAT(refused("/stages/1/first_layer", 9), testing::StartsWith("p.json: stages[1].first_layer: is 9 (must be "));
  EXPECT_THAT(refused("/stages/1/last_layer", 10),
              testing::StartsWith("p.json: stages[1].last_layer: is 10 (must be the model's last, 11)"));
  EXPECT_EQ(refused("/stages/0/embedding", false), "p.json: stages[0].embedding: is false (must be true on the first stage)");
  EXPECT_EQ(refused("/stages/0/head", true), "p.json: stages[0].head: is true (must be false before the last stage)");
  EXPECT_THAT(refused("/stages/0/devices/0", "9"), HasSubstr("p.json: devices[0].id: is "));
  EXPECT_EQ(refused("/stages/0/devices/0", 9), "p.json: stages[0].devices: is [9] (must be a list, each of it a text)");
  EXPECT_THAT(refused("/devices/0/kv_bytes", -5), testing::StartsWith("p.json: devices[0].kv_bytes: is -5"));
  EXPECT_THAT(refused("/devices/1/used_bytes", 5), testing::StartsWith("p.json: devices[1].used_bytes: is 5 (must be "));
  EXPECT_EQ(refused("/kv_pages/0", 0), "p.json: kv_pages: is [0] (must be a list, each of it a whole number from 1 up)");
  EXPECT_THAT(refused("/mesh/pp", 3), testing::StartsWith("p.json: mesh: is "));
  EXPECT_THAT(refused("/device_map/lm_head", 1), testing::StartsWith("p.json: device_map.lm_head: is 1 (must be a text)"));
  nlohmann::json extra = good;
  extra["colour"] = "blue", extra["stages"][0]["note"] = 1;
  extra.erase("mesh"), extra.erase("kv_pages"), extra.erase("optimality"), extra.erase("predicted");
  const Plan p = plan_from_json(extra, "p.json");
  EXPECT_EQ(p.mesh.pp, 2);
  EXPECT_EQ(p.kv_pages, (std::vector<int32_t>{4}));
  for (const char* field : {"schema", "verdict", "model", "workload", "stages", "devices"}) {
    nlohmann::json less = good;
    less.erase(field);
    EXPECT_THAT(refusal([&] { plan_from_json(less, "p.json"); }), testing::StartsWith("p.json: " + std::string(field) + ": is missing"))
        << field;
  }
}

TEST(Plan, TableFitsItsColumnsAndNamesUnits) {
  Profile profile = some_model(24);
  profile.name = "a-model-with-a-rather-long-name-that-somebody-gave-it-because-they-could-do-so-and-nobody-stopped-them";
  for (const uint64_t mib : {300, 1200, 40000}) {
    Cluster cluster = three_gpus(mib, mib, mib / 2);
    cluster.devices[0].id = "a-node-with-a-long-name/0", cluster.devices[0].kind = "rtx4060ti-16gb-special";
    const Plan p = plan(profile, cluster, workload(), Objective::throughput, {});
    for (const int columns : {60, 80, 100, 160}) {
      const std::string text = table(p, columns);
      size_t bars = 0;
      for (size_t begin = 0; begin < text.size();) {
        const size_t end = text.find('\n', begin);
        ASSERT_NE(end, std::string::npos);
        EXPECT_LE(end - begin, static_cast<size_t>(columns)) << text.substr(begin, end - begin);
        bars += text.substr(begin, end - begin).find("  [") == 0;
        begin = end + 1;
      }
      EXPECT_EQ(bars, p.devices.size());
      EXPECT_THAT(text, HasSubstr("iB"));
    }
  }
}

}  // namespace
}  // namespace tandem
