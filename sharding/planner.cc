#include "sharding/planner.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>

#include "kernels/base/error.h"

namespace tandem {
namespace {

using Wide = __int128;  // bytes: a workload may ask for more than 64 bits hold

constexpr int32_t kMostBatch = 4096, kMostContext = 1 << 24;
constexpr size_t kMostSequences = 3000;  // more orders of devices than this are not all tried

// What share of the data sheet's bandwidth a decoding stage reaches, and what each layer costs besides.
struct Efficiency {
  double bandwidth, layer_seconds;
};
constexpr Efficiency kLow{0.45, 40e-6}, kMid{0.65, 15e-6}, kHigh{0.85, 5e-6};
constexpr double kNearHop = 20e-6, kFarHop = 100e-6;  // seconds between stages on one node and on two, where no link was measured

// Stage s is the group order[s] with the layers [cut[s], cut[s + 1]).
struct Split {
  std::vector<int> order, cut;
  int stages() const { return static_cast<int>(order.size()); }
};

double picoseconds(double seconds) { return std::round(1e12 * seconds); }

struct Cost {  // compared in this order; what breaks ties must never outweigh what comes first
  double first = 0, second = 0;
  friend bool operator<(const Cost& a, const Cost& b) { return a.first < b.first || (a.first == b.first && a.second < b.second); }
};

bool same(const Device& a, const Device& b) {
  return a.kind == b.kind && a.node == b.node && a.is_cpu == b.is_cpu && a.free_bytes == b.free_bytes &&
         a.reserve_bytes == b.reserve_bytes && a.overhead_bytes == b.overhead_bytes && a.bandwidth == b.bandwidth && a.flops == b.flops;
}

// The bytes and seconds of every stage that there could be, for one profile, cluster and number of pages.
class Model {
 public:
  Model(const Profile& profile, const Cluster& cluster, const Workload& workload)
      : profile_(profile), cluster_(cluster), workload_(workload), size_(profile.group.group_size()) {
    const int groups = static_cast<int>(cluster.devices.size()) / size_;
    for (int g = 0; g < groups; ++g) {
      classes_.push_back(g);
      for (int earlier = 0; earlier < g && classes_[g] == g; ++earlier) {
        bool alike = true;
        for (int m = 0; m < size_; ++m) alike &= same(device(earlier, m), device(g, m));
        if (alike) classes_[g] = classes_[earlier];
      }
      double bandwidth = std::numeric_limits<double>::infinity(), flops = bandwidth;
      for (int m = 0; m < size_; ++m) {
        if (device(g, m).bandwidth <= 0) known_speed_ = false;
        bandwidth = std::min(bandwidth, device(g, m).bandwidth);
        if (device(g, m).flops > 0) flops = std::min(flops, device(g, m).flops);
      }
      bandwidth_.push_back(bandwidth);
      flops_.push_back(flops);
    }
    weights_.assign(size_, std::vector<Wide>(layers() + 1));
    for (int m = 0; m < size_; ++m) {
      for (int l = 0; l < layers(); ++l) weights_[m][l + 1] = weights_[m][l] + static_cast<Wide>(profile.layers[l].resident.at(m).sum());
    }
    size_t kv_groups = 0;
    for (const Piece& layer : profile.layers) kv_groups = std::max(kv_groups, layer.kv_page_bytes.size());
    page_bytes_.assign(kv_groups, std::vector<Wide>(layers() + 1));
    for (size_t k = 0; k < kv_groups; ++k) {
      for (int l = 0; l < layers(); ++l) {
        const auto& pages = profile.layers[l].kv_page_bytes;
        page_bytes_[k][l + 1] = page_bytes_[k][l] + static_cast<Wide>(k < pages.size() ? pages[k] : 0);
      }
    }
    set(workload.context, workload.batch);
  }

  int layers() const { return static_cast<int>(profile_.layers.size()); }
  int groups() const { return static_cast<int>(classes_.size()); }
  int members() const { return size_; }
  bool known_speed() const { return known_speed_; }
  const std::vector<int>& classes() const { return classes_; }
  const Device& device(int group, int member) const { return cluster_.devices[static_cast<size_t>(group) * size_ + member]; }
  const std::vector<int64_t>& pages() const { return pages_; }

  // The keys and values to make room for.
  void set(int64_t context, int64_t batch) {
    const int64_t page = workload_.page_tokens, whole = (context + page - 1) / page;
    pages_.clear();
    for (size_t k = 0; k < page_bytes_.size(); ++k) {
      const int64_t window = k < profile_.kv_windows.size() ? profile_.kv_windows[k] : 0;
      // A window may begin and end within a page.
      const int64_t most = window > 0 && window < context ? std::min(whole, (window - 1 + page - 1) / page + 1) : whole;
      pages_.push_back(most * batch);
    }
    batch_ = batch;
    reprice();
  }

