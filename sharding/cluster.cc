#include "sharding/cluster.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <fstream>
#include <set>
#include <string_view>

#include "kernels/base/error.h"
#include "sharding/fields.h"

namespace tandem {
namespace {

constexpr double kGiga = 1e9, kTera = 1e12;
constexpr uint64_t kMiB = 1 << 20;

// Memory as the driver shows it, not as the box says; bandwidth and dense bf16 (or fp16 with fp32 sums) rate of the data sheets. The
// context is what CUDA takes before the first allocation.
struct GpuPreset {
  std::string_view name;
  uint64_t memory_mib;
  double gigabytes_per_second, teraflops;
};
constexpr uint64_t kContextMib = 512;  // 476 to 521 MiB were seen on RTX cards
constexpr GpuPreset kGpus[] = {
    {"rtx2080ti", 11011, 616, 53.8},  {"rtx3060", 12053, 360, 51},
    {"rtx3070", 7972, 448, 81},       {"rtx3080", 10007, 760, 119},
    {"rtx3080ti", 12045, 912, 136},   {"rtx3090", 24146, 936, 71},
    {"rtx3090ti", 24248, 1008, 80},   {"rtx4060ti-16gb", 16076, 288, 88},
    {"rtx4070", 11994, 504, 58},      {"rtx4070tisuper", 16076, 672, 88},
    {"rtx4080", 16072, 717, 97},      {"rtx4090", 24080, 1008, 165},
    {"rtx5070ti", 15843, 896, 88},    {"rtx5080", 15843, 960, 113},
    {"rtx5090", 32109, 1792, 210},    {"a2000-12gb", 12035, 288, 32},
    {"a4000", 16117, 448, 77},        {"a4500", 20190, 640, 95},
    {"a5000", 24256, 768, 111},       {"a6000", 48677, 768, 155},
    {"rtx4000ada", 20040, 360, 107},  {"rtx6000ada", 48508, 960, 364},
    {"rtxpro6000", 97250, 1792, 504}, {"t4", 14914, 320, 65},
    {"v100-16gb", 16151, 900, 125},   {"v100-32gb", 32501, 900, 125},
    {"a10", 22517, 600, 125},         {"a30", 24062, 933, 165},
    {"a40", 45416, 696, 150},         {"a100-40gb", 40354, 1555, 312},
    {"a100-80gb", 81038, 2039, 312},  {"l4", 22478, 300, 121},
    {"l40", 45489, 864, 181},         {"l40s", 45489, 864, 362},
    {"h100", 81079, 3350, 989},       {"h100-pcie", 81079, 2000, 756},
    {"h200", 143156, 4800, 989},      {"gh200", 96768, 4000, 989},
    {"b200", 182642, 8000, 2250},
};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// Bytes that a container may still use, or the largest number where there is no limit.
uint64_t cgroup_bytes() {
  std::ifstream limit("/sys/fs/cgroup/memory.max"), used("/sys/fs/cgroup/memory.current");
  uint64_t most = 0, now = 0;
  if (!(limit >> most) || !(used >> now)) return UINT64_MAX;
  return most > now ? most - now : 0;
}

void unique_ids(const Cluster& cluster, const std::string& where) {
  std::set<std::string_view> ids;
  for (const Device& device : cluster.devices) {
    if (!ids.insert(device.id).second) bad_input(where, "device " + device.id + " is there twice (ids are unique)");
  }
}

}  // namespace

uint64_t default_reserve(uint64_t total) { return std::max<uint64_t>(512 * kMiB, total / 50); }

std::vector<std::string> gpu_names() {
  std::vector<std::string> names;
  for (const GpuPreset& gpu : kGpus) names.emplace_back(gpu.name);
  return names;
}

Cluster cluster_from_json(const nlohmann::json& json, const std::string& where) {
  const Fields root(json, where, "");
  if (root.get_or<std::string>("schema", "tandem.cluster/1") != "tandem.cluster/1") root.refuse("schema", "\"tandem.cluster/1\"");
  Cluster cluster;
  for (const Fields& fields : root.objects("devices")) {
    Device device;
    device.id = fields.get<std::string>("id");
    if (device.id.empty() || device.id.find(',') != std::string::npos) fields.refuse("id", "a text without a comma");
    device.node = fields.get_or<std::string>("node", "");
    device.kind = fields.get_or<std::string>("kind", device.id.starts_with("cpu") ? "cpu" : "gpu");
    device.is_cpu = fields.get_or<bool>("is_cpu", device.kind == "cpu");
    device.total_bytes = fields.get<uint64_t>("total_bytes");
    device.free_bytes = fields.get_or<uint64_t>("free_bytes", device.total_bytes);
    if (device.free_bytes > device.total_bytes) fields.refuse("free_bytes", "at most total_bytes, " + std::to_string(device.total_bytes));
    device.reserve_bytes = fields.get_or<uint64_t>("reserve_bytes", default_reserve(device.total_bytes));
    device.overhead_bytes = fields.get_or<uint64_t>("overhead_bytes", 0);
    device.bandwidth = fields.get_or<double>("bandwidth_bytes_per_second", 0);
    device.flops = fields.get_or<double>("flops", 0);
    cluster.devices.push_back(std::move(device));
  }
  if (cluster.devices.empty()) root.refuse("devices", "a list of at least one device");
  unique_ids(cluster, where + ": devices");
  if (root.has("links")) {
    for (const Fields& fields : root.objects("links")) {
      Link link{fields.get<std::string>("from"), fields.get<std::string>("to"), fields.get_or<double>("latency_seconds", 0),
                fields.get_or<double>("bandwidth_bytes_per_second", 0)};
      for (const char* end : {"from", "to"}) {
        const std::string& id = end == std::string("from") ? link.from : link.to;
        if (std::none_of(cluster.devices.begin(), cluster.devices.end(), [&id](const Device& d) { return d.id == id; })) {
          fields.refuse(end, "the id of one of the devices");
        }
      }
      cluster.links.push_back(std::move(link));
    }
  }
  return cluster;
}

nlohmann::json to_json(const Cluster& cluster) {
  nlohmann::json devices = nlohmann::json::array(), links = nlohmann::json::array();
  for (const Device& d : cluster.devices) {
    devices.push_back({{"id", d.id},
                       {"node", d.node},
                       {"kind", d.kind},
                       {"is_cpu", d.is_cpu},
                       {"total_bytes", d.total_bytes},
                       {"free_bytes", d.free_bytes},
                       {"reserve_bytes", d.reserve_bytes},
                       {"overhead_bytes", d.overhead_bytes},
                       {"bandwidth_bytes_per_second", d.bandwidth},
                       {"flops", d.flops}});
  }
  for (const Link& l : cluster.links) {
    links.push_back({{"from", l.from}, {"to", l.to}, {"latency_seconds", l.latency}, {"bandwidth_bytes_per_second", l.bandwidth}});
  }
  return {{"schema", "tandem.cluster/1"}, {"devices", devices}, {"links", links}};
}

Cluster local_cpus(int ranks, int /*threads*/) {
  uint64_t total = 0, available = 0;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    unsigned long long kib = 0;
    if (std::sscanf(line.c_str(), "MemTotal: %llu kB", &kib) == 1) total = kib << 10;
    if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kib) == 1) available = kib << 10;
  }
  if (total == 0) fail(Code::failed_precondition, "/proc/meminfo", "has no MemTotal");
  available = std::min({available, total, cgroup_bytes()});
  ranks = std::max(ranks, 1);
  Cluster cluster;
  for (int rank = 0; rank < ranks; ++rank) {
    Device device;
    device.id = ranks == 1 ? "cpu" : "cpu:" + std::to_string(rank);
    device.kind = "cpu";
    device.is_cpu = true;
    device.total_bytes = total / ranks;
    device.free_bytes = available / ranks;
    device.reserve_bytes = default_reserve(device.total_bytes);
    cluster.devices.push_back(std::move(device));
  }
  return cluster;
}

