#include "rpc/service_core.h"

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

ServiceCore::ServiceCore(ServerOptions options, Engine& engine, const TextSide& text, ServerInfo info)
    : options(std::move(options)),
      engine(engine),
      text(text),
      info(std::move(info)),
      threads(this->options.text_threads, this->options.max_starting) {}

std::optional<int> ServiceCore::retry_ms(Code code) const {
  if (code != Code::resource_exhausted && code != Code::unavailable) return std::nullopt;
  return static_cast<int>(engine.retry_after().count());
}

}  // namespace tandem
