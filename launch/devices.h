// The devices that this machine has and a run may use: --device, the plan's device ids, and the backends behind them.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "kernels/program/backend.h"
#include "sharding/cluster.h"

namespace tandem {

// --device: cpu, cuda, cuda:0,1 or auto (GPUs where there are any). Whether it means GPUs. Errors: Code::invalid_argument when it is none
// of these, or when cuda is asked for and cannot be had.
bool wants_gpus(const std::string& device);
// The GPUs that --device names, as the driver shows them now. Errors: as wants_gpus, and for an index that is not there.
Cluster local_gpus(const std::string& device);

bool is_gpu(std::string_view device_id);  // of a plan: anything but cpu, cpu:0, ...
int gpu_index(const std::string& device_id);  // "1", "NODE/1": 1; -1: no number
// The backend that runs a rank on a device of a plan. Errors: as require_here.
std::unique_ptr<Backend> make_backend(const std::string& device_id, int threads);
// Tells sizes, computes nothing.
std::unique_ptr<Backend> make_sizes(bool gpus, int threads);
// Bytes per second that a device of a plan reads of its memory, measured now.
double read_bandwidth(const std::string& device_id, int threads);
// Errors: Code::invalid_argument naming a device of a plan that this machine does not have.
void require_here(const std::string& device_id);

}  // namespace tandem
