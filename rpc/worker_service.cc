#include "rpc/worker_service.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "rpc/convert.h"
#include "rpc/grpc_log.h"
#include "rpc/listen_address.h"
#include "rpc/rendezvous.h"
#include "rpc/worker.grpc.pb.h"

namespace tandem {
namespace {

namespace wire = worker::v1;
using Time = std::chrono::steady_clock::time_point;
using Seconds = std::chrono::duration<double>;

constexpr double kHelloSeconds = 10 * kSlowFactor;

grpc::ByteBuffer to_buffer(const wire::FromCoordinator& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

// FromCoordinator{step: bytes} without a copy of the bytes: the field's head, then the step's own memory, kept until all streams sent it.
grpc::ByteBuffer to_buffer(StepBytes step) {
  std::string head(1, static_cast<char>(wire::FromCoordinator::kStepFieldNumber << 3 | 2));
  for (uint64_t size = step->size();; size >>= 7) {
    head += static_cast<char>((size & 0x7f) | (size > 0x7f ? 0x80 : 0));
    if (size <= 0x7f) break;
  }
  auto* keep = new StepBytes(std::move(step));
  auto* memory = const_cast<std::byte*>((*keep)->data());  // never written to
  const grpc::Slice slices[] = {grpc::Slice(head), grpc::Slice(
                                                       memory, (*keep)->size(), [](void* p) { delete static_cast<StepBytes*>(p); }, keep)};
  return grpc::ByteBuffer(slices, 2);
}

bool same_secret(const std::string& a, const std::string& b) {  // in a time that does not tell where they differ
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference = static_cast<unsigned char>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

class NoPlugins final : public grpc::ServerBuilderOption {  // no reflection on this port
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override { plugins->clear(); }
};

class Link;

struct Epoch {
  EpochTerms terms;
  ControlEvents events;
  std::vector<Link*> links;  // by rank; null: not there (any more)
  std::vector<char> joined, ready, dead;
  std::vector<RankInfo> infos;
  Time began = std::chrono::steady_clock::now();
  std::optional<Time> first_joined;
  std::atomic<bool> over{false};  // no more events
};

using Base = wire::WorkerControl::WithRawCallbackMethod_Join<wire::WorkerControl::Service>;

}  // namespace

struct ControlServer::Core final : public Base {
  explicit Core(ControlOptions o) : options(std::move(o)) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Join(grpc::CallbackServerContext* context) override;

  // ---- words of a link, on gRPC's threads
  void heard(Link& link, wire::FromWorker& message);
  void hello(Link& link, const wire::Hello& hello);
  void died(Link& link, const Error& why);  // at most once a link has effect

  void declare_dead(const std::shared_ptr<Epoch>& epoch, int rank, const Error& why);
  void watch();
  void look(Time now);

  const ControlOptions options;
  std::string address;
  std::unique_ptr<grpc::Server> server;
  PublishedValues values;

  std::mutex mutex;  // guards what follows; taken before a link's
  std::condition_variable changed;
  std::shared_ptr<Epoch> epoch;
  std::set<Link*> links;
  bool ending = false;
  std::thread watcher;
};

namespace {

// One worker's stream. gRPC destroys it after the last reaction; the core knows it until then.
class Link final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Link(ControlServer::Core& core, grpc::CallbackServerContext& context) : core_(core), context_(context) {}
  void begin() { StartRead(&incoming_); }

  void send(grpc::ByteBuffer message) {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    outgoing_.push_back(std::move(message));
    if (!writing_) write();
  }
  size_t backlog() {
    const std::lock_guard lock(mutex_);
    return outgoing_.size();
  }
  void end(const grpc::Status& status) {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    Finish(status);
  }
  void cut() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) {
      core_.died(*this, Error(Code::unavailable, "control stream", "ended: the process is gone"));
      return end(grpc::Status::OK);
    }
    last_heard.store(std::chrono::steady_clock::now(), std::memory_order_relaxed);
    message_.Clear();
    if (!grpc::SerializationTraits<wire::FromWorker>::Deserialize(&incoming_, &message_).ok()) {
      core_.died(*this, Error(Code::internal, "control stream", "a message cannot be read"));
      return end(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "a message cannot be read"));
    }
    core_.heard(*this, message_);
    StartRead(&incoming_);
  }
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) outgoing_.clear();
    if (!ended_ && !outgoing_.empty()) write();
  }
  void OnCancel() override {
    core_.died(*this, Error(Code::unavailable, "control stream", "broke: the process or its host is gone"));
    end(grpc::Status(grpc::StatusCode::CANCELLED, "cut"));
  }
  void OnDone() override;

  // Set by the core when Hello was accepted; read on this stream's reactions and under the core's mutex.
  std::shared_ptr<Epoch> epoch;
  int rank = -1;
  std::string result;  // its parts so far
  std::atomic<Time> last_heard{std::chrono::steady_clock::now()};

 private:
  void write() {
    writing_ = true;
    current_ = std::move(outgoing_.front());
    outgoing_.pop_front();
    StartWrite(&current_);
  }

  ControlServer::Core& core_;
  grpc::CallbackServerContext& context_;
  grpc::ByteBuffer incoming_;
  wire::FromWorker message_;
  std::mutex mutex_;
  grpc::ByteBuffer current_;
  std::deque<grpc::ByteBuffer> outgoing_;
  bool writing_ = false, ended_ = false;
};

