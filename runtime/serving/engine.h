// The engine thread: owns scheduler, page pool and sequences, talks to one worker group, blocks only on its inbox. Everything public is
// thread-safe and returns at once (wait_for and the destructor excepted). When the group loses an epoch every open request ends with
// Code::unavailable, and the next epoch is started by itself if the group can be.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/trace.h"
#include "runtime/serving/engine_options.h"
#include "runtime/serving/metrics.h"
#include "runtime/serving/request.h"
#include "runtime/serving/worker_group.h"

namespace tandem {

struct Load { int32_t running = 0, waiting = 0, kv_pages_total = 0, kv_pages_free = 0; };
enum class EngineState : uint8_t { loading, serving, draining, lost, stopped };

class Engine {
 public:
  // `group` and `trace` (steps and requests as the engine sees them; null: nobody wants to know) outlive the engine.
  // Errors: invalid_argument naming the option.
  Engine(EngineOptions options, WorkerGroup& group, TraceTrack* trace = nullptr);
  ~Engine();  // every open request ends with Code::unavailable; stops the group

  void start();  // first epoch
  // Errors (thrown here, the sink never hears of the request): invalid_argument with the field's name, already_exists, resource_exhausted
  // (max_batch + max_queue requests are open), unavailable (loading, draining, stage lost).
  void submit(Request request, std::shared_ptr<RequestSink> sink);
  void cancel(const std::string& request_id, Code why);      // its pages are free within one step; unknown ids are ignored
  // The text side matched a stop string within the token at `index` (0-based among generated ones): ends with stop_string, and tokens
  // after it do not count. When the request has ended meanwhile its terminal event is on the way already and stays as it is.
  void finish(const std::string& request_id, int32_t index);
  void drain();                                              // refuse new requests, finish running ones; state becomes stopped when empty
  EngineState state() const;
  bool wait_for(EngineState state, std::chrono::milliseconds timeout) const;
  std::optional<Error> last_error() const;                   // why the last epoch ended
  std::chrono::milliseconds retry_after() const;             // when a refused request may be welcome: from the rate of completions
  const EngineOptions& options() const;                      // context is what the pages allow
  const Metrics& metrics() const;
  Load load() const;
  uint32_t epoch() const;
  std::vector<RankInfo> ranks() const;
  // Called on the engine's thread, first with the state at hand, then at every change.
  void on_state(std::function<void(EngineState)> listener);

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

}  // namespace tandem
