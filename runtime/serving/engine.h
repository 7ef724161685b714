// The engine thread: owns scheduler, page pool and sequences, talks to one worker group, blocks only on its inbox. Everything public is
// thread-safe and returns at once.
#pragma once
#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "runtime/serving/request.h"
#include "runtime/serving/worker_group.h"

namespace tandem {

struct EngineOptions {
  int32_t max_batch = 8;         // sequences that run at once, over all groups
  int32_t chunk = 512;           // prompt tokens a step
  int32_t max_queue = 256;       // requests waiting for a slot; more are refused
  int32_t page_tokens = 64;
  int32_t context = 4096;        // longest sequence
  int32_t groups = 1;            // sequences groups in flight: the pipeline's depth
  std::vector<int32_t> kv_pages;   // per KV group
  int32_t vocab = 0;
  bool prefix_cache = true;
  double step_deadline_seconds = 10;  // a step that takes longer means a hung rank: max(this, 20 x the moving average)
  bool check_digests = false;
};

struct Load { int32_t running = 0, waiting = 0, kv_pages_total = 0, kv_pages_free = 0; };
enum class EngineState : uint8_t { loading, serving, draining, lost, stopped };

class Engine {
 public:
  Engine(EngineOptions options, WorkerGroup& group);
  ~Engine();  // every open request ends with Code::unavailable

  void start();  // first epoch
  // Errors (thrown here, the sink never hears of the request): invalid_argument with the field's name, already_exists, resource_exhausted
  // (queue full), unavailable (loading, draining, stage lost).
  void submit(Request request, std::shared_ptr<RequestSink> sink);
  void cancel(const std::string& request_id, Code why);      // its pages are free within one step; unknown ids are ignored
  // The text side matched a stop string within the token at `index` (0-based among generated ones): ends with stop_string, and tokens
  // after it do not count.
  void finish(const std::string& request_id, int32_t index);
  void drain();                                              // refuse new requests, finish running ones; state becomes stopped when empty
  EngineState state() const;
  bool wait_for(EngineState state, std::chrono::milliseconds timeout) const;
  std::optional<Error> last_error() const;                   // why the last epoch ended
  Load load() const;
  uint32_t epoch() const;
  std::vector<RankInfo> ranks() const;
  // Called on the engine's thread at every change of state.
  void on_state(std::function<void(EngineState)> listener);

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

}  // namespace tandem
