#include "rpc/health_service.h"

#include <grpcpp/grpcpp.h>

#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "rpc/health.grpc.pb.h"

namespace tandem {

namespace wire = grpc::health::v1;
using Status = wire::HealthCheckResponse::ServingStatus;

// One mutex guards the names and every watcher. Callbacks never run on the thread that starts an operation, so operations are started
// under it.
class HealthService::Impl final : public wire::Health::CallbackService {
 public:
  class Watcher final : public grpc::ServerWriteReactor<wire::HealthCheckResponse> {
   public:
    Watcher(Impl& owner, std::string name) : owner_(owner), name_(std::move(name)) {}

    void OnWriteDone(bool ok) override {
      const std::lock_guard lock(owner_.mutex_);
      writing_ = false;
      if (ok) update();
      if (!writing_ && ending_) finish();
    }
    void OnCancel() override {
      const std::lock_guard lock(owner_.mutex_);
      end(grpc::Status(grpc::StatusCode::CANCELLED, "cancelled"));
    }
    void OnDone() override {
      {
        const std::lock_guard lock(owner_.mutex_);
        owner_.watchers_.erase(this);
      }
      delete this;
    }

    // ---- with the owner's mutex held
    void update() {
      const Status now = owner_.status(name_);
      if (writing_ || ended_ || now == sent_) return;
      sent_ = now;
      message_.set_status(now);
      writing_ = true;
      StartWrite(&message_);
    }
    void end(const grpc::Status& status) {  // after what is being written
      if (!ending_) ending_ = status;
      if (!writing_) finish();
    }

   private:
    void finish() {
      if (ended_) return;
      ended_ = true;
      Finish(*ending_);
    }

    Impl& owner_;
    const std::string name_;
    std::optional<grpc::Status> ending_;
    wire::HealthCheckResponse message_;
    Status sent_ = wire::HealthCheckResponse::UNKNOWN;
    bool writing_ = false, ended_ = false;
  };

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context, const wire::HealthCheckRequest* request,
                                  wire::HealthCheckResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    Status now;
    {
      const std::lock_guard lock(mutex_);
      now = status(request->service());
    }
    response->set_status(now);
    reactor->Finish(now == wire::HealthCheckResponse::SERVICE_UNKNOWN ? grpc::Status(grpc::StatusCode::NOT_FOUND, "unknown service")
                                                                      : grpc::Status::OK);
    return reactor;
  }

  grpc::ServerWriteReactor<wire::HealthCheckResponse>* Watch(grpc::CallbackServerContext*,
                                                             const wire::HealthCheckRequest* request) override {
    auto* watcher = new Watcher(*this, request->service());
    const std::lock_guard lock(mutex_);
    if (stopped_ || watchers_.size() >= kMaxWatchers) {
      watcher->end(stopped_ ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server ends")
                            : grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many watchers"));
      return watcher;
    }
    watchers_.insert(watcher);
    watcher->update();
    return watcher;
  }

  Status status(const std::string& name) const {
    const auto found = names_.find(name);
    if (found == names_.end()) return wire::HealthCheckResponse::SERVICE_UNKNOWN;
    return found->second ? wire::HealthCheckResponse::SERVING : wire::HealthCheckResponse::NOT_SERVING;
  }

  void set(const std::string& name, bool serving) {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    names_[name] = serving;
    for (Watcher* watcher : watchers_) watcher->update();
  }

  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    for (auto& [name, serving] : names_) serving = false;
    for (Watcher* watcher : watchers_) watcher->update();
  }

  void shutdown() {
    close();
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    for (Watcher* watcher : watchers_) watcher->end(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server ends"));
  }

 private:
  static constexpr size_t kMaxWatchers = 1024;
  std::mutex mutex_;
  std::map<std::string, bool> names_;
  std::set<Watcher*> watchers_;
  bool closed_ = false, stopped_ = false;
};

HealthService::HealthService() : impl_(std::make_unique<Impl>()) {}
HealthService::~HealthService() = default;
grpc::Service* HealthService::service() { return impl_.get(); }
void HealthService::set(const std::string& name, bool serving) { impl_->set(name, serving); }
void HealthService::close() { impl_->close(); }
void HealthService::shutdown() { impl_->shutdown(); }

}  // namespace tandem
