#ifdef TANDEM_CUDA
#include "sharding/comm/nccl.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/base/cuda/abort_word.h"
#include "kernels/base/error.h"
#include "sharding/comm/collectives.h"
#include "sharding/comm/comms.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr microseconds kSpin{200}, kFirstNap{20}, kLongestNap{500};
constexpr int kMostChannels = 4;  // of NCCL's own, each with its buffers on the GPU; hidden rows need few, long sums go past NCCL
constexpr milliseconds kGoodbye{3000};  // how long a destructor waits for NCCL; then it is left to itself

// NCCL's functions, looked up in the library: nothing of it is needed to start the program.
struct Library {
  decltype(&ncclGetErrorString) text = nullptr;
  decltype(&ncclGetUniqueId) unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) init = nullptr;
  decltype(&ncclCommGetAsyncError) state = nullptr;
  decltype(&ncclCommFinalize) finalize = nullptr;
  decltype(&ncclCommDestroy) destroy = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;

  Library() {
    // Read by NCCL when it initialises. Multicast over NVLink needs a fabric manager, and failing there can take the GPUs with it.
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    void* handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) fail(Code::failed_precondition, "nccl", std::string(dlerror()) + " (install NCCL 2, or set LD_LIBRARY_PATH)");
    find(handle, "ncclGetErrorString", text);
    find(handle, "ncclGetUniqueId", unique_id);
    find(handle, "ncclCommInitRankConfig", init);
    find(handle, "ncclCommGetAsyncError", state);
    find(handle, "ncclCommFinalize", finalize);
    find(handle, "ncclCommDestroy", destroy);
    find(handle, "ncclCommAbort", abort);
    find(handle, "ncclSend", send);
    find(handle, "ncclRecv", receive);
    find(handle, "ncclAllReduce", all_reduce);
    find(handle, "ncclAllGather", all_gather);
    find(handle, "ncclBroadcast", broadcast);
    find(handle, "ncclGroupStart", group_start);
    find(handle, "ncclGroupEnd", group_end);
  }

  template <class Function>
  static void find(void* handle, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (function == nullptr) fail(Code::failed_precondition, "nccl", std::string("libnccl.so.2 has no ") + name + " (2.18 or later is needed)");
  }
};

const Library& library() {
  static const Library opened;
  return opened;
}

// What a rank says of itself before anything is begun, so that all refuse for the same reason.
struct Card {
  char refusal[200] = "";
  char host[64] = "";
  cudaUUID_t gpu{};
};

Card present(int device) {
  Card card;
  const auto refuse = [&](const std::string& why) { std::strncpy(card.refusal, why.c_str(), sizeof card.refusal - 1); };
  gethostname(card.host, sizeof card.host - 1);
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    refuse(cudaGetErrorString(error));
  } else if (device < 0 || device >= count) {
    refuse("no GPU " + std::to_string(device) + " (there are " + std::to_string(count) + ")");
  } else {
    cudaDeviceProp properties{};
    if (const cudaError_t failed = cudaGetDeviceProperties(&properties, device); failed != cudaSuccess) refuse(cudaGetErrorString(failed));
    card.gpu = properties.uuid;
    try {
      library();
    } catch (const Error& missing) {
      refuse(missing.message);
    }
  }
  return card;
}

