// The devices and links that a plan may use: measured (probe), given (--gpus, --cluster, --max-memory) or this machine's. Values only.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tandem {

struct Device {
  std::string id, node, kind;        // "0", "NODE/0", "cpu:1"; "rtx3090", "cpu", ...
  bool is_cpu = false;
  uint64_t total_bytes = 0, free_bytes = 0, reserve_bytes = 0, overhead_bytes = 0;
  double bandwidth = 0, flops = 0;   // bytes/s read, flop/s; 0: unknown
};
struct Link { std::string from, to; double latency = 0, bandwidth = 0; };  // seconds, bytes/s
struct Cluster { std::vector<Device> devices; std::vector<Link> links; };

// {"schema": "tandem.cluster/1", "devices": [{"id", "node", "kind", "total_bytes", "free_bytes", "reserve_bytes", "overhead_bytes",
// "bandwidth_bytes_per_second", "flops"}], "links": [{"from", "to", "latency_seconds", "bandwidth_bytes_per_second"}]}; only id and
// total_bytes must be there. Errors: Code::invalid_argument naming file and field.
Cluster cluster_from_json(const nlohmann::json& json, const std::string& where);
nlohmann::json to_json(const Cluster& cluster);
Cluster local_cpus(int ranks, int threads);                     // this machine's memory shared by `ranks` CPU devices
Cluster cluster_from_gpus(const std::string& option);           // "2xrtx3090,1xa4000": preset table
uint64_t default_reserve(uint64_t total);                       // bytes kept free of a device's: the larger of 512 MiB and 2 %
std::vector<std::string> gpu_names();                           // of the preset table
void apply_max_memory(Cluster& cluster, const std::string& option);  // "0=20GiB,1=10GiB,cpu=64GiB"; "cpu" is shared by CPU ranks
uint64_t parse_bytes(const std::string& text, const std::string& where);  // "20GiB", "1.5GB", "1000"; GB = 1e9, GiB = 2^30
std::string human_bytes(uint64_t bytes);                        // "1.50 GiB"

}  // namespace tandem
