#include "rpc/service_core.h"

#include <algorithm>

namespace tandem {

void OpenRequests::add(const std::string& id) {
  const std::lock_guard lock(mutex_);
  ++ids_[id];
}

void OpenRequests::remove(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = ids_.find(id);
  if (found != ids_.end() && --found->second == 0) ids_.erase(found);
}

bool OpenRequests::has(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  return ids_.contains(id);
}

std::vector<std::string> OpenRequests::all() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> ids;
  for (const auto& [id, count] : ids_) ids.push_back(id);
  return ids;
}

void DrainRate::finished() {
  const std::lock_guard lock(mutex_);
  const auto now = Clock::now();
  if (last_ != Clock::time_point{}) {
    const double seconds = std::min(10.0, std::chrono::duration<double>(now - last_).count());
    interval_ = 0.8 * interval_ + 0.2 * seconds;
  }
  last_ = now;
}

int DrainRate::retry_ms() const { return std::clamp(static_cast<int>(interval_ * 1000), 50, 5000); }

ServiceCore::ServiceCore(ServerOptions options, Engine& engine, const TextSide& text, ServerInfo info)
    : options(std::move(options)),
      engine(engine),
      text(text),
      info(std::move(info)),
      threads(this->options.text_threads, this->options.max_starting) {}

std::optional<int> ServiceCore::retry_ms(Code code) const {
  if (code == Code::resource_exhausted) return rate.retry_ms();
  if (code == Code::unavailable) return 1000;
  return std::nullopt;
}

}  // namespace tandem