// Work that may never return, each piece on a thread of its own: waited for at most so long, then left to itself.
class Farewell {
 public:
  template <class Work>
  void start(Work work) {
    {
      const std::lock_guard lock(state_->mutex);
      ++state_->open;
    }
    std::thread([state = state_, work = std::move(work)] {
      work();
      const std::lock_guard lock(state->mutex);
      --state->open;
      state->closed.notify_all();
    }).detach();
  }
  bool wait(milliseconds patience) {
    std::unique_lock lock(state_->mutex);
    return state_->closed.wait_for(lock, patience, [this] { return state_->open == 0; });
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable closed;
    int open = 0;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

class Nccl final : public DeviceCommunicator {
 public:
  Nccl(std::unique_ptr<Communicator> host, int device, cudaStream_t stream, milliseconds deadline)
      : host_(make_guarded(std::move(host), deadline)), device_(device), stream_(stream), deadline_(deadline), everyone_(host_->size()) {
    std::iota(everyone_.begin(), everyone_.end(), 0);
    meet();
    abort_word_ = std::make_shared<cuda::AbortWord>();
    world_ = group(everyone_);
  }

  ~Nccl() override {
    if (!aborted_) {
      const std::lock_guard lock(mutex_);
      for (auto& [members, communicator] : groups_) farewell_.start([device = device_, c = communicator] { part(device, c); });
      groups_.clear();
    }
    if (farewell_.wait(kGoodbye)) return;
    abort_word_->raise();
    host_->abort();
  }

  std::string_view transport() const override { return "nccl"; }
  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  void send(int to, int channel, const void* data, size_t bytes) override {
    if (channel != kHiddenChannel || !on_device(data)) return host_->send(to, channel, data, bytes);
    check_channel(to, size(), channel);
    issue(world_, "send", [&] { return library().send(data, bytes, ncclInt8, to, world_, stream_); });
  }
  void receive(int from, int channel, void* data, size_t bytes) override {
    if (channel != kHiddenChannel || !on_device(data)) return host_->receive(from, channel, data, bytes);
    check_channel(from, size(), channel);
    issue(world_, "receive", [&] { return library().receive(data, bytes, ncclInt8, from, world_, stream_); });
  }
  bool arrived(int from, int channel) override { return host_->arrived(from, channel); }

  void all_reduce(std::span<const int> members, float* values, size_t count) override {
    if (!on_device(values)) return host_->all_reduce(members, values, count);
    if (members.size() == 1 || count == 0) return;
    const ncclComm_t communicator = group(members);
    issue(communicator, "all_reduce",
          [&] { return library().all_reduce(values, values, count, ncclFloat, ncclSum, communicator, stream_); });
  }
  void all_gather(std::span<const int> members, const float* mine, std::span<const size_t> counts, float* all) override {
    if (!on_device(all)) return host_->all_gather(members, mine, counts, all);
    if (counts.size() != members.size()) fail(Code::internal, "all_gather", "one count a member is needed");
    const ncclComm_t communicator = group(members);
    if (std::all_of(counts.begin(), counts.end(), [&](size_t count) { return count == counts[0]; })) {
      if (counts[0] == 0) return;
      return issue(communicator, "all_gather", [&] { return library().all_gather(mine, all, counts[0], ncclFloat, communicator, stream_); });
    }
    issue(communicator, "all_gather", [&] {
      library().group_start();
      ncclResult_t result = ncclSuccess;
      for (size_t i = 0; i < counts.size(); all += counts[i], ++i) {
        if (counts[i] == 0) continue;
        const ncclResult_t one = library().broadcast(mine, all, counts[i], ncclFloat, static_cast<int>(i), communicator, stream_);
        if (one != ncclSuccess && one != ncclInProgress) result = one;
      }
      const ncclResult_t end = library().group_end();
      return result != ncclSuccess ? result : end;
    });
  }
  void broadcast(std::span<const int> members, int root, void* data, size_t bytes) override {
    if (!on_device(data)) return host_->broadcast(members, root, data, bytes);
    const auto at = std::find(members.begin(), members.end(), root);
    if (at == members.end()) fail(Code::internal, "broadcast", "the root is not a member");
    if (bytes == 0) return;
    const ncclComm_t communicator = group(members);
    const int index = static_cast<int>(at - members.begin());
    issue(communicator, "broadcast", [&] { return library().broadcast(data, data, bytes, ncclInt8, index, communicator, stream_); });
  }
  void barrier(std::span<const int> members) override { host_->barrier(members); }

  void prepare(std::span<const int> members) override { group(members); }
  void wait_stream() override {
    wait("the stream", [this] { return cudaStreamQuery(stream_); });
  }
  void wait_event(void* event) override {
    wait("an event", [event] { return cudaEventQuery(static_cast<cudaEvent_t>(event)); });
  }

  void check() override {
    {
      const std::lock_guard lock(mutex_);
      check_abort();
      for (const auto& [members, communicator] : groups_) {
        ncclResult_t state = ncclSuccess;
        const ncclResult_t asked = library().state(communicator, &state);
        if (asked != ncclSuccess) state = asked;
        if (state != ncclSuccess && state != ncclInProgress) lost_ = state;
      }
    }
    if (lost_ != ncclSuccess) broken("NCCL", lost_);
    // Nothing of the host's travels on this channel unless it was asked for: this only asks whether the peer and the job are still there.
    if (size() == 1) return;
    if (++asked_ >= size()) asked_ = 0;
    if (asked_ == rank()) return;
    try {
      host_->arrived(asked_, kHiddenChannel);
    } catch (...) {
      abort();
      throw;
    }
  }

  std::shared_ptr<cuda::AbortWord> abort_word() override { return abort_word_; }

  void abort() noexcept override {
    if (aborted_.exchange(true)) return;
    if (abort_word_) abort_word_->raise();
    host_->abort();
    try {
      // Every one on its own thread: one communicator's end may wait for a kernel of another's. The owner holds the mutex for calls that
      // do not block only, and uses none of them once it has seen aborted_.
      const std::lock_guard lock(mutex_);
      for (auto& [members, communicator] : groups_) {
        farewell_.start([device = device_, c = communicator] {
          cudaSetDevice(device);
          library().abort(c);
        });
      }
      groups_.clear();
    } catch (...) {
      return;  // no thread to be had: the process is about to end anyway
    }
  }

 private:
  void meet() {
    const Card mine = present(device_);
    std::vector<std::string> cards = exchange(*host_, everyone_, {reinterpret_cast<const char*>(&mine), sizeof mine});
    std::vector<Card> all(cards.size());
    for (size_t rank = 0; rank < cards.size(); ++rank) {
      std::memcpy(&all[rank], cards[rank].data(), sizeof(Card));
      if (all[rank].refusal[0] != '\0') {
        fail(Code::failed_precondition, "nccl", "rank " + std::to_string(rank) + " on " + all[rank].host + ": " + all[rank].refusal);
      }
      for (size_t other = 0; other < rank; ++other) {
        if (std::memcmp(&all[rank].gpu, &all[other].gpu, sizeof(cudaUUID_t)) != 0) continue;
        fail(Code::failed_precondition, "nccl",
             "ranks " + std::to_string(other) + " and " + std::to_string(rank) + " are on the same GPU of " + all[rank].host +
                 " (each needs one of its own)");
      }
    }
    cuda::check(cudaSetDevice(device_), "nccl");
  }

  // NCCL's communicator of these members, made on first use.
  ncclComm_t group(std::span<const int> members) {
    const std::vector<int> key(members.begin(), members.end());
    {
      const std::lock_guard lock(mutex_);
      check_abort();
      if (const auto found = groups_.find(key); found != groups_.end()) return found->second;
    }
    const auto me = std::find(key.begin(), key.end(), rank());
    if (me == key.end()) fail(Code::internal, "nccl", "rank " + std::to_string(rank()) + " is not a member of the group");
    ncclUniqueId id{};
    if (rank() == key[0]) require(library().unique_id(&id), "ncclGetUniqueId");
    host_->broadcast(members, key[0], &id, sizeof id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.minCTAs = 1;
    config.maxCTAs = kMostChannels;
    ncclComm_t communicator = nullptr;
    ncclResult_t result;
    {
      const std::lock_guard lock(mutex_);
      check_abort();
      result = library().init(&communicator, static_cast<int>(key.size()), id, static_cast<int>(me - key.begin()), &config);
      if (result == ncclSuccess || result == ncclInProgress) groups_.emplace(key, communicator);
    }
    settle(communicator, result, "ncclCommInitRankConfig");
    return communicator;
  }

  template <class Call>
  void issue(ncclComm_t communicator, const char* what, Call&& call) {
    ncclResult_t result;
    {
      const std::lock_guard lock(mutex_);
      check_abort();
      result = call();
    }
    settle(communicator, result, what);
  }

  // NCCL does what may block (meeting the peers for the first time) on a thread of its own meanwhile.
  void settle(ncclComm_t communicator, ncclResult_t result, const char* what) {
    const auto start = Clock::now();
    auto look = start + kSpin;
    while (result == ncclInProgress) {
      const auto now = Clock::now();
      if (now - start > deadline_) late(what);
      if (now - start < kSpin) {
        sched_yield();
      } else {
        std::this_thread::sleep_for(std::clamp(std::chrono::duration_cast<microseconds>((now - start) / 16), kFirstNap, kLongestNap));
      }
      if (now >= look) {
        check();
        look = now + kLongestNap;
      }
      const std::lock_guard lock(mutex_);
      check_abort();
      const ncclResult_t asked = library().state(communicator, &result);
      if (asked != ncclSuccess) result = asked;
    }
    if (result != ncclSuccess) broken(what, result);
  }

  template <class Query>
  void wait(const char* what, Query&& query) {
    const auto start = Clock::now();
    auto look = start + kSpin;
    for (;;) {
      const cudaError_t state = query();
      if (state == cudaSuccess) break;
      if (state != cudaErrorNotReady) {
        abort();
        cuda::check(state, what);
      }
      const auto now = Clock::now();
      if (now - start > deadline_) late(what);
      if (now >= look) {
        check();
        look = now + kLongestNap;
      }
      if (now - start >= kSpin) {
        std::this_thread::sleep_for(std::clamp(std::chrono::duration_cast<microseconds>((now - start) / 16), kFirstNap, kLongestNap));
      }
    }
    // Kernels that an abort ended look like kernels that are done.
    if (aborted_) fail(Code::aborted, where(), "communication was aborted");
  }

  static bool on_device(const void* data) {
    if (data == nullptr) return false;
    cudaPointerAttributes attributes{};
    if (cudaPointerGetAttributes(&attributes, data) != cudaSuccess) {
      cudaGetLastError();
      return false;
    }
    return attributes.type == cudaMemoryTypeDevice;
  }

  // Ends a communicator in good order; it is quiet only when its peers' are.
  static void part(int device, ncclComm_t communicator) {
    cudaSetDevice(device);
    ncclResult_t state = library().finalize(communicator);
    const auto end = Clock::now() + kGoodbye / 2;
    while (state == ncclInProgress && Clock::now() < end) {
      std::this_thread::sleep_for(kFirstNap);
      if (library().state(communicator, &state) != ncclSuccess) break;
    }
    if (state == ncclSuccess) {
      library().destroy(communicator);
    } else {
      library().abort(communicator);
    }
  }

  std::string where() const { return "rank " + std::to_string(rank()); }
  void check_abort() const {
    if (aborted_) fail(Code::aborted, where(), "communication was aborted");
  }
  void require(ncclResult_t result, const char* what) const {
    if (result != ncclSuccess) fail(Code::unavailable, where(), std::string(what) + ": " + library().text(result));
  }
  [[noreturn]] void broken(const char* what, ncclResult_t result) {
    check_abort();
    abort();
    fail(Code::unavailable, where(), std::string(what) + ": " + library().text(result));
  }
  [[noreturn]] void late(const char* what) {
    abort();
    fail(Code::deadline_exceeded, where(), std::string(what) + " had to end within " + std::to_string(deadline_.count()) + " ms");
  }

  std::unique_ptr<Communicator> host_;
  int device_;
  cudaStream_t stream_;
  milliseconds deadline_;
  std::vector<int> everyone_;
  std::shared_ptr<cuda::AbortWord> abort_word_;
  std::mutex mutex_;  // guards NCCL's handles: a call on them, or abort() taking them away
  std::map<std::vector<int>, ncclComm_t> groups_;
  std::atomic<bool> aborted_{false};
  Farewell farewell_;
  // The owner's own:
  ncclComm_t world_ = nullptr;
  ncclResult_t lost_ = ncclSuccess;
  int asked_ = 0;  // the peer that check() asked for last
};

}  // namespace

std::unique_ptr<DeviceCommunicator> make_nccl(std::unique_ptr<Communicator> host, int device, void* stream, std::chrono::milliseconds deadline) {
  return std::make_unique<Nccl>(std::move(host), device, static_cast<cudaStream_t>(stream), deadline);
}

}  // namespace tandem
#endif
