// The gRPC server: one port, the services Inference, Control, health and reflection. Takes connections as soon as it is constructed, and
// refuses requests with UNAVAILABLE until the engine serves. Everything is thread-safe. The engine and the text side outlive it.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "rpc/text_side.h"
#include "runtime/serving/engine.h"

namespace tandem {

struct ServerOptions {
  std::string listen = "127.0.0.1:8001";  // port 0 picks one
  int text_threads = 2;                   // templates, tokenizer, detokenizer, stop strings, writes
  int max_starting = 1024;                // requests a text thread may have waiting to be tokenized; more are refused
  int max_concurrent_streams = 128;       // of one connection
  double slow_reader_seconds = 30;        // a write that nobody reads for so long ends its call
  double default_deadline_seconds = 600;  // of a call that came without one; 0: none
  int ranks = 1;                          // health knows stage/0 ... stage/ranks-1
};

struct PlanQuestion {
  std::string model, gpus, format, kv_dtype, objective;
  int32_t context = 0, batch = 0;
  std::map<std::string, uint64_t> max_memory;
};
struct PlanAnswer {
  std::string verdict, plan_json;
};

struct ServerInfo {
  std::string version, build;
  std::function<PlanAnswer(const PlanQuestion&)> plan_capacity;  // empty: UNIMPLEMENTED. Errors: any
  std::function<void()> drain;                                   // empty: engine.drain()
};

class Server {
 public:
  // Errors: invalid_argument or failed_precondition (port in use), where = "--listen".
  Server(ServerOptions options, Engine& engine, const TextSide& text, ServerInfo info);
  ~Server();  // stop(0)

  std::string address() const;  // "HOST:PORT", the port that was picked
  int port() const;

  // Sets every health name but "liveness" (which is always SERVING): serving if and only if the engine is. For Engine::on_state; the
  // function may be called while and after the server is destroyed.
  std::function<void(EngineState)> follower() const;
  void follow(EngineState state) { follower()(state); }
  void set_stage(int rank, bool serving);  // one rank known to be lost

  // Refuses new calls (health NOT_SERVING), lets running ones finish for `seconds`, then cancels them. Returns when none is left.
  void stop(double seconds);

  uint64_t slow_readers() const;
  int open_calls() const;

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

}  // namespace tandem