void Link::OnDone() {
  {
    const std::lock_guard lock(core_.mutex);
    core_.links.erase(this);
    if (epoch && epoch->links[static_cast<size_t>(rank)] == this) epoch->links[static_cast<size_t>(rank)] = nullptr;
    core_.changed.notify_all();
  }
  delete this;
}

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ControlServer::Core::Join(grpc::CallbackServerContext* context) {
  auto* link = new Link(*this, *context);
  {
    const std::lock_guard lock(mutex);
    links.insert(link);
  }
  link->begin();
  return link;
}

void ControlServer::Core::hello(Link& link, const wire::Hello& hello) {
  const auto refuse = [&](grpc::StatusCode code, const std::string& why) { link.end(grpc::Status(code, why)); };
  std::shared_ptr<Epoch> now;
  wire::FromCoordinator welcome;
  const size_t rank = static_cast<size_t>(hello.rank());
  {
    const std::lock_guard lock(mutex);
    now = epoch;
    if (link.epoch) return refuse(grpc::StatusCode::FAILED_PRECONDITION, "hello was said before");
    if (!now || now->over || !same_secret(hello.secret(), now->terms.secret))
      return refuse(grpc::StatusCode::UNAUTHENTICATED, "wrong secret");
    if (hello.epoch() != now->terms.epoch) return refuse(grpc::StatusCode::FAILED_PRECONDITION, "wrong epoch");
    if (hello.rank() < 0 || hello.rank() >= now->terms.ranks) return refuse(grpc::StatusCode::INVALID_ARGUMENT, "no such rank");
    if (now->joined[rank]) return refuse(grpc::StatusCode::ALREADY_EXISTS, "this rank has joined already");
    now->joined[rank] = 1;
    if (!now->first_joined) now->first_joined = std::chrono::steady_clock::now();
    if (now->terms.build.empty() || hello.build() == now->terms.build) {
      link.epoch = now;
      link.rank = hello.rank();
      now->links[rank] = &link;
      now->infos[rank] = {hello.rank(), hello.pid(), hello.host(), "", 0, -1};
    }
  }
  if (!link.epoch) {
    const Error why(
        Code::failed_precondition, "build",
        "the worker on " + hello.host() + " is another build (" + hello.build() + ") than the coordinator (" + now->terms.build + ")");
    declare_dead(now, hello.rank(), why);
    return refuse(grpc::StatusCode::FAILED_PRECONDITION, why.what());
  }
  wire::Welcome& terms = *welcome.mutable_welcome();
  terms.set_epoch(now->terms.epoch);
  terms.set_ranks(now->terms.ranks);
  terms.set_plan(now->terms.plan);
  terms.set_options(now->terms.options);
  link.send(to_buffer(welcome));
  if (!now->over && now->events.joined) now->events.joined(hello.rank());
}

