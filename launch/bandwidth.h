// How fast this machine reads memory, measured now: the ceiling that decode speeds are compared with.
#pragma once

namespace tandem {

// Bytes per second that `threads` threads read together from memory far larger than the caches; the best of several passes.
double measure_read_bandwidth(int threads);

// CPU share that other processes used between two calls, as cores (0.5: half a core); for judging a measurement on a busy machine.
class OtherLoad {
 public:
  OtherLoad();
  double cores();  // since construction

 private:
  double total_ = 0, own_ = 0, started_ = 0;
};

}  // namespace tandem
