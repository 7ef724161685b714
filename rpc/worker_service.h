// The coordinator's end of the control stream. Workers dial in, say hello with the secret of the epoch, receive the plan, and report
// ready; steps are encoded once and shared by all streams. A rank is dead the moment its stream ends, or when it was silent for a
// lease. Everything is thread-safe; events come on gRPC's threads, must not block and must not destroy the server.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "rpc/slow_factor.h"
#include "runtime/model/worker.h"
#include "runtime/serving/worker_group.h"
#include "sharding/comm/rendezvous.h"

namespace tandem {

struct ControlOptions {
  std::string listen = "127.0.0.1:0";
  std::string advertise;  // host that workers dial; "": the one of listen
  double heartbeat_seconds = 0.2;
  double lease_seconds = 1 * kSlowFactor;  // silence that means death, after Hello
  double join_seconds = 60 * kSlowFactor;  // from expect() to the last Hello
  double straggle_seconds = 10 * kSlowFactor;  // from the first Hello to the last: a launcher starts all ranks at about the same time
  uint64_t max_message_bytes = 64 << 20;   // results come in parts below it
};

struct ControlEvents {
  std::function<void(int rank)> joined;              // said hello, is loading
  std::function<void(int rank, uint64_t done_bytes, uint64_t total_bytes)> loading;  // a few times a second; may be empty
  std::function<void(std::vector<RankInfo>)> ready;  // every rank is
  std::function<void(int rank, StepResult)> result;
  std::function<void(int rank, uint64_t step)> progress;
  std::function<void(int rank, Error why)> failed;  // at most once a rank and epoch; not after shutdown()
};

struct EpochTerms {
  uint32_t epoch = 0;
  int ranks = 0;
  std::string secret;         // at least 16 bytes
  std::string build;          // what every worker must be, "" is not checked
  std::string plan, options;  // handed to the workers as they are
};

class ControlServer {
 public:
  explicit ControlServer(ControlOptions options);  // Errors: as Server's, where = "control"
  ~ControlServer();                                // cuts every stream; no event after it

  std::string address() const;  // what workers dial
  // Begins an epoch; streams of an earlier one are cut without an event, its published values are forgotten.
  void expect(EpochTerms terms, ControlEvents events);
  void broadcast(StepBytes step);  // to every rank that is ready, in the order of the calls
  // Tells every worker to end in order, waits for the streams to close; then cuts them. No events. True when all went by themselves.
  bool shutdown(double seconds = 5 * kSlowFactor);
  Rendezvous& rendezvous();  // of the current epoch, the coordinator's own end

  struct Core;

 private:
  std::unique_ptr<Core> core_;
};

}  // namespace tandem
