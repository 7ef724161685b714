#include "rpc/remote_worker.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "rpc/convert.h"
#include "rpc/grpc_log.h"
#include "rpc/rendezvous.h"
#include "rpc/worker.grpc.pb.h"

namespace tandem {
namespace {

namespace wire = worker::v1;
using Time = std::chrono::steady_clock::time_point;
using Seconds = std::chrono::duration<double>;

constexpr size_t kPartBytes = 1 << 20;  // of a result
constexpr double kFlushSeconds = 1;     // for last words
constexpr double kCloseSeconds = 5 * kSlowFactor;
constexpr double kLoadingSeconds = 0.1;  // between words about how far loading is

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

std::chrono::system_clock::time_point after(double seconds) {
  return std::chrono::system_clock::now() + std::chrono::duration_cast<std::chrono::system_clock::duration>(Seconds(seconds));
}

// The stream and what is known about it. Reactions come on gRPC's threads; `mutex_` guards what stands under it.
class Session final : public grpc::ClientBidiReactor<wire::FromWorker, wire::FromCoordinator> {
 public:
  Session(const RemoteWorkerOptions& options, const std::function<void(const Error&)>& lost) : options_(options), on_lost_(lost) {}

  void begin(wire::WorkerControl::Stub& stub) {
    stub.async()->Join(&context_, this);
    AddHold();  // writes come from outside of reactions too; held until the last read
    StartRead(&incoming_);
    StartCall();
    wire::FromWorker message;
    wire::Hello& hello = *message.mutable_hello();
    hello.set_secret(options_.secret);
    hello.set_epoch(options_.epoch);
    hello.set_rank(options_.rank);
    hello.set_pid(getpid());
    hello.set_host(host_name());
    hello.set_build(options_.build);
    send(std::move(message));
    watch_ = std::thread([this] { watch(); });
  }

  WelcomeTerms wait_for_welcome() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, Seconds(options_.connect_seconds), [&] { return welcomed_ || done_; });
    if (welcomed_) return welcome_;
    if (done_ && !status_.ok()) throw Error(from_wire(status_.error_code()), "control stream", status_.error_message());
    fail(Code::unavailable, "control stream", "the coordinator at " + options_.address + " did not answer");
  }

  void send(wire::FromWorker message) {
    const std::lock_guard lock(mutex_);
    if (closing_ || ended_) return;
    outgoing_.push_back(std::move(message));
    if (!writing_) write();
  }

  void send_result(const StepResult& result) {
    const std::vector<std::byte> bytes = encode(result);
    const char* data = reinterpret_cast<const char*>(bytes.data());
    for (size_t at = 0;; at += kPartBytes) {
      const size_t left = bytes.size() - at;
      wire::FromWorker message;
      message.set_result(data + at, std::min(left, kPartBytes));
      message.set_more(left > kPartBytes);
      send(std::move(message));
      if (left <= kPartBytes) return;
    }
  }

  void send_progress(uint64_t step) {
    const std::lock_guard lock(mutex_);
    if (closing_ || ended_) return;
    progress_ = step;  // only the latest counts
    if (!writing_) write();
  }

  void send_loading(uint64_t done, uint64_t total) {
    const std::lock_guard lock(mutex_);
    const Time now = std::chrono::steady_clock::now();
    if (closing_ || ended_ || (done < total && Seconds(now - loading_told_).count() < kLoadingSeconds)) return;
    loading_told_ = now;
    loading_ = {done, total};  // only the latest counts
    if (!writing_) write();
  }