  Wide kv(int from, int to) const {
    Wide bytes = 0;
    for (size_t k = 0; k < pages_.size(); ++k) bytes += pages_[k] * (page_bytes_[k][to] - page_bytes_[k][from]);
    return bytes;
  }
  Wide used(int group, int member, int from, int to) const {
    const bool first = from == 0, last = to == layers();
    Wide bytes = weights_[member][to] - weights_[member][from] + kv(from, to) + static_cast<Wide>(profile_.workspace[first][last]) +
                 static_cast<Wide>(profile_.communication_bytes) + static_cast<Wide>(device(group, member).overhead_bytes);
    if (first) bytes += static_cast<Wide>(profile_.embedding.resident.at(member).sum());
    if (last && !shares_head(from, to)) bytes += static_cast<Wide>(profile_.head.resident.at(member).sum());
    return bytes;
  }
  bool shares_head(int from, int to) const { return profile_.tied && from == 0 && to == layers(); }
  // The most that some member holds above its limit; negative: room is left.
  Wide excess(int group, int from, int to, bool keep_reserve) const {
    Wide worst = used(group, 0, from, to) - limit(group, 0, keep_reserve);
    for (int m = 1; m < size_; ++m) worst = std::max(worst, used(group, m, from, to) - limit(group, m, keep_reserve));
    return worst;
  }
  Wide limit(int group, int member, bool keep_reserve) const {
    const Device& d = device(group, member);
    return static_cast<Wide>(d.free_bytes) - (keep_reserve ? static_cast<Wide>(d.reserve_bytes) : 0);
  }

  // Picoseconds of one decoding step of `batch` sequences that are half way through their context; the bytes that it reads when speeds are
  // unknown. Whole numbers, so that equal splits cost exactly the same in whatever order they are summed.
  double price(int group, int from, int to) const {
    const std::vector<double>& sum = known_speed_ ? picoseconds_[classes_[group]] : bytes_;
    double price = sum[to] - sum[from];
    const bool last = to == layers();
    if (known_speed_) return price + (last ? picoseconds(seconds_of(profile_.head, group, static_cast<double>(batch_), 0, kMid)) : 0);
    return price + (last ? std::round(touched(profile_.head, static_cast<double>(batch_))) : 0);
  }
  double seconds(int group, int from, int to, double batch, double context_share, const Efficiency& efficiency) const {
    double seconds = to == layers() ? seconds_of(profile_.head, group, batch, 0, efficiency) : 0;
    for (int l = from; l < to; ++l) {
      const double kv_bytes = static_cast<double>(kv(l, l + 1)) * size_ * context_share * batch / static_cast<double>(batch_);
      seconds += seconds_of(profile_.layers[l], group, batch, kv_bytes, efficiency);
    }
    return seconds;
  }
  double hop_seconds(int from, int to, double batch) const {
    const Device &a = device(from, 0), &b = device(to, 0);
    for (const Link& link : cluster_.links) {
      if ((link.from == a.id && link.to == b.id) || (link.from == b.id && link.to == a.id)) {
        return link.latency + (link.bandwidth > 0 ? batch * static_cast<double>(profile_.hidden) * sizeof(float) / link.bandwidth : 0);
      }
    }
    return a.node == b.node ? kNearHop : kFarHop;
  }

 private:
  // Weight bytes that one step of `batch` tokens reads, over the whole group.
  static double touched(const Piece& piece, double batch) {
    double resident = 0;
    for (const Bytes& b : piece.resident) resident += static_cast<double>(b.sum());
    const double read = std::min(static_cast<double>(piece.read_bytes), resident);
    // A token reads the share r of a layer (experts); b of them together 1 - (1 - r)^b when routing is even.
    return resident > 0 ? resident * (1 - std::pow(1 - read / resident, batch)) : 0;
  }
  double seconds_of(const Piece& piece, int group, double batch, double kv_bytes, const Efficiency& efficiency) const {
    const double memory = (touched(piece, batch) + kv_bytes) / size_ / (bandwidth_[group] * efficiency.bandwidth);
    const double math = piece.flops * batch / size_ / flops_[group];
    return std::max(memory, math) + (device(group, 0).is_cpu ? 0 : efficiency.layer_seconds);
  }
  void reprice() {
    bytes_.assign(layers() + 1, 0);
    for (int l = 0; l < layers(); ++l) {
      const double kv_bytes = static_cast<double>(kv(l, l + 1)) * size_ * 0.5;
      bytes_[l + 1] = bytes_[l] + std::round(touched(profile_.layers[l], static_cast<double>(batch_)) + kv_bytes);
    }
    picoseconds_.assign(groups(), {});
    for (int g = 0; known_speed_ && g < groups(); ++g) {
      if (classes_[g] != g) continue;
      std::vector<double>& sum = picoseconds_[g];
      sum.assign(layers() + 1, 0);
      for (int l = 0; l < layers(); ++l) {
        const double kv_bytes = static_cast<double>(kv(l, l + 1)) * size_ * 0.5;
        sum[l + 1] = sum[l] + picoseconds(seconds_of(profile_.layers[l], g, static_cast<double>(batch_), kv_bytes, kMid));
      }
    }
  }

