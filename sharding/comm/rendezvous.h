// All that start-up needs from MPI or gRPC: small values published under a key and fetched by others.
#pragma once
#include <chrono>
#include <string>

namespace tandem {

class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  virtual void publish(const std::string& key, const std::string& value) = 0;
  virtual std::string fetch(const std::string& key, std::chrono::milliseconds deadline) = 0;  // Errors: Code::deadline_exceeded
};

}  // namespace tandem