void ControlServer::Core::heard(Link& link, wire::FromWorker& message) {
  if (message.message_case() == wire::FromWorker::kHello) return hello(link, message.hello());
  const std::shared_ptr<Epoch>& now = link.epoch;
  if (!now) return link.end(grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "hello comes first"));
  if (now->over && message.message_case() != wire::FromWorker::kFailure) return;
  const size_t rank = static_cast<size_t>(link.rank);
  switch (message.message_case()) {
    case wire::FromWorker::kReady: {
      bool all = true;
      std::vector<RankInfo> infos;
      {
        const std::lock_guard lock(mutex);
        if (now->ready[rank]) return;
        now->ready[rank] = 1;
        RankInfo& info = now->infos[rank];
        info.device = message.ready().device();
        info.first_layer = message.ready().first_layer();
        info.last_layer = message.ready().last_layer();
        for (size_t r = 0; r < now->ready.size(); ++r) all = all && now->ready[r] && !now->dead[r];
        if (all) infos = now->infos;
      }
      if (all && now->events.ready) now->events.ready(std::move(infos));
      return;
    }
    case wire::FromWorker::kResult: {
      if (message.more() || !link.result.empty()) {
        link.result += message.result();
        if (message.more()) return;
      } else {
        link.result.swap(*message.mutable_result());
      }
      const std::string bytes = std::move(link.result);
      link.result.clear();
      try {
        StepResult result = decode_result(std::as_bytes(std::span(bytes)));
        if (now->events.result) now->events.result(link.rank, std::move(result));
      } catch (const Error& error) {
        died(link, error);
        link.cut();
      }
      return;
    }
    case wire::FromWorker::kLoading:
      if (now->events.loading) now->events.loading(link.rank, message.loading().done_bytes(), message.loading().total_bytes());
      return;
    case wire::FromWorker::kProgress:
      if (now->events.progress) now->events.progress(link.rank, message.progress());
      return;
    case wire::FromWorker::kFailure:
      died(link,
           Error(code_named(message.failure().code()).value_or(Code::internal), message.failure().where(), message.failure().message()));
      return link.end(grpc::Status::OK);  // tells the worker that it was heard
    case wire::FromWorker::kPublish:
      return values.publish(message.publish().key(), message.publish().value());
    case wire::FromWorker::kFetch: {
      const std::string key = message.fetch().key();
      values.when(key, [this, key, epoch = now, rank](const std::string& value) {
        wire::FromCoordinator answer;
        answer.mutable_value()->set_key(key);
        answer.mutable_value()->set_value(value);
        const std::lock_guard lock(mutex);
        if (Link* to = epoch->links[rank]; to != nullptr) to->send(to_buffer(answer));
      });
      return;
    }
    default:
      return;  // a heartbeat: heard
  }
}

void ControlServer::Core::died(Link& link, const Error& why) {
  std::shared_ptr<Epoch> of;
  {
    const std::lock_guard lock(mutex);  // a cut may come while hello is being read
    of = link.epoch;
  }
  if (of) declare_dead(of, link.rank, why);
}

void ControlServer::Core::declare_dead(const std::shared_ptr<Epoch>& of, int rank, const Error& why) {
  {
    const std::lock_guard lock(mutex);
    if (of->over || of->dead[static_cast<size_t>(rank)]) return;
    of->dead[static_cast<size_t>(rank)] = 1;
  }
  if (of->events.failed) of->events.failed(rank, why);
}

void ControlServer::Core::look(Time now) {
  std::shared_ptr<Epoch> current;
  std::vector<std::pair<int, Error>> silent;
  static const grpc::ByteBuffer heartbeat = [] {
    wire::FromCoordinator message;
    message.mutable_heartbeat();
    return to_buffer(message);
  }();
  {
    const std::lock_guard lock(mutex);
    current = epoch;
    for (Link* link : links) {
      const double silence = Seconds(now - link->last_heard.load(std::memory_order_relaxed)).count();
      if (!link->epoch) {
        if (silence > kHelloSeconds) link->cut();
        continue;
      }
      if (link->backlog() == 0) link->send(heartbeat);  // whatever waits to be sent is as good
      if (link->epoch == current && silence > options.lease_seconds) {
        silent.emplace_back(link->rank,
                            Error(Code::unavailable, "heartbeat", "none for " + std::to_string(static_cast<int>(silence * 1000)) + " ms"));
      }
    }
    const auto late = [&](Time since, double seconds) { return Seconds(now - since).count() > seconds; };
    const auto time_is_up = [&] {
      return late(current->began, options.join_seconds) || (current->first_joined && late(*current->first_joined, options.straggle_seconds));
    };
    if (current && !current->over && time_is_up()) {
      for (int rank = 0; rank < current->terms.ranks; ++rank) {
        if (!current->joined[static_cast<size_t>(rank)]) {
          silent.emplace_back(rank, Error(Code::unavailable, "control stream",
                                          "the rank did not join within " + std::to_string(static_cast<int>(Seconds(now - current->began).count())) + " s"));
        }
      }
    }
  }
  for (const auto& [rank, why] : silent) declare_dead(current, rank, why);
}