  const Profile& profile_;
  const Cluster& cluster_;
  const Workload workload_;
  int size_;
  bool known_speed_ = true;
  int64_t batch_ = 1;
  std::vector<int> classes_;                      // of a group: the first group with the same devices
  std::vector<double> bandwidth_, flops_;         // of a group's slowest member
  std::vector<std::vector<Wide>> weights_;        // [member][layers before]
  std::vector<std::vector<Wide>> page_bytes_;     // [KV group][layers before]
  std::vector<int64_t> pages_;                    // [KV group]
  std::vector<double> bytes_;                     // [layers before]
  std::vector<std::vector<double>> picoseconds_;  // [class][layers before]
};

// Which groups make which stage, in order: all of them where that is feasible, else some likely ones.
struct Sequences {
  std::vector<std::vector<int>> orders;
  bool all = true;
};

void extend(const Model& model, size_t stages, std::vector<int>& order, std::vector<bool>& taken, Sequences& found) {
  if (!found.all) return;
  if (order.size() == stages) {
    found.orders.push_back(order);
    found.all = found.orders.size() <= kMostSequences;
    return;
  }
  std::vector<bool> tried(model.groups());
  for (int g = 0; g < model.groups(); ++g) {
    const int kind = model.classes()[g];
    if (taken[g] || tried[kind]) continue;  // of equal groups the first comes first
    tried[kind] = taken[g] = true;
    order.push_back(g);
    extend(model, stages, order, taken, found);
    order.pop_back();
    taken[g] = false;
  }
}

Sequences sequences(const Model& model, int least, int most) {
  Sequences found;
  for (int stages = least; stages <= most; ++stages) {
    std::vector<int> order;
    std::vector<bool> taken(model.groups());
    extend(model, stages, order, taken, found);
  }
  if (found.all) return found;
  found.orders.clear();
  std::vector<std::vector<int>> bases(3, std::vector<int>(model.groups()));
  for (auto& base : bases) std::iota(base.begin(), base.end(), 0);
  std::stable_sort(bases[1].begin(), bases[1].end(), [&](int a, int b) { return model.limit(a, 0, true) > model.limit(b, 0, true); });
  std::stable_sort(bases[2].begin(), bases[2].end(),
                   [&](int a, int b) { return model.device(a, 0).bandwidth > model.device(b, 0).bandwidth; });
  for (int stages = least; stages <= most; ++stages) {
    for (const auto& base : bases) {
      std::vector<int> order(base.begin(), base.begin() + stages);
      found.orders.push_back(order);
      std::sort(order.begin(), order.end());  // the same devices as they were given
      found.orders.push_back(order);
    }
  }
  return found;
}

class Search {
 public:
  Search(const Model& model, const Placement& placement, int least, int most)
      : model_(model), fixed_(placement.layers_per_stage), sequences_(sequences(model, least, most)) {}

  bool exhaustive() const { return sequences_.all; }
  const std::vector<std::vector<int>>& orders() const { return sequences_.orders; }

  // Whether some split keeps every device inside its limit. As many layers as fit, stage by stage, is exact for one order.
  bool feasible(bool keep_reserve) const {
    return std::any_of(sequences_.orders.begin(), sequences_.orders.end(),
                       [&](const auto& order) { return feasible(order, keep_reserve); });
  }

  // The split with the least total over its stages (sum or maximum of `price`) among those inside the limits; `extra`, never negative, is
  // added per order.
  using Price = std::function<double(int group, int from, int to)>;
  struct Found {
    Split split;
    Cost cost;
  };
  std::optional<Found> best(bool sum, const Price& price, const std::function<double(const std::vector<int>&)>& extra,
                            std::optional<bool> keep_reserve) const {
    std::optional<Found> best;
    int best_changes = 0;
    for (const auto& order : sequences_.orders) {
      if (keep_reserve && !feasible(order, *keep_reserve)) continue;
      const double most = best ? best->cost.first : std::numeric_limits<double>::infinity();
      std::optional<Found> found =
          fixed_.empty() ? cheapest(order, sum, price, keep_reserve, most) : as_fixed(order, sum, price);
      if (!found) continue;
      found->cost.first += extra ? extra(order) : 0;
      // Of equals: fewer stages when only their sum counts, then the tie-breaking cost, then fewer changes of node, then the order given.
      const int changes = node_changes(order);
      if (best) {
        const Cost &a = found->cost, &b = best->cost;
        bool better = a.first < b.first;
        if (a.first == b.first) {
          if (sum && order.size() != best->split.order.size()) {
            better = order.size() < best->split.order.size();
          } else {
            better = a.second < b.second || (a.second == b.second && changes < best_changes);
          }
        }
        if (!better) continue;
      }
      best = std::move(found);
      best_changes = changes;
    }
    return best;
  }

