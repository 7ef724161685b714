#include "launch/probe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/plan/cuda.h"
#include "launch/devices.h"
#include "launch/topology.h"

namespace tandem {
namespace {

constexpr size_t kShortBytes = 64, kLongBytes = 8 << 20;
constexpr int kShortMessages = 200, kLongMessages = 6;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// GPUs of this machine, and how fast each writes another's memory.
Cluster probe_gpus(const ProbeOptions& options, const ProbeListener& listener) {
  Cluster cluster = local_gpus(options.device);
  for (Device& device : cluster.devices) {
    listener("GPU " + device.id);
    device.bandwidth = read_bandwidth(device.id, 1);
  }
  for (const Device& from : cluster.devices) {
    for (const Device& to : cluster.devices) {
      if (from.id == to.id) continue;
      listener("link " + from.id + " - " + to.id);
      const cuda::CopyRate rate = cuda::measure_copy(gpu_index(from.id), gpu_index(to.id));
      cluster.links.push_back({from.id, to.id, rate.latency, rate.bandwidth});
    }
  }
  return cluster;
}

// Every rank's text, of whatever length, on every rank.
std::vector<std::string> exchange_texts(Communicator& communicator, std::span<const int> all, std::string mine) {
  uint64_t longest = 0, length = mine.size();
  const std::vector<std::string> lengths = exchange(communicator, all, {reinterpret_cast<const char*>(&length), sizeof length});
  std::vector<uint64_t> of(lengths.size());
  for (size_t i = 0; i < lengths.size(); ++i) {
    std::memcpy(&of[i], lengths[i].data(), sizeof of[i]);
    longest = std::max(longest, of[i]);
  }
  mine.resize(longest);
  std::vector<std::string> texts = exchange(communicator, all, mine);
  for (size_t i = 0; i < texts.size(); ++i) texts[i].resize(of[i]);
  return texts;
}

// Half a round trip of short messages, and the rate of long ones, between this rank and another, which calls it too.
Link measure_link(Communicator& communicator, int other, bool begins) {
  std::vector<char> bytes(kLongBytes);
  const auto rounds = [&](int count, size_t size) {
    const double started = now();
    for (int i = 0; i < count; ++i) {
      if (begins) communicator.send(other, kHiddenChannel, bytes.data(), size);
      communicator.receive(other, kHiddenChannel, bytes.data(), size);
      if (!begins) communicator.send(other, kHiddenChannel, bytes.data(), size);
    }
    return (now() - started) / (2 * count);
  };
  rounds(kShortMessages / 10, kShortBytes);  // connects
  Link link;
  link.latency = rounds(kShortMessages, kShortBytes);
  rounds(1, kLongBytes);
  link.bandwidth = static_cast<double>(kLongBytes) / std::max(1e-9, rounds(kLongMessages, kLongBytes) - link.latency);
  return link;
}

}  // namespace

Cluster probe_here(const ProbeOptions& options, const ProbeListener& listener) {
  if (wants_gpus(options.device)) return probe_gpus(options, listener);
  Cluster cluster = local_cpus(1, options.threads);
  listener("memory");
  cluster.devices[0].node = host_name();
  cluster.devices[0].bandwidth = read_bandwidth("cpu", threads_for(options.threads, 1));
  return cluster;
}

Cluster probe_job(const ProbeOptions& options, Communicator& communicator, const MpiWorld& world, const ProbeListener& listener) {
  std::vector<int> all(static_cast<size_t>(world.size));
  std::iota(all.begin(), all.end(), 0);
  // Each rank's: its host, and whether it has GPUs to tell of. What is wrong on one rank is wrong for all, or they would wait for it.
  nlohmann::json mine = {{"host", host_name()}, {"gpus", false}, {"error", ""}};
  try {
    mine["gpus"] = wants_gpus(options.device);
  } catch (const Error& error) {
    mine["error"] = error.what();
  }
  std::vector<nlohmann::json> ranks;
  for (const std::string& text : exchange_texts(communicator, all, mine.dump())) ranks.push_back(nlohmann::json::parse(text));
  std::vector<std::string> hosts;  // of each rank
  bool gpus = true, several = false;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (!ranks[i]["error"].get<std::string>().empty()) {
      fail(Code::invalid_argument, "rank " + std::to_string(i), ranks[i]["error"].get<std::string>());
    }
    hosts.push_back(ranks[i]["host"]);
    several = several || hosts[i] != hosts[0];
    gpus = gpus && ranks[i]["gpus"].get<bool>();
  }