Cluster cluster_from_gpus(const std::string& option) {
  Cluster cluster;
  for (std::string part : split(option, ',')) {
    int count = 1;
    const size_t digits = part.find_first_not_of("0123456789");
    if (digits != std::string::npos && digits > 0 && part[digits] == 'x') {
      count = digits <= 4 ? std::stoi(part.substr(0, digits)) : 0;
      part = part.substr(digits + 1);
    }
    std::transform(part.begin(), part.end(), part.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const auto gpu = std::find_if(std::begin(kGpus), std::end(kGpus), [&part](const GpuPreset& g) { return g.name == part; });
    if (gpu == std::end(kGpus)) {
      std::string known;
      for (const GpuPreset& g : kGpus) known += (known.empty() ? "" : ", ") + std::string(g.name);
      bad_input("--gpus", "\"" + part + "\" is not a GPU that is known (COUNTxNAME,...; names are " + known + ")");
    }
    if (count < 1 || count > 1024) bad_input("--gpus", "\"" + option + "\" has a wrong count (1 to 1024)");
    for (; count > 0; --count) {
      Device device;
      device.id = std::to_string(cluster.devices.size());
      device.kind = std::string(gpu->name);
      device.total_bytes = device.free_bytes = gpu->memory_mib * kMiB;
      device.reserve_bytes = default_reserve(device.total_bytes);
      device.overhead_bytes = kContextMib * kMiB;
      device.bandwidth = gpu->gigabytes_per_second * kGiga;
      device.flops = gpu->teraflops * kTera;
      cluster.devices.push_back(std::move(device));
    }
  }
  return cluster;
}

void apply_max_memory(Cluster& cluster, const std::string& option) {
  std::set<std::string> named;
  for (const std::string& part : split(option, ',')) {
    const size_t equals = part.find('=');
    if (equals == std::string::npos || equals == 0) bad_input("--max-memory", "\"" + part + "\" (must be DEVICE=BYTES: 0=20GiB,cpu=64GiB)");
    const std::string id = part.substr(0, equals);
    const uint64_t bytes = parse_bytes(part.substr(equals + 1), "--max-memory");
    if (!named.insert(id).second) bad_input("--max-memory", "device " + id + " is there twice");
    const auto set = [](Device& device, uint64_t free) {
      device.free_bytes = free;
      device.total_bytes = std::max(device.total_bytes, free);
      device.reserve_bytes = default_reserve(device.total_bytes);
    };
    const auto found = std::find_if(cluster.devices.begin(), cluster.devices.end(), [&id](const Device& d) { return d.id == id; });
    if (found != cluster.devices.end()) {
      set(*found, bytes);
      continue;
    }
    if (id == "cpu") {  // one machine's memory, which its CPU ranks share
      std::vector<Device*> ranks;
      for (Device& device : cluster.devices) {
        if (device.is_cpu && device.id.starts_with("cpu:")) ranks.push_back(&device);
      }
      for (Device* rank : ranks) set(*rank, bytes / ranks.size());
      if (!ranks.empty()) continue;
    }
    Device device;
    device.id = id;
    device.is_cpu = id == "cpu" || id.starts_with("cpu:");
    device.kind = device.is_cpu ? "cpu" : "gpu";
    const size_t slash = id.rfind('/');
    if (slash != std::string::npos) device.node = id.substr(0, slash);
    set(device, bytes);
    cluster.devices.push_back(std::move(device));
  }
}

uint64_t parse_bytes(const std::string& text, const std::string& where) {
  const auto wrong = [&]() { bad_input(where, "\"" + text + "\" is not a number of bytes (such as 20GiB, 1.5GB, 512MiB or 1000)"); };
  struct Unit {
    std::string_view name;
    uint64_t bytes;
  };
  static constexpr Unit kUnits[] = {{"", 1},
                                    {"B", 1},
                                    {"KB", 1000},
                                    {"MB", 1000000},
                                    {"GB", 1000000000},
                                    {"TB", 1000000000000},
                                    {"KiB", 1ull << 10},
                                    {"MiB", 1ull << 20},
                                    {"GiB", 1ull << 30},
                                    {"TiB", 1ull << 40}};
  size_t end = 0;
  unsigned __int128 digits = 0, scale = 1;
  bool point = false, any = false;
  for (; end < text.size(); ++end) {
    const char c = text[end];
    if (c == '.' && !point && any) {
      point = true;
    } else if (c >= '0' && c <= '9') {
      any = true;
      digits = digits * 10 + (c - '0');
      if (point) scale *= 10;
      if (digits > 1000000000000000000ull || scale > 1000000000000ull) wrong();
    } else {
      break;
    }
  }
  if (!any || (point && scale == 1)) wrong();
  const auto unit =
      std::find_if(std::begin(kUnits), std::end(kUnits), [&](const Unit& u) { return u.name == std::string_view(text).substr(end); });
  if (unit == std::end(kUnits) || (point && unit->bytes == 1)) wrong();
  const unsigned __int128 bytes = digits * unit->bytes / scale;
  if (bytes > static_cast<unsigned __int128>(INT64_MAX)) wrong();
  return static_cast<uint64_t>(bytes);
}

std::string human_bytes(uint64_t bytes) {
  char text[32];
  const char* units[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return std::to_string(bytes) + " B";
  double value = static_cast<double>(bytes) / 1024;
  int unit = 0;
  while (value >= 1023.995 && unit < 4) value /= 1024, ++unit;
  std::snprintf(text, sizeof text, "%.2f %s", value, units[unit]);
  return text;
}

}  // namespace tandem