  // Last words: returns when the coordinator has heard them (it ends the stream), or after a moment.
  void send_failure(const Error& error) {
    wire::FromWorker message;
    message.mutable_failure()->set_code(std::string(name(error.code)));
    message.mutable_failure()->set_where(error.where);
    message.mutable_failure()->set_message(error.message);
    {
      const std::lock_guard lock(mutex_);
      failing_ = true;
    }
    send(std::move(message));
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, Seconds(kFlushSeconds), [&] { return ended_; });
  }

  WorkerCallbacks callbacks() {
    WorkerCallbacks to;
    to.loading = [this](uint64_t done, uint64_t total) { send_loading(done, total); };
    to.ready = [this] {
      const std::lock_guard lock(mutex_);
      loaded_ = true;
      tell_ready();
    };
    to.result = [this](StepResult result) { send_result(result); };
    to.progress = [this](uint64_t step) { send_progress(step); };
    to.failed = [this](Error error) {
      send_failure(error);
      lose(error);
    };
    return to;
  }

  void take(LoadedWorker loaded) {
    {
      const std::lock_guard lock(worker_mutex_);
      worker_ = std::move(loaded.worker);
      for (StepBytes& step : early_) worker_->submit(std::move(step));
      early_.clear();
    }
    const std::lock_guard lock(mutex_);
    loaded.worker = nullptr;
    about_ = std::move(loaded);
    known_ = true;
    tell_ready();
  }

  // Until the coordinator ends the epoch in order, or lost() has returned.
  void wait_for_end() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return shutdown_ || lost_returned_; });
  }

  // Destroys the worker, closes the stream.
  void close() {
    std::unique_ptr<Worker> worker;
    {
      const std::lock_guard lock(worker_mutex_);
      worker = std::move(worker_);
      gone_ = true;
    }
    worker.reset();
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, Seconds(kFlushSeconds), [&] { return done_ || (!writing_ && outgoing_.empty()); });
    closing_ = true;
    if (!ended_ && shutdown_ && !writing_) {
      StartWritesDone();
    } else {
      context_.TryCancel();
    }
    if (!changed_.wait_for(lock, Seconds(kCloseSeconds), [&] { return done_; })) {
      lock.unlock();
      context_.TryCancel();
      lock.lock();
      changed_.wait(lock, [&] { return done_; });
    }
    lock.unlock();
    if (watch_.joinable()) watch_.join();
  }

  std::optional<Error> lost() {
    const std::lock_guard lock(mutex_);
    return lost_;
  }

  // ---- Rendezvous
  void publish(const std::string& key, const std::string& value) {
    wire::FromWorker message;
    message.mutable_publish()->set_key(key);
    message.mutable_publish()->set_value(value);
    send(std::move(message));
  }
  void ask(const std::string& key) {
    wire::FromWorker message;
    message.mutable_fetch()->set_key(key);
    send(std::move(message));
  }
  PublishedValues& values() { return values_; }

  // ---- reactions
  void OnReadDone(bool ok) override {
    if (!ok) {  // the stream is over; OnDone says why, once the hold is gone and nothing can be written any more
      {
        const std::lock_guard lock(mutex_);
        ended_ = true;
        changed_.notify_all();
      }
      return RemoveHold();
    }
    last_heard_.store(std::chrono::steady_clock::now(), std::memory_order_relaxed);
    switch (incoming_.message_case()) {
      case wire::FromCoordinator::kWelcome: {
        const std::lock_guard lock(mutex_);
        welcome_ = {incoming_.welcome().epoch(), incoming_.welcome().ranks(), incoming_.welcome().plan(), incoming_.welcome().options()};
        welcomed_ = true;
        changed_.notify_all();
        break;
      }
      case wire::FromCoordinator::kStep: {
        const std::string& bytes = incoming_.step();
        const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
        StepBytes step = std::make_shared<const std::vector<std::byte>>(data, data + bytes.size());
        const std::lock_guard lock(worker_mutex_);
        if (worker_) {
          worker_->submit(std::move(step));
        } else if (!gone_) {
          early_.push_back(std::move(step));
        }
        break;
      }
      case wire::FromCoordinator::kShutdown: {
        const std::lock_guard lock(mutex_);
        shutdown_ = true;
        changed_.notify_all();
        break;
      }
      case wire::FromCoordinator::kValue:
        values_.publish(incoming_.value().key(), incoming_.value().value());
        break;
      default:
        break;
    }
    StartRead(&incoming_);
  }
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) outgoing_.clear();
    if (ok && !ended_ && (!outgoing_.empty() || loading_ || progress_)) return write();
    if (outgoing_.empty()) changed_.notify_all();
  }
  void OnDone(const grpc::Status& status) override {
    bool unexpected = false;
    {
      const std::lock_guard lock(mutex_);
      unexpected = welcomed_ && !shutdown_ && !closing_ && !failing_;
    }
    const Error why(Code::unavailable, "control stream",
                    "the coordinator is gone" + (status.error_message().empty() ? "" : " (" + status.error_message() + ")"));
    values_.close(why);
    if (unexpected) lose(why);
    const std::lock_guard lock(mutex_);
    status_ = status;
    done_ = true;
    changed_.notify_all();
  }

 private:
  void write() {  // with the mutex held
    if (loading_) {  // its last word comes before `ready`
      current_.Clear();
      current_.mutable_loading()->set_done_bytes(loading_->first);
      current_.mutable_loading()->set_total_bytes(loading_->second);
      loading_.reset();
    } else if (!outgoing_.empty()) {
      current_ = std::move(outgoing_.front());
      outgoing_.pop_front();
    } else {
      current_.Clear();
      current_.set_progress(*progress_);
      progress_.reset();
    }
    writing_ = true;
    StartWrite(&current_);
  }

  void tell_ready() {  // with the mutex held
    if (!loaded_ || !known_ || closing_ || ended_) return;
    wire::FromWorker message;
    message.mutable_ready()->set_device(about_.device);
    message.mutable_ready()->set_first_layer(about_.first_layer);
    message.mutable_ready()->set_last_layer(about_.last_layer);
    outgoing_.push_back(std::move(message));
    if (!writing_) write();
  }

  void lose(const Error& why) {
    {
      const std::lock_guard lock(mutex_);
      if (lost_ || shutdown_) return;
      lost_ = why;
    }
    values_.close(why);
    if (on_lost_) on_lost_(why);  // does not come back in a real worker
    const std::lock_guard lock(mutex_);
    lost_returned_ = true;
    changed_.notify_all();
  }

  void watch() {
    Time last = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex_);
    for (uint64_t count = 1; !done_; ++count) {
      changed_.wait_for(lock, Seconds(options_.heartbeat_seconds), [&] { return done_; });
      if (done_) return;
      const Time now = std::chrono::steady_clock::now();
      if (Seconds(now - last).count() > options_.heartbeat_seconds + options_.lease_seconds / 2) {
        last_heard_.store(now, std::memory_order_relaxed);  // this process slept: what was sent meanwhile has still to be read
      }
      last = now;
      if (!closing_ && !ended_ && outgoing_.empty() && !writing_) {
        outgoing_.emplace_back().mutable_heartbeat()->set_count(count);
        write();
      }
      const double silence = Seconds(now - last_heard_.load(std::memory_order_relaxed)).count();
      if (!welcomed_ || shutdown_ || closing_ || lost_ || silence <= options_.lease_seconds) continue;
      lock.unlock();
      lose(Error(Code::unavailable, "heartbeat",
                 "the coordinator was silent for " + std::to_string(static_cast<int>(silence * 1000)) + " ms"));
      lock.lock();
    }
  }

  const RemoteWorkerOptions& options_;
  const std::function<void(const Error&)>& on_lost_;
  grpc::ClientContext context_;
  wire::FromCoordinator incoming_;
  PublishedValues values_;
  std::atomic<Time> last_heard_{std::chrono::steady_clock::now()};
  std::thread watch_;

  std::mutex worker_mutex_;  // guards these three; a worker may call back from within submit()
  std::unique_ptr<Worker> worker_;
  std::vector<StepBytes> early_;  // before load() has returned
  bool gone_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<wire::FromWorker> outgoing_;
  wire::FromWorker current_;
  std::optional<uint64_t> progress_;
  std::optional<std::pair<uint64_t, uint64_t>> loading_;
  Time loading_told_;
  bool writing_ = false, closing_ = false;
  bool ended_ = false;    // nothing may be written
  bool failing_ = false;  // the end of the stream is no surprise
  WelcomeTerms welcome_;
  bool welcomed_ = false, shutdown_ = false, done_ = false;
  grpc::Status status_;
  LoadedWorker about_;   // without the worker
  bool known_ = false;   // load() has returned
  bool loaded_ = false;  // the worker said ready
  std::optional<Error> lost_;
  bool lost_returned_ = false;
};

