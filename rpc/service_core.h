// What the services of one server share. Owned by the server, outlives every call. Thread-safe where it says so; private to rpc.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "rpc/server.h"
#include "rpc/text_threads.h"

namespace grpc {
class Service;
}

namespace tandem {

// Ids of the requests that the engine runs for us.
class OpenRequests {
 public:
  void add(const std::string& id);
  void remove(const std::string& id);
  bool has(const std::string& id) const;
  std::vector<std::string> all() const;

 private:
  mutable std::mutex mutex_;
  std::unordered_map<std::string, int> ids_;
};

struct ServiceCore {
  ServiceCore(ServerOptions options, Engine& engine, const TextSide& text, ServerInfo info);
  std::optional<int> retry_ms(Code code) const;  // for codes that a client may retry: when it may be welcome

  const ServerOptions options;
  Engine& engine;
  const TextSide& text;
  const ServerInfo info;
  const Clock::time_point started = Clock::now();
  OpenRequests requests;
  std::atomic<bool> draining{false};
  std::atomic<int> open_calls{0};
  std::atomic<uint64_t> slow_readers{0};
  TextThreads threads;  // last: ends first
};

std::unique_ptr<grpc::Service> make_inference_service(ServiceCore& core);
std::unique_ptr<grpc::Service> make_control_service(ServiceCore& core);

}  // namespace tandem
