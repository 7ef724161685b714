#include "rpc/rendezvous.h"

namespace tandem {

void PublishedValues::publish(const std::string& key, const std::string& value) {
  std::vector<std::function<void(const std::string&)>> callbacks;
  {
    const std::lock_guard lock(mutex_);
    if (!values_.emplace(key, value).second) return;
    const auto [first, last] = waiting_.equal_range(key);
    for (auto at = first; at != last; ++at) callbacks.push_back(std::move(at->second));
    waiting_.erase(first, last);
  }
  changed_.notify_all();
  for (const auto& callback : callbacks) callback(value);
}

std::string PublishedValues::fetch(const std::string& key, std::chrono::milliseconds deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, deadline, [&] { return closed_ || values_.contains(key); });
  if (const auto found = values_.find(key); found != values_.end()) return found->second;
  if (closed_) throw *closed_;
  fail(Code::deadline_exceeded, "rendezvous", "nobody published '" + key + "' within " + std::to_string(deadline.count()) + " ms");
}

void PublishedValues::when(const std::string& key, std::function<void(const std::string&)> callback) {
  std::string value;
  {
    const std::lock_guard lock(mutex_);
    const auto found = values_.find(key);
    if (found == values_.end()) {
      waiting_.emplace(key, std::move(callback));
      return;
    }
    value = found->second;
  }
  callback(value);
}

void PublishedValues::forget() {
  const std::lock_guard lock(mutex_);
  values_.clear();
  waiting_.clear();
}

void PublishedValues::close(const Error& why) {
  {
    const std::lock_guard lock(mutex_);
    closed_ = why;
    waiting_.clear();
  }
  changed_.notify_all();
}

}  // namespace tandem