 private:
  bool feasible(const std::vector<int>& order, bool keep_reserve) const {
    const int stages = static_cast<int>(order.size()), layers = model_.layers();
    int begin = 0;
    for (int s = 0; s < stages; ++s) {
      const int most = layers - (stages - 1 - s);  // every stage has a layer
      int end = s + 1 == stages ? layers : begin + 1;
      if (!fixed_.empty()) end = begin + fixed_[s];
      if (model_.excess(order[s], begin, end, keep_reserve) > 0) return false;
      while (fixed_.empty() && end < most && model_.excess(order[s], begin, end + 1, keep_reserve) <= 0) ++end;
      begin = end;
    }
    return begin == layers;
  }

  static void add(Cost& cost, bool sum, double price) {
    double& total = sum ? cost.first : cost.second;
    double& largest = sum ? cost.second : cost.first;
    total += price;
    largest = std::max(largest, price);
  }

  std::optional<Found> as_fixed(const std::vector<int>& order, bool sum, const Price& price) const {
    Found found{{order, {0}}, {sum ? 0 : -std::numeric_limits<double>::infinity(), 0}};
    for (size_t s = 0; s < order.size(); ++s) {
      found.split.cut.push_back(found.split.cut.back() + fixed_[s]);
      add(found.cost, sum, price(order[s], found.split.cut[s], found.split.cut[s + 1]));
    }
    return found;
  }

  // Dynamic programming over (stages, layers): exact for one order. What costs more than `most` is of no interest.
  std::optional<Found> cheapest(const std::vector<int>& order, bool sum, const Price& price, std::optional<bool> keep_reserve,
                                double most) const {
    const int stages = static_cast<int>(order.size()), layers = model_.layers();
    const double nothing = -std::numeric_limits<double>::infinity();
    std::vector<std::vector<std::optional<Cost>>> cost(stages + 1, std::vector<std::optional<Cost>>(layers + 1));
    std::vector<std::vector<int>> from(stages + 1, std::vector<int>(layers + 1));
    cost[0][0] = sum ? Cost{0, nothing} : Cost{nothing, 0};
    for (int s = 0; s < stages; ++s) {
      const bool last = s + 1 == stages;
      for (int begin = s; begin < layers; ++begin) {
        if (!cost[s][begin]) continue;
        for (int end = last ? layers : begin + 1; end <= layers - (stages - 1 - s); ++end) {
          Cost next = *cost[s][begin];
          add(next, sum, price(order[s], begin, end));
          if (next.first > most) break;  // more layers cost more
          if (keep_reserve && model_.excess(order[s], begin, end, *keep_reserve) > 0) break;  // more layers need more
          if (!cost[s + 1][end] || next < *cost[s + 1][end]) cost[s + 1][end] = next, from[s + 1][end] = begin;
        }
      }
    }
    if (!cost[stages][layers]) return std::nullopt;
    Found found{{order, std::vector<int>(stages + 1)}, *cost[stages][layers]};
    for (int s = stages, end = layers; s >= 0; --s) {
      found.split.cut[s] = end;
      end = from[s][end];
    }
    return found;
  }

  int node_changes(const std::vector<int>& order) const {
    int changes = 0;
    for (size_t s = 1; s < order.size(); ++s) changes += model_.device(order[s - 1], 0).node != model_.device(order[s], 0).node;
    return changes;
  }

