// A real `tandem serve` and real clients, for tests over processes and sockets. Every wait is bounded; bounds grow with kSlowFactor.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "rpc/client.h"
#include "rpc/slow_factor.h"
#include "tests/support/process.h"

namespace tandem::e2e {

inline const std::string kLlama = TANDEM_FIXTURES "/llama-tiny";  // 3 layers, 3 KV heads, context 256
inline const std::string kMixtral = TANDEM_FIXTURES "/mixtral-tiny";
std::optional<std::string> cached_model(const std::string& file);  // in the cache folder that tools/fetch_smollm2.sh fills
std::optional<std::string> smollm2();
constexpr const char* kNoSmolLM2 = "SmolLM2 is not in the cache (tools/fetch_smollm2.sh)";

enum class Way { alone, own_mpirun, plain_mpirun };  // serve, serve --ranks N, mpirun -n N serve
std::string name(Way way);
std::vector<std::string> mpirun_words(int ranks);  // "mpirun", ...

// Follows grpc.health.v1's Watch of a name.
class HealthWatch {
 public:
  explicit HealthWatch(const std::string& address, const std::string& service = "");
  ~HealthWatch();
  // Waits for this state; a state that came and went since the last call counts. False: too late.
  bool wait(bool serving, double seconds);
  void forget();  // what came until now: only the present state and later ones count

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

class Serving {
 public:
  // Returns when it says where it listens, or has ended: address is empty then. `more`: options behind the usual ones.
  Serving(Way way, int ranks, const std::string& model, const std::vector<std::string>& more = {},
          const std::vector<std::string>& environment = {});

  ~Serving();  // after a failure: tells what the server said

  bool wait_serving(double seconds = 60 * kSlowFactor);
  Client client(bool retry = false) const { return Client(address, {.connect_seconds = 5 * kSlowFactor, .retry = retry}); }
  Load load() const { return client().load(); }
  // Polls GetLoad: the server tells no such event.
  bool wait_load(const std::function<bool(const Load&)>& as_wanted, double seconds = 30 * kSlowFactor) const;
  bool wait_idle(double seconds = 30 * kSlowFactor) const;  // nothing runs or waits, every page is free
  pid_t coordinator() const;                                // the process that listens
  std::vector<pid_t> ranks() const;                         // by GetTopology
  std::vector<pid_t> workers() const;                       // processes below that run a rank and nothing else

  const Way way;
  Process process;
  std::string address;
  std::unique_ptr<HealthWatch> health;
};

// How a stream ended.
struct Ended {
  std::optional<Code> error;  // empty: OK
  std::string message;
  AnswerEnd end;
  std::vector<int32_t> ids;
  std::string text;
  double seconds = 0;      // when, since the stream was asked for
  double first_delta = 0;  // when
  int ends = 0;            // terminal statuses seen
};

// One Generate call on a thread of its own.
class Stream {
 public:
  struct Options {
    double deadline = 0;
    bool retry = false;
    int cancel_after = -1;           // deltas
    int pause_after = -1;            // deltas: reads no more until resume()
    std::shared_ptr<Client> client;  // empty: one of its own
  };
  Stream(const std::string& address, Ask ask, Options options);
  Stream(const std::string& address, Ask ask) : Stream(address, std::move(ask), Options()) {}
  ~Stream();
  bool wait_tokens(int at_least, double seconds = 30 * kSlowFactor);  // false: too late, or it ended before
  bool wait_end(double seconds);
  void cancel();
  void resume();
  const Ended& ended();  // waits for the end

 private:
  struct Core;
  std::shared_ptr<Core> core_;
  std::thread thread_;
};

Ask ask_ids(std::vector<int32_t> ids, int32_t max_tokens);  // greedy, never stops by itself
std::vector<int32_t> some_ids(int count, uint32_t seed, int32_t below = 490);

}  // namespace tandem::e2e
