// A client of the public wire, as `tandem client` and `chat` use it. Refusals (UNAVAILABLE, RESOURCE_EXHAUSTED before the first token)
// are retried invisibly: four attempts, the server says when. Thread-safe; calls block, cancel() comes from any thread.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rpc/ask.h"
#include "runtime/serving/engine.h"

namespace tandem {

struct ClientOptions {
  double connect_seconds = 0;  // how long to wait for a server to appear; 0: fail at once when nobody listens
  bool retry = true;
};

struct ServedModel {
  std::string name, family, format, compute, kv_dtype, digest;
  int32_t context = 0, vocab = 0, layers = 0, max_batch = 0;
  bool chat = false, text = false;
  std::vector<int32_t> stop_ids;
};
struct ServedTopology {
  uint32_t epoch = 0;
  std::vector<RankInfo> ranks;
};
struct Tokens {
  std::vector<int32_t> ids;
  std::vector<std::string> pieces;
  std::string text;
};

// The retry policy as a service config (docs/wire.md prints it).
std::string_view retry_policy_json();

class Client {
 public:
  explicit Client(std::string address, ClientOptions options = {});
  ~Client();

  // One call; cancel() from another thread or from within on_delta ends it with Code::cancelled. Reusable one call at a time.
  class Call {
   public:
    Call();
    ~Call();
    void cancel();

   private:
    friend class Client;
    struct Core;
    std::shared_ptr<Core> core_;
  };

  // Blocks until the answer ends. on_delta is called on this thread for each delta; it may be empty. deadline_seconds 0: a day.
  // Errors: the status of the call as an Error with the server's message; internal when the stream broke its own rules.
  AnswerEnd generate(const Ask& ask, const std::function<void(const AnswerDelta&)>& on_delta, double deadline_seconds = 0,
                     Call* call = nullptr);

  Tokens tokenize(const Ask& ask, bool special = true, bool generation_prompt = true);
  std::string detokenize(const std::vector<int32_t>& ids, bool skip_special = false);
  int32_t count_tokens(const Ask& ask);

  ServedModel model();
  ServedTopology topology();
  Load load();
  std::string state();                                                   // of the server: "loading", "serving", ...
  std::vector<bool> abort(const std::vector<std::string>& request_ids);  // true: was in flight
  void drain();
  bool healthy(const std::string& service = "");  // Errors: not_found

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

}  // namespace tandem
