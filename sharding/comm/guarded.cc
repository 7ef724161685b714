// A deadline around any communicator. One thread looks now and then whether the call in progress is too old, and aborts it.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "kernels/base/error.h"
#include "sharding/comm/comms.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;

class Guarded final : public Communicator {
 public:
  Guarded(std::unique_ptr<Communicator> inner, std::chrono::milliseconds deadline)
      : inner_(std::move(inner)), deadline_(deadline), watch_([this] { watch(); }) {}
  ~Guarded() override {
    {
      const std::lock_guard lock(mutex_);
      leaving_ = true;
    }
    wake_.notify_one();
    watch_.join();
  }

  std::string_view transport() const override { return inner_->transport(); }
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }

  void send(int to, int channel, const void* data, size_t bytes) override {
    timed("send", to, [&] { inner_->send(to, channel, data, bytes); });
  }
  void receive(int from, int channel, void* data, size_t bytes) override {
    timed("receive", from, [&] { inner_->receive(from, channel, data, bytes); });
  }
  bool arrived(int from, int channel) override {
    bool answer = false;
    timed("arrived", from, [&] { answer = inner_->arrived(from, channel); });
    return answer;
  }
  void all_reduce(std::span<const int> members, float* values, size_t count) override {
    timed("all_reduce", -1, [&] { inner_->all_reduce(members, values, count); });
  }
  void all_gather(std::span<const int> members, const float* mine, std::span<const size_t> counts, float* all) override {
    timed("all_gather", -1, [&] { inner_->all_gather(members, mine, counts, all); });
  }
  void broadcast(std::span<const int> members, int root, void* data, size_t bytes) override {
    timed("broadcast", root, [&] { inner_->broadcast(members, root, data, bytes); });
  }
  void barrier(std::span<const int> members) override {
    timed("barrier", -1, [&] { inner_->barrier(members); });
  }
  void abort() noexcept override { inner_->abort(); }

 private:
  template <class Call>
  void timed(const char* what, int peer, Call&& call) {
    struct Timing {  // 0: no call in progress
      explicit Timing(std::atomic<int64_t>& since) : since_(since) { since_ = Clock::now().time_since_epoch().count(); }
      ~Timing() { since_ = 0; }
      std::atomic<int64_t>& since_;
    };
    if (expired_) late(what, peer);
    const Timing timing(since_);
    try {
      call();
    } catch (const Error& error) {
      if (error.code == Code::aborted && expired_) late(what, peer);
      throw;
    }
  }

  [[noreturn]] void late(const char* what, int peer) const {
    fail(Code::deadline_exceeded, "rank " + std::to_string(rank()),
         std::string(what) + (peer >= 0 ? " with rank " + std::to_string(peer) : "") + " had to end within " +
             std::to_string(deadline_.count()) + " ms");
  }

  void watch() {
    const auto period = std::max<std::chrono::nanoseconds>(deadline_ / 8, std::chrono::milliseconds(1));
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, period, [this] { return leaving_; })) {
      const int64_t since = since_;
      if (since == 0 || expired_ || Clock::now() - Clock::time_point(Clock::duration(since)) < deadline_) continue;
      expired_ = true;
      inner_->abort();
    }
  }

  std::unique_ptr<Communicator> inner_;
  std::chrono::milliseconds deadline_;
  std::atomic<int64_t> since_{0};
  std::atomic<bool> expired_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  bool leaving_ = false;
  std::thread watch_;  // last: it reads all of the above
};

}  // namespace

std::unique_ptr<Communicator> make_guarded(std::unique_ptr<Communicator> inner, std::chrono::milliseconds deadline) {
  return std::make_unique<Guarded>(std::move(inner), deadline);
}

}  // namespace tandem