  // Devices. CPU ranks measure at once, as they will run at once.
  const auto self = static_cast<size_t>(world.rank);
  const auto first_of_host = [&hosts](size_t rank) { return std::find(hosts.begin(), hosts.end(), hosts[rank]) == hosts.begin() + static_cast<std::ptrdiff_t>(rank); };
  Cluster own;
  if (gpus) {
    if (first_of_host(self)) own = probe_gpus(options, listener);
    const auto named = [&](const std::string& id) { return several ? hosts[self] + "/" + id : id; };
    for (Device& device : own.devices) device.id = named(device.id), device.node = hosts[self];
    for (Link& link : own.links) link.from = named(link.from), link.to = named(link.to);
  } else {
    own = local_cpus(world.local_size, options.threads);
    own.devices.resize(1);
    own.devices[0].id = "cpu:" + std::to_string(world.rank);
    own.devices[0].node = hosts[self];
    communicator.barrier(all);
    listener("memory");
    own.devices[0].bandwidth = read_bandwidth("cpu", threads_for(options.threads, world.local_size));
  }

  // Links, one pair at a time: of all CPU ranks; of GPUs, between one rank of each host.
  const auto ends = [&](size_t a, size_t b) { return !gpus || (first_of_host(a) && first_of_host(b)); };
  std::vector<Link> between;  // by rank: "0" - "1"
  for (size_t a = 0; a < hosts.size(); ++a) {
    for (size_t b = a + 1; b < hosts.size(); ++b) {
      communicator.barrier(all);
      if (!ends(a, b)) continue;
      listener("link " + std::to_string(a) + " - " + std::to_string(b));
      if (self != a && self != b) continue;
      Link link = measure_link(communicator, static_cast<int>(self == a ? b : a), self == a);
      if (self != a) continue;
      link.from = std::to_string(a), link.to = std::to_string(b);
      between.push_back(link);
    }
  }

  nlohmann::json measured = {{"cluster", to_json(own)}, {"between", nlohmann::json::array()}};
  for (const Link& link : between) measured["between"].push_back({link.from, link.to, link.latency, link.bandwidth});
  Cluster cluster;
  std::vector<std::vector<std::string>> ids(hosts.size());  // of each rank's devices
  std::vector<nlohmann::json> rank_links;
  const std::vector<std::string> texts = exchange_texts(communicator, all, measured.dump());
  for (size_t i = 0; i < texts.size(); ++i) {
    const nlohmann::json json = nlohmann::json::parse(texts[i]);
    for (const nlohmann::json& link : json["between"]) rank_links.push_back(link);
    if (json["cluster"]["devices"].empty()) continue;
    const Cluster part = cluster_from_json(json["cluster"], "rank " + std::to_string(i));
    for (const Device& device : part.devices) ids[i].push_back(device.id);
    cluster.devices.insert(cluster.devices.end(), part.devices.begin(), part.devices.end());
    cluster.links.insert(cluster.links.end(), part.links.begin(), part.links.end());
  }
  for (const nlohmann::json& link : rank_links) {
    const auto a = std::stoul(link[0].get<std::string>()), b = std::stoul(link[1].get<std::string>());
    for (const std::string& from : ids[a]) {
      for (const std::string& to : ids[b]) {
        cluster.links.push_back({from, to, link[2], link[3]});
        cluster.links.push_back({to, from, link[2], link[3]});
      }
    }
  }
  return cluster;
}

}  // namespace tandem
