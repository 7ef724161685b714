// grpc.health.v1: Check, and a Watch that pushes every change. Names are known from add() on. Thread-safe; private to rpc.
#pragma once
#include <memory>
#include <string>

namespace grpc {
class Service;
}

namespace tandem {

class HealthService {
 public:
  HealthService();
  ~HealthService();
  grpc::Service* service();
  void set(const std::string& name, bool serving);  // a new name becomes known
  void close();                                     // everything is NOT_SERVING for good
  void shutdown();                                  // and watchers are sent away

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem
