#include "launch/devices.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cpu/backend.h"
#include "kernels/cuda/plan/cuda.h"
#include "launch/bandwidth.h"

namespace tandem {
namespace {

// What CUDA takes on a device before the first allocation: its context, and the kernels of this program once they are loaded.
constexpr uint64_t kContextBytes = uint64_t{600} << 20;

[[noreturn]] void unknown(const std::string& device) { bad_input("--device", "is " + device + " (must be cpu, cuda, cuda:0,1 or auto)"); }

int index_of(std::string_view digits, const std::string& whole) {
  int index = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (error != std::errc() || end != digits.data() + digits.size() || index < 0) unknown(whole);
  return index;
}

std::vector<cuda::Gpu> named_gpus(const std::string& device) {
  std::vector<cuda::Gpu> all = cuda::gpus();
  if (all.empty()) bad_input("--device", "is " + device + ", but " + cuda::why_none() + " (use cpu or auto)");
  const size_t colon = device.find(':');
  if (colon == std::string::npos) return all;
  std::vector<cuda::Gpu> named;
  for (size_t begin = colon + 1; begin <= device.size();) {
    const size_t end = std::min(device.find(',', begin), device.size());
    const int index = index_of(std::string_view(device).substr(begin, end - begin), device);
    if (static_cast<size_t>(index) >= all.size()) {
      bad_input("--device", "names GPU " + std::to_string(index) + " (this machine has " + std::to_string(all.size()) + ", counted from 0)");
    }
    for (const cuda::Gpu& other : named) {
      if (other.index == index) bad_input("--device", "names GPU " + std::to_string(index) + " twice");
    }
    named.push_back(all[static_cast<size_t>(index)]);
    begin = end + 1;
  }
  return named;
}

// The longest name of the preset table inside the driver's name: "NVIDIA H200" is h200.
std::string kind_of(const std::string& driver_name) {
  std::string squeezed;
  for (const unsigned char c : driver_name) {
    if (std::isalnum(c)) squeezed += static_cast<char>(std::tolower(c));
  }
  std::string best = "gpu";
  size_t longest = 0;
  for (const std::string& name : gpu_names()) {
    if (name.size() > longest && squeezed.find(name) != std::string::npos) best = name, longest = name.size();
  }
  return best;
}

}  // namespace

bool wants_gpus(const std::string& device) {
  if (device == "cpu") return false;
  if (device == "auto") return cuda::gpu_count() > 0;
  if (device != "cuda" && !device.starts_with("cuda:")) unknown(device);
  named_gpus(device);
  return true;
}

Cluster local_gpus(const std::string& device) {
  Cluster cluster;
  for (const cuda::Gpu& gpu : named_gpus(device)) {
    Device d;
    d.id = std::to_string(gpu.index);
    d.kind = kind_of(gpu.name);
    d.total_bytes = gpu.total_bytes;
    d.free_bytes = std::min(gpu.free_bytes, gpu.total_bytes);
    d.reserve_bytes = default_reserve(gpu.total_bytes);
    d.overhead_bytes = kContextBytes;
    if (d.kind != "gpu") {
      const Device known = cluster_from_gpus(d.kind).devices[0];
      d.bandwidth = known.bandwidth, d.flops = known.flops;
    }
    cluster.devices.push_back(std::move(d));
  }
  return cluster;
}

bool is_gpu(std::string_view device_id) { return !device_id.starts_with("cpu"); }

int gpu_index(const std::string& device_id) {
  const size_t slash = device_id.rfind('/');
  const std::string number = slash == std::string::npos ? device_id : device_id.substr(slash + 1);
  const bool digits = !number.empty() && number.size() < 4 && std::all_of(number.begin(), number.end(), [](unsigned char c) { return std::isdigit(c); });
  return digits ? std::stoi(number) : -1;
}

void require_here(const std::string& device_id) {
  if (!is_gpu(device_id)) return;
  const int count = cuda::gpu_count(), index = gpu_index(device_id);
  if (count == 0) bad_input("device " + device_id, "cannot be used: " + cuda::why_none() + " (plan for cpu)");
  if (index < 0 || index >= count) {
    bad_input("device " + device_id, "is not on this machine (it has " + std::to_string(count) + " GPUs, counted from 0)");
  }
}

double read_bandwidth(const std::string& device_id, int threads) {
  return is_gpu(device_id) ? cuda::measure_read_bandwidth(gpu_index(device_id)) : measure_read_bandwidth(threads);
}

std::unique_ptr<Backend> make_backend(const std::string& device_id, int threads) {
  if (!is_gpu(device_id)) return cpu::make_cpu_backend(threads);
  require_here(device_id);
  return cuda::make_cuda_backend(gpu_index(device_id));
}

std::unique_ptr<Backend> make_sizes(bool gpus, int threads) { return gpus ? cuda::make_cuda_sizes() : cpu::make_cpu_backend(threads); }

}  // namespace tandem
