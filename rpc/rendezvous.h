// Rendezvous over the control connection: the coordinator keeps the values of an epoch, workers publish and fetch by message. Both ends
// keep what they know in PublishedValues. Thread-safe.
#pragma once
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "sharding/comm/rendezvous.h"

namespace tandem {

class PublishedValues : public Rendezvous {
 public:
  void publish(const std::string& key, const std::string& value) override;  // a key published again keeps its first value
  std::string fetch(const std::string& key, std::chrono::milliseconds deadline) override;

  // Calls back with the value: now, or on the thread that publishes it. Dropped by forget().
  void when(const std::string& key, std::function<void(const std::string& value)> callback);
  void forget();                 // everything, and whoever waits gets nothing any more
  void close(const Error& why);  // every fetch, now and later, fails with this

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
  std::multimap<std::string, std::function<void(const std::string&)>> waiting_;
  std::optional<Error> closed_;
};

}  // namespace tandem
