#include "tests/e2e/serving.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "rpc/health.grpc.pb.h"

namespace tandem::e2e {

using Lock = std::unique_lock<std::mutex>;
using Seconds = std::chrono::duration<double>;

std::optional<std::string> cached_model(const std::string& file) {
  std::string folder;
  if (const char* set = std::getenv("TANDEM_CACHE")) {
    folder = set;
  } else if (const char* cache = std::getenv("XDG_CACHE_HOME")) {
    folder = std::string(cache) + "/tandem";
  } else if (const char* home = std::getenv("HOME")) {
    folder = std::string(home) + "/.cache/tandem";
  }
  const std::string path = folder + "/" + file;
  return std::filesystem::exists(path) ? std::optional(path) : std::nullopt;
}
std::optional<std::string> smollm2() { return cached_model("SmolLM2-135M-Instruct.Q4_1.gguf"); }

std::string name(Way way) { return way == Way::alone ? "alone" : way == Way::own_mpirun ? "own_mpirun" : "plain_mpirun"; }

std::vector<std::string> mpirun_words(int ranks) {
  std::vector<std::string> words = {"mpirun", "--oversubscribe"};
  if (geteuid() == 0) words.emplace_back("--allow-run-as-root");
  words.insert(words.end(), {"-n", std::to_string(ranks)});
  return words;
}

// ---- HealthWatch

struct HealthWatch::Core {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<grpc::health::v1::Health::Stub> stub;
  grpc::ClientContext context;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<bool> seen;  // states, in order
  size_t looked = 0;       // how many of them wait() has passed
  bool over = false;
  std::thread thread;
};

HealthWatch::HealthWatch(const std::string& address, const std::string& service) : core_(std::make_unique<Core>()) {
  Core& core = *core_;
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  core.channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  core.stub = grpc::health::v1::Health::NewStub(core.channel);
  core.thread = std::thread([&core, service] {
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    core.context.set_wait_for_ready(true);
    const auto reader = core.stub->Watch(&core.context, request);
    grpc::health::v1::HealthCheckResponse response;
    while (reader->Read(&response)) {
      const std::lock_guard lock(core.mutex);
      core.seen.push_back(response.status() == grpc::health::v1::HealthCheckResponse::SERVING);
      core.changed.notify_all();
    }
    reader->Finish();
    const std::lock_guard lock(core.mutex);
    core.over = true;
    core.changed.notify_all();
  });
}

HealthWatch::~HealthWatch() {
  core_->context.TryCancel();
  core_->thread.join();
}

bool HealthWatch::wait(bool serving, double seconds) {
  Lock lock(core_->mutex);
  return core_->changed.wait_for(lock, Seconds(seconds), [&] {
    const auto from = core_->seen.begin() + static_cast<ptrdiff_t>(core_->looked > 0 ? core_->looked - 1 : 0);
    const auto at = std::find(from, core_->seen.end(), serving);
    if (at != core_->seen.end()) core_->looked = static_cast<size_t>(at - core_->seen.begin()) + 1;
    return at != core_->seen.end() || (core_->over && !serving);  // a stream that broke serves nobody
  });
}

void HealthWatch::forget() {
  const std::lock_guard lock(core_->mutex);
  core_->looked = core_->seen.size();
}

// ---- Serving

namespace {

std::vector<std::string> serve_words(Way way, int ranks, const std::string& model, const std::vector<std::string>& more) {
  std::vector<std::string> words;
  if (way == Way::plain_mpirun) words = mpirun_words(ranks);
  words.insert(words.end(), {TANDEM_BINARY, "serve", model});
  if (std::find(more.begin(), more.end(), "--listen") == more.end()) words.insert(words.end(), {"--listen", "127.0.0.1:0"});
  if (way == Way::own_mpirun) words.insert(words.end(), {"--ranks", std::to_string(ranks)});
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

}  // namespace

Serving::Serving(Way way, int ranks, const std::string& model, const std::vector<std::string>& more,
                 const std::vector<std::string>& environment)
    : way(way), process(serve_words(way, ranks, model, more), environment) {
  address = process.line("listening on ", 30 * kSlowFactor).value_or("");
  if (!address.empty()) health = std::make_unique<HealthWatch>(address);
}

Serving::~Serving() {
  if (testing::Test::HasFailure()) std::fprintf(stderr, "the server said:\n%s", process.err().c_str());
}

bool Serving::wait_serving(double seconds) { return health && health->wait(true, seconds); }

bool Serving::wait_load(const std::function<bool(const Load&)>& as_wanted, double seconds) const {
  Client client = this->client();
  for (const Stopwatch clock; clock.seconds() < seconds; std::this_thread::sleep_for(std::chrono::milliseconds(5))) {
    if (as_wanted(client.load())) return true;
  }
  return false;
}

bool Serving::wait_idle(double seconds) const {
  return wait_load([](const Load& load) { return load.running == 0 && load.waiting == 0 && load.kv_pages_free == load.kv_pages_total; },
                   seconds);
}

pid_t Serving::coordinator() const {
  if (way != Way::plain_mpirun) return process.pid();
  return client().topology().ranks.at(0).pid;
}

std::vector<pid_t> Serving::ranks() const {
  std::vector<pid_t> pids;
  for (const RankInfo& rank : client().topology().ranks) pids.push_back(rank.pid);
  return pids;
}

std::vector<pid_t> Serving::workers() const {
  std::vector<pid_t> found;
  for (const pid_t pid : descendants(process.pid())) {
    const std::string command = command_of(pid);
    if (command.starts_with(TANDEM_BINARY) && (way == Way::plain_mpirun || command.find(" worker ") != std::string::npos))
      found.push_back(pid);
  }
  return found;
}

// ---- Stream

struct Stream::Core {
  std::mutex mutex;
  std::condition_variable changed;
  Ended ended;
  bool over = false, paused = false;
  Client::Call call;
};

Stream::Stream(const std::string& address, Ask ask, Options options) : core_(std::make_shared<Core>()) {
  thread_ = std::thread([core = core_, address, ask = std::move(ask), options] {
    const Stopwatch clock;
    const auto client = options.client
                            ? options.client
                            : std::make_shared<Client>(address, ClientOptions{.connect_seconds = 10 * kSlowFactor, .retry = options.retry});
    int deltas = 0;
    std::optional<Code> failed;
    std::string message;
    AnswerEnd end;
    try {
      end = client->generate(
          ask,
          [&](const AnswerDelta& delta) {
            Lock lock(core->mutex);
            if (deltas++ == 0) core->ended.first_delta = clock.seconds();
            core->ended.text += delta.text;
            core->ended.ids.insert(core->ended.ids.end(), delta.token_ids.begin(), delta.token_ids.end());
            core->changed.notify_all();
            if (deltas == options.pause_after) {
              core->paused = true;
              core->changed.wait(lock, [&] { return !core->paused; });
            }
            if (deltas == options.cancel_after) core->call.cancel();
          },
          options.deadline, &core->call);
    } catch (const Error& error) {
      failed = error.code;
      message = error.what();
    }
    const Lock lock(core->mutex);
    core->ended.error = failed;
    core->ended.message = message;
    core->ended.end = end;
    core->ended.seconds = clock.seconds();
    ++core->ended.ends;
    core->over = true;
    core->changed.notify_all();
  });
}

Stream::~Stream() {
  resume();
  cancel();
  thread_.join();
}

bool Stream::wait_tokens(int at_least, double seconds) {
  Lock lock(core_->mutex);
  const auto enough = [&] { return core_->ended.ids.size() >= static_cast<size_t>(at_least); };
  core_->changed.wait_for(lock, Seconds(seconds), [&] { return enough() || core_->over; });
  return enough();
}

bool Stream::wait_end(double seconds) {
  Lock lock(core_->mutex);
  return core_->changed.wait_for(lock, Seconds(seconds), [&] { return core_->over; });
}

void Stream::cancel() { core_->call.cancel(); }
void Stream::resume() {
  const Lock lock(core_->mutex);
  core_->paused = false;
  core_->changed.notify_all();
}

const Ended& Stream::ended() {
  Lock lock(core_->mutex);
  core_->changed.wait(lock, [&] { return core_->over; });
  return core_->ended;
}

Ask ask_ids(std::vector<int32_t> ids, int32_t max_tokens) {
  Ask ask;
  ask.input = std::move(ids);
  ask.max_tokens = max_tokens;
  ask.temperature = 0.0F;
  ask.ignore_eos = true;
  return ask;
}

std::vector<int32_t> some_ids(int count, uint32_t seed, int32_t below) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(below)));
  return ids;
}

}  // namespace tandem::e2e