class RemoteRendezvous final : public Rendezvous {
 public:
  explicit RemoteRendezvous(Session& session) : session_(session) {}
  void publish(const std::string& key, const std::string& value) override { session_.publish(key, value); }
  std::string fetch(const std::string& key, std::chrono::milliseconds deadline) override {
    session_.ask(key);
    return session_.values().fetch(key, deadline);
  }

 private:
  Session& session_;
};

}  // namespace

void run_remote_worker(const RemoteWorkerOptions& options, const LoadWorker& load, const std::function<void(const Error&)>& lost) {
  prepare_grpc();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_CHANNELZ, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto channel = grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(after(options.connect_seconds))) {
    fail(Code::unavailable, "control stream", "no coordinator at " + options.address);
  }
  const auto stub = wire::WorkerControl::NewStub(channel);
  Session session(options, lost);
  session.begin(*stub);
  struct Close {
    Session& session;
    ~Close() { session.close(); }
  };
  {
    const Close close{session};
    const WelcomeTerms terms = session.wait_for_welcome();
    RemoteRendezvous rendezvous(session);
    try {
      session.take(load(terms, rendezvous, session.callbacks()));
    } catch (const Error& error) {
      session.send_failure(error);
      throw;
    } catch (const std::exception& error) {
      session.send_failure(Error(Code::internal, "load", error.what()));
      throw;
    }
    session.wait_for_end();
  }
  if (const auto why = session.lost()) throw *why;
}

}  // namespace tandem