void ControlServer::Core::watch() {
  Time last = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex);
  while (!ending) {
    changed.wait_for(lock, Seconds(options.heartbeat_seconds), [&] { return ending; });
    if (ending) return;
    const Time now = std::chrono::steady_clock::now();
    if (Seconds(now - last).count() > options.heartbeat_seconds + options.lease_seconds / 2) {
      for (Link* link : links) link->last_heard.store(now, std::memory_order_relaxed);  // it was we who slept: give them time to be heard
    }
    last = now;
    lock.unlock();
    look(now);
    lock.lock();
  }
}

ControlServer::ControlServer(ControlOptions options) : core_(std::make_unique<Core>(std::move(options))) {
  prepare_grpc();
  Core& core = *core_;
  check_listen_address(core.options.listen, "control");
  int port = 0;
  grpc::ServerBuilder builder;
  builder.SetOption(std::make_unique<NoPlugins>());
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10000);
  builder.SetMaxReceiveMessageSize(static_cast<int>(core.options.max_message_bytes));
  builder.AddListeningPort(core.options.listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(core_.get());
  core.server = builder.BuildAndStart();
  if (core.server == nullptr || port == 0) fail(Code::failed_precondition, "control", "cannot listen on " + core.options.listen);
  const std::string host = core.options.advertise.empty() ? split_address(core.options.listen, "control").host : core.options.advertise;
  core.address = host + ":" + std::to_string(port);
  core.watcher = std::thread([&core] { core.watch(); });
}

ControlServer::~ControlServer() {
  Core& core = *core_;
  if (core.server == nullptr) return;
  {
    const std::lock_guard lock(core.mutex);
    core.ending = true;
    if (core.epoch) core.epoch->over = true;
    for (Link* link : core.links) link->cut();
    core.changed.notify_all();
  }
  if (core.watcher.joinable()) core.watcher.join();
  core.values.close(Error(Code::unavailable, "rendezvous", "the coordinator ends"));
  core.server->Shutdown(std::chrono::system_clock::now());
  core.server.reset();
}

std::string ControlServer::address() const { return core_->address; }

void ControlServer::expect(EpochTerms terms, ControlEvents events) {
  if (terms.secret.size() < 16) bad_input("secret", "is shorter than 16 bytes");
  if (terms.ranks < 1) bad_input("ranks", "is " + std::to_string(terms.ranks) + " (at least 1)");
  auto next = std::make_shared<Epoch>();
  const size_t ranks = static_cast<size_t>(terms.ranks);
  next->terms = std::move(terms);
  next->events = std::move(events);
  next->links.resize(ranks);
  next->joined.resize(ranks);
  next->ready.resize(ranks);
  next->dead.resize(ranks);
  next->infos.resize(ranks);
  const std::lock_guard lock(core_->mutex);
  if (core_->epoch) core_->epoch->over = true;
  for (Link* link : core_->links) link->cut();
  core_->values.forget();
  core_->epoch = std::move(next);
}

void ControlServer::broadcast(StepBytes step) {
  const grpc::ByteBuffer message = to_buffer(std::move(step));
  const std::lock_guard lock(core_->mutex);
  if (!core_->epoch || core_->epoch->over) return;
  for (size_t rank = 0; rank < core_->epoch->links.size(); ++rank) {
    if (core_->epoch->links[rank] != nullptr && core_->epoch->ready[rank]) core_->epoch->links[rank]->send(message);
  }
}

bool ControlServer::shutdown(double seconds) {
  wire::FromCoordinator message;
  message.mutable_shutdown();
  const grpc::ByteBuffer bytes = to_buffer(message);
  std::unique_lock lock(core_->mutex);
  if (core_->epoch) core_->epoch->over = true;
  for (Link* link : core_->links) link->send(bytes);
  const bool all = core_->changed.wait_for(lock, Seconds(seconds), [&] { return core_->links.empty(); });
  for (Link* link : core_->links) link->cut();
  core_->changed.wait_for(lock, Seconds(1), [&] { return core_->links.empty(); });
  return all;
}

Rendezvous& ControlServer::rendezvous() { return core_->values; }

}  // namespace tandem