  const Model& model_;
  std::vector<int> fixed_;
  Sequences sequences_;
};

// The largest n in [0, most] for which fits(n) holds, where it holds for everything below; 0 always counts as holding.
template <class Fits>
int64_t largest(int64_t most, Fits&& fits) {
  int64_t low = 0, high = most;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

std::string exact(Wide bytes) {
  const auto number = static_cast<uint64_t>(std::clamp<Wide>(bytes, 0, INT64_MAX));
  return human_bytes(number) + " (" + std::to_string(number) + " bytes)";
}

uint64_t narrow(Wide bytes) { return static_cast<uint64_t>(std::clamp<Wide>(bytes, 0, INT64_MAX)); }

std::string percent(uint64_t part, uint64_t whole) {
  return std::to_string(
             static_cast<int>(std::lround(100.0 * static_cast<double>(part) / static_cast<double>(std::max<uint64_t>(whole, 1))))) +
         " %";
}

struct Planning {
  const Profile& profile;
  const Cluster& cluster;
  const Workload& workload;
  Objective objective;
  const Placement& placement;
  int least, most;  // stages

  // The first thing on the device that goes beyond its free bytes, in the order in which it is filled.
  std::string first_too_much(const Model& model, int group, int member, int from, int to) const {
    Wide left = model.limit(group, member, false);
    const auto over = [&left](Wide bytes) { return (left -= bytes) < 0; };
    if (over(model.device(group, member).overhead_bytes)) return "what the driver takes";
    if (over(profile.communication_bytes)) return "the buffers between stages";
    if (over(profile.workspace[from == 0][to == model.layers()])) return "the workspace";
    if (from == 0 && over(profile.embedding.resident[member].sum())) return profile.embedding_name;
    for (int l = from; l < to; ++l) {
      if (over(profile.layers[l].resident[member].sum())) return profile.layer_prefix + std::to_string(l);
    }
    if (to == model.layers() && !model.shares_head(from, to) && over(profile.head.resident[member].sum())) return profile.head_name;
    for (int l = from; l < to; ++l) {
      if (over(model.kv(l, l + 1))) return "the KV cache of " + profile.layer_prefix + std::to_string(l);
    }
    return "nothing";
  }

  bool fits_with(const Profile& changed) const {
    const Model model(changed, cluster, workload);
    return Search(model, placement, least, most).feasible(true);
  }

  std::vector<Remedy> remedies(const Plan& plan) const {
    std::vector<Remedy> remedies;
    uint64_t kv = 0, weights = 0, scales = 0;
    double elements = 0;
    for (const PlanDevice& d : plan.devices) kv += d.kv_bytes;
    for (const Piece& layer : profile.layers) {
      elements += layer.flops / 2;
      for (const Bytes& b : layer.resident) weights += b.weights, scales += b.scales;
    }
    const auto kv_at = [&](int64_t context, int64_t batch) {
      Model model(profile, cluster, workload);
      model.set(context, batch);
      return narrow(model.kv(0, model.layers()) * model.members());
    };
    const auto gain = [](uint64_t before, uint64_t after) { return before > after ? before - after : 0; };
    if (plan.max_context > 0 && plan.max_context < workload.context) {
      remedies.push_back({"--context " + std::to_string(plan.max_context), gain(kv, kv_at(plan.max_context, workload.batch)), true});
    }
    if (plan.max_batch > 0 && plan.max_batch < workload.batch) {
      remedies.push_back({"--max-batch " + std::to_string(plan.max_batch), gain(kv, kv_at(workload.context, plan.max_batch)), true});
    }
    for (const KvType type : {KvType::fp16, KvType::fp8}) {
      const auto& known = profile.kv_types;
      if (size(type) >= size(profile.arithmetic.kv) || kv == 0 || std::find(known.begin(), known.end(), type) == known.end()) continue;
      Profile changed = profile;
      for (Piece& layer : changed.layers) {
        for (uint64_t& bytes : layer.kv_page_bytes) bytes = bytes * size(type) / size(profile.arithmetic.kv);
      }
      remedies.push_back({"--kv-dtype " + std::string(name(type)), kv - kv * size(type) / size(profile.arithmetic.kv), fits_with(changed)});
    }
    const auto scaled = [&](double weights_by, double scales_by) {
      Profile changed = profile;
      for (Piece& layer : changed.layers) {
        for (Bytes& b : layer.resident) {
          b.weights = static_cast<uint64_t>(static_cast<double>(b.weights) * weights_by);
          b.scales = static_cast<uint64_t>(static_cast<double>(b.scales) * scales_by);
        }
      }
      return fits_with(changed);
    };
    // Statistics of 4 bytes per 64 elements become one byte and 4 bytes per 256 of them.
    const bool four_bit = profile.format.starts_with("nf4") || profile.format.starts_with("fp4");
    if (four_bit && static_cast<double>(scales) > 0.08 * static_cast<double>(weights)) {
      const double by = (1 + 4.0 / 256) / 4;
      remedies.push_back({"--double-quant", scales - static_cast<uint64_t>(static_cast<double>(scales) * by), scaled(1, by)});
    }
    const double now = static_cast<double>(weights) + static_cast<double>(scales), bits = elements > 0 ? 8 * now / elements : 0;
    struct Smaller { const char *format, *change; double bits; };
    for (const auto& [format, change, stored] :
         {Smaller{"int8", "--format int8", 8.03}, {"nf4", "--format nf4", 4.5}, {"nf4", "--format nf4 --double-quant", 4.127}}) {
      if (std::find(profile.formats.begin(), profile.formats.end(), format) == profile.formats.end()) continue;
      if (bits < stored * 1.1 || bits > 40) continue;  // above: the profile does not count every element
      if (four_bit) continue;
      remedies.push_back({change, static_cast<uint64_t>(now * (1 - stored / bits)), scaled(stored / bits, stored / bits)});
    }
    if (plan.verdict == Verdict::tight) {
      uint64_t least_left = UINT64_MAX, gains = 0;
      for (const PlanDevice& d : plan.devices) least_left = std::min(least_left, d.free_bytes - d.used_bytes());
      for (const PlanDevice& d : plan.devices) gains += gain(d.reserve_bytes, least_left);
      remedies.push_back({"--reserve " + std::to_string(least_left), gains, true});
    }
    if (placement.pp == 0 && placement.layers_per_stage.empty() && !cluster.devices[0].is_cpu) {
      const auto largest_device = std::max_element(cluster.devices.begin(), cluster.devices.end(),
                                                   [](const Device& a, const Device& b) { return a.free_bytes < b.free_bytes; });
      Cluster more = cluster;
      for (int m = 0; m < profile.group.group_size(); ++m) {
        more.devices.push_back(*largest_device);
        more.devices.back().id += "+" + std::to_string(m);
      }
      const Model model(profile, more, workload);
      if (model.groups() <= model.layers()) {
        const bool enough = Search(model, placement, least, std::min(model.groups(), model.layers())).feasible(true);
        const uint64_t taken = largest_device->reserve_bytes + largest_device->overhead_bytes;
        const int count = profile.group.group_size();
        remedies.push_back({(count == 1 ? "one more " : std::to_string(count) + " more ") + largest_device->kind,
                            gain(largest_device->free_bytes, taken) * static_cast<uint64_t>(count), enough});
      }
    }
    std::stable_sort(remedies.begin(), remedies.end(), [](const Remedy& a, const Remedy& b) { return a.enough > b.enough; });
    return remedies;
  }

  void predict(const Model& model, const Split& split, Plan& plan) const {
    if (!model.known_speed()) return;
    const int stages = split.stages();
    const double in_flight = std::min(stages, workload.batch), batch = std::ceil(workload.batch / in_flight);
    const auto rate = [&](const Efficiency& efficiency, double context_share) {
      double sum = 0, slowest = 0;
      for (int s = 0; s < stages; ++s) {
        const double seconds = model.seconds(split.order[s], split.cut[s], split.cut[s + 1], batch, context_share, efficiency);
        const double hop = s + 1 < stages ? model.hop_seconds(split.order[s], split.order[s + 1], batch) : 0;
        sum += seconds + hop;
        slowest = std::max(slowest, seconds);
      }
      const double round = std::max(sum, in_flight * slowest);  // every group of sequences decodes one token in it
      return round > 0 ? workload.batch / round : 0;
    };
    plan.decode_low = rate(kLow, 1);
    plan.decode_mid = rate(kMid, 0.5);
    plan.decode_high = rate(kHigh, 0);
  }

  void fill(const Model& model, const Split& split, Plan& plan) const {
    plan.mesh = {split.stages(), profile.group.ep, profile.group.tp};
    for (int s = 0; s < split.stages(); ++s) {
      const int group = split.order[s], from = split.cut[s], to = split.cut[s + 1];
      PlanStage stage;
      stage.first_layer = from, stage.last_layer = to - 1;
      stage.embedding = s == 0, stage.head = s + 1 == split.stages();
      if (model.known_speed()) stage.decode_seconds = model.seconds(group, from, to, workload.batch, 0.5, kMid);
      for (int m = 0; m < model.members(); ++m) {
        const Device& from_cluster = model.device(group, m);
        PlanDevice d;
        d.id = from_cluster.id, d.node = from_cluster.node, d.kind = from_cluster.kind;
        d.free_bytes = from_cluster.free_bytes, d.reserve_bytes = from_cluster.reserve_bytes,
        d.overhead_bytes = from_cluster.overhead_bytes;
        const auto hold = [&d](const Bytes& bytes) { d.weights_bytes += bytes.weights, d.scales_bytes += bytes.scales; };
        for (int l = from; l < to; ++l) hold(profile.layers[l].resident[m]);
        if (stage.embedding) hold(profile.embedding.resident[m]);
        if (stage.head && !model.shares_head(from, to)) hold(profile.head.resident[m]);
        d.kv_bytes = narrow(model.kv(from, to));
        d.workspace_bytes = profile.workspace[stage.embedding][stage.head];
        d.communication_bytes = profile.communication_bytes;
        stage.devices.push_back(d.id);
        plan.devices.push_back(std::move(d));
      }
      plan.stages.push_back(std::move(stage));
    }
    const auto map = [&plan](const std::string& module, const PlanStage& stage) {
      if (module.empty()) return;
      std::string ids;
      for (const std::string& id : stage.devices) ids += (ids.empty() ? "" : ",") + id;
      plan.device_map.emplace_back(module, ids);
    };
    map(profile.embedding_name, plan.stages.front());
    for (const std::string& module : profile.first_modules) map(module, plan.stages.front());
    for (const PlanStage& stage : plan.stages) {
      for (int l = stage.first_layer; l <= stage.last_layer; ++l) map(profile.layer_prefix + std::to_string(l), stage);
    }
    for (const std::string& module : profile.last_modules) map(module, plan.stages.back());
    map(profile.head_name, plan.stages.back());
    for (const int64_t pages : model.pages()) plan.kv_pages.push_back(static_cast<int32_t>(std::min<int64_t>(pages, INT32_MAX)));

    const auto fullest = std::max_element(plan.devices.begin(), plan.devices.end(), [](const PlanDevice& a, const PlanDevice& b) {
      return static_cast<double>(a.used_bytes()) * static_cast<double>(b.free_bytes) <
             static_cast<double>(b.used_bytes()) * static_cast<double>(a.free_bytes);
    });
    const uint64_t whole = fullest->free_bytes;
    plan.binding = "device " + fullest->id + ", " + percent(fullest->used_bytes(), whole) + " of " + human_bytes(whole) +
                   " used: weights " + percent(fullest->weights_bytes, whole) + ", scales " + percent(fullest->scales_bytes, whole) +
                   ", KV " + percent(fullest->kv_bytes, whole) + ", workspace " + percent(fullest->workspace_bytes, whole) + ", rest " +
                   percent(fullest->communication_bytes + fullest->overhead_bytes, whole);
  }

  Plan run() const {
    Plan plan;
    plan.model_name = profile.name, plan.digest = profile.digest, plan.format = profile.format;
    plan.parameters = profile.parameters, plan.footprint_bytes = profile.footprint_bytes;
    plan.layers = static_cast<int>(profile.layers.size());
    plan.kv_dtype = name(profile.arithmetic.kv);
    plan.objective = name(objective);
    plan.workload = workload;

    Model model(profile, cluster, workload);
    const Search search(model, placement, least, most);
    const auto fits_at = [&](int64_t context, int64_t batch, bool keep_reserve) {
      model.set(context, batch);
      return search.feasible(keep_reserve);
    };
    const bool fits = fits_at(workload.context, workload.batch, true), tight = !fits && search.feasible(false);
    plan.verdict = fits ? Verdict::fits : tight ? Verdict::tight : Verdict::no;
    const int32_t longest = profile.context_limit > 0 ? profile.context_limit : kMostContext;
    plan.max_context = static_cast<int32_t>(largest(longest, [&](int64_t n) { return fits_at(n, workload.batch, true); }));
    plan.max_batch = static_cast<int32_t>(largest(kMostBatch, [&](int64_t n) { return fits_at(workload.context, n, true); }));

    const bool keep_reserve = fits;
    int64_t roomiest = workload.context;  // capacity: the context for which devices are chosen
    if (objective == Objective::capacity && plan.verdict != Verdict::no) {
      roomiest =
          std::max<int64_t>(roomiest, largest(int64_t{kMostContext}, [&](int64_t n) { return fits_at(n, workload.batch, keep_reserve); }));
    }
    model.set(roomiest, workload.batch);

    if (plan.verdict == Verdict::no) {
      // Shown is the split whose worst device lacks least.
      const auto found = search.best(
          false, [&](int group, int from, int to) { return static_cast<double>(model.excess(group, from, to, false)); }, nullptr,
          std::nullopt);
      fill(model, found->split, plan);
      Wide worst = 0, together = 0;
      int rank = 0;
      for (int s = 0; s < found->split.stages(); ++s) {
        for (int m = 0; m < model.members(); ++m, ++rank) {
          const int group = found->split.order[s], from = found->split.cut[s], to = found->split.cut[s + 1];
          const Wide lacks = model.used(group, m, from, to) - model.limit(group, m, false);
          if (lacks > 0) together += lacks;
          if (lacks <= worst) continue;
          worst = lacks;
          plan.reason = first_too_much(model, group, m, from, to) + " on device " + plan.devices[rank].id + ", which lacks " + exact(lacks);
        }
      }
      if (together > worst) plan.reason += "; all devices together lack " + exact(together);
      plan.remedies = remedies(plan);
      return plan;
    }

    const bool sum = objective == Objective::latency;
    const auto hops = [&](const std::vector<int>& order) {
      double total = 0;
      for (size_t s = 1; sum && model.known_speed() && s < order.size(); ++s) {
        total += picoseconds(model.hop_seconds(order[s - 1], order[s], workload.batch));
      }
      return total;
    };
    const auto found = search.best(
        sum, [&](int group, int from, int to) { return model.price(group, from, to); }, hops, keep_reserve);
    model.set(workload.context, workload.batch);
    fill(model, found->split, plan);
    predict(model, found->split, plan);
    const double unit = model.known_speed() ? 1e-12 : 1;
    plan.objective_value = objective == Objective::capacity ? static_cast<double>(roomiest) * workload.batch : found->cost.first * unit;
    plan.objective_bound = plan.objective_value;
    if (!search.exhaustive()) plan.objective_bound = bound(model, sum) * (objective == Objective::capacity ? 1 : unit);
    if (plan.verdict == Verdict::tight) {
      for (const PlanDevice& d : plan.devices) {
        if (d.used_bytes() + d.reserve_bytes <= d.free_bytes) continue;
        plan.reason = "device " + d.id + " keeps " + exact(static_cast<Wide>(d.free_bytes) - static_cast<Wide>(d.used_bytes())) +
                      " of the reserve of " + exact(static_cast<Wide>(d.reserve_bytes));
        break;
      }
      plan.remedies = remedies(plan);
    }
    return plan;
  }

  // What no placement can beat, whatever the order of the devices.
  double bound(const Model& model, bool sum) const {
    if (objective == Objective::capacity) {  // all the room there is, as if a layer could be cut
      Wide room = 0;
      for (int g = 0; g < model.groups(); ++g) {
        for (int m = 0; m < model.members(); ++m)
          room += std::max<Wide>(0, model.limit(g, m, true) - static_cast<Wide>(model.device(g, m).overhead_bytes));
      }
      for (const Piece& layer : profile.layers) {
        for (const Bytes& b : layer.resident) room -= static_cast<Wide>(b.sum());
      }
      const double token = static_cast<double>(model.kv(0, model.layers())) * model.members() / workload.context;
      return token > 0 ? static_cast<double>(room) / token * workload.batch : 0;
    }
    double fastest = std::numeric_limits<double>::infinity(), rate = 0;
    for (int g = 0; g < model.groups(); ++g) {
      const double all = model.price(g, 0, model.layers());
      fastest = std::min(fastest, all);
      rate += 1 / all;
    }
    return sum ? fastest : 1 / rate;
  }
};

}  // namespace

Plan plan(const Profile& profile, const Cluster& cluster, const Workload& workload, Objective objective, const Placement& placement) {
  const int size = profile.group.group_size(), devices = static_cast<int>(cluster.devices.size()), groups = devices / size;
  const int layers = static_cast<int>(profile.layers.size());
  const auto at_least = [](const char* option, int32_t value) {
    if (value < 1) bad_input(option, "is " + std::to_string(value) + " (must be 1 or more)");
  };
  at_least("--context", workload.context);
  at_least("--max-batch", workload.batch);
  at_least("--chunk", workload.chunk);
  at_least("--page", workload.page_tokens);
  if (layers == 0) bad_input(profile.name, "has no layers (a model has at least one)");
  if (devices == 0) bad_input("--gpus", "there is no device to plan for");
  int stages = placement.pp;
  if (!placement.layers_per_stage.empty()) {
    const auto& fixed = placement.layers_per_stage;
    if (stages != 0 && stages != static_cast<int>(fixed.size())) bad_input("--pp", "is not the number of stages whose layers are given");
    if (std::accumulate(fixed.begin(), fixed.end(), 0) != layers || *std::min_element(fixed.begin(), fixed.end()) < 1) {
      bad_input("layers per stage", "must be 1 or more each and " + std::to_string(layers) + " together");
    }
    stages = static_cast<int>(fixed.size());
  }
  if (stages < 0) bad_input("--pp", "is " + std::to_string(stages) + " (must be 1 or more)");
  if (groups == 0) {
    bad_input(profile.group.tp > 1 ? "--tp" : "--ep", "a stage takes " + std::to_string(size) + " devices, there are " +
                                                          std::to_string(devices) + " (ep x tp may be at most that)");
  }
  if (stages > groups) {
    bad_input("--pp", std::to_string(stages) + " stages of " + std::to_string(size) + " devices, there are " + std::to_string(devices) +
                          " (at most " + std::to_string(groups) + ")");
  }
  if (stages > layers) {
    bad_input("--pp", std::to_string(stages) + " stages for " + std::to_string(layers) + " layers (every stage has at least one)");
  }
  // On CPUs every rank takes part; GPUs may be left out.
  const bool cpus = std::all_of(cluster.devices.begin(), cluster.devices.end(), [](const Device& d) { return d.is_cpu; });
  const int most = std::min(groups, layers);
  const Planning planning{
      profile, cluster, workload, objective, placement, stages > 0 ? stages : cpus ? most : 1, stages > 0 ? stages : most};
  return planning.run();
}

}  // namespace tandem
