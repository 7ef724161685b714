// Ranks that are processes of one MPI job. MPI is used non-blocking and tested: a blocking call burns a core and hears no abort. Sends
// leave from our own buffers, and a second thread moves what is still on its way while the owner does something else, because Open MPI
// moves a long message only inside its own calls. One mutex keeps the two apart, so MPI_THREAD_SERIALIZED is enough.
// Between processes of one host Open MPI's vader transport copies with CMA (process_vm_readv), which containers often forbid: the
// launcher then sets OMPI_MCA_btl_vader_single_copy_mechanism=none, else every start prints a warning.
#define OMPI_SKIP_MPICXX 1  // the C++ bindings would need a library of their own
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>

#include "kernels/base/error.h"
#include "kernels/base/threads.h"
#include "sharding/comm/collectives.h"
#include "sharding/comm/comms.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int kTag = 0;
constexpr microseconds kAlone{10}, kSpin{200}, kFirstNap{20}, kLongestNap{1000};
constexpr std::chrono::milliseconds kGoodbye{2000};  // how long a destructor waits for what is still on its way

std::mutex mpi_mutex;  // MPI is one per process, whatever number of communicators there is

void require(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail(Code::unavailable, what, std::string(text, length));
}

class Mpi final : public MessageCommunicator {
 public:
  Mpi() {
    const std::lock_guard lock(mpi_mutex);
    require(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
    require(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
    for (MPI_Comm& channel : channels_) {
      require(MPI_Comm_dup(MPI_COMM_WORLD, &channel), "MPI_Comm_dup");
      MPI_Comm_set_errhandler(channel, MPI_ERRORS_RETURN);
    }
    lanes_.resize(static_cast<size_t>(size_) * kChannels);
    for (size_t i = 0; i < lanes_.size(); ++i) lanes_[i].letters.resize(depth(static_cast<int>(i % kChannels)));
    held_.resize(size_);
    crowded_ = size_ > allowed_cores();
  }

  ~Mpi() override {
    const auto end = Clock::now() + kGoodbye;
    while (!aborted_ && on_their_way_ > 0 && Clock::now() < end) {
      progress();
      std::this_thread::sleep_for(kFirstNap);
    }
    {
      const std::lock_guard lock(pump_mutex_);
      leaving_ = true;
    }
    wake_pump_.notify_one();
    if (pump_.joinable()) pump_.join();
    if (on_their_way_ > 0) {
      static auto* const kept = new std::vector<std::vector<Lane>>;  // MPI may still read them: never freed
      const std::lock_guard lock(mpi_mutex);
      kept->push_back(std::move(lanes_));
      return;
    }
    if (aborted_) return;
    const std::lock_guard lock(mpi_mutex);
    for (MPI_Comm& channel : channels_) MPI_Comm_free(&channel);
  }

  std::string_view transport() const override { return "mpi"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void send(int to, int channel, const void* data, size_t bytes) override {
    check_channel(to, size_, channel);
    check_length(bytes);
    check_abort();
    Lane& lane = lanes_[static_cast<size_t>(to) * kChannels + channel];
    Letter& letter = lane.letters[lane.next];
    lane.next = (lane.next + 1) % lane.letters.size();
    wait([&] { return arrived_there(letter); });
    if (letter.capacity < bytes) {
      letter.data.reset(new std::byte[bytes]);
      letter.capacity = bytes;
    }
    if (bytes > 0) std::memcpy(letter.data.get(), data, bytes);
    {
      const std::lock_guard lock(mpi_mutex);
      require(MPI_Isend(letter.data.get(), static_cast<int>(bytes), MPI_BYTE, to, kTag, channels_[channel], &letter.request), "MPI_Isend");
      ++on_their_way_;
      if (arrived_there(letter)) return;
      travelling_.push_back(&letter);
    }
    start_pump();
  }

  void receive(int from, int channel, void* data, size_t bytes) override {
    check_channel(from, size_, channel);
    check_length(bytes);
    check_abort();
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Status status;
    int code = MPI_SUCCESS;
    {
      const std::lock_guard lock(mpi_mutex);
      require(MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from, kTag, channels_[channel], &request), "MPI_Irecv");
    }
    try {
      wait([&] {
        int done = 0;
        code = MPI_Test(&request, &done, &status);
        return done || code != MPI_SUCCESS;
      });
    } catch (...) {  // nobody may write into the caller's memory after this
      const std::lock_guard lock(mpi_mutex);
      if (request != MPI_REQUEST_NULL) {
        MPI_Cancel(&request);
        MPI_Wait(&request, MPI_STATUS_IGNORE);
      }
      throw;
    }
    int error_class = MPI_SUCCESS, length = 0;
    if (code != MPI_SUCCESS) MPI_Error_class(code, &error_class);
    if (error_class == MPI_SUCCESS) MPI_Get_count(&status, MPI_BYTE, &length);
    if (error_class == MPI_ERR_TRUNCATE || (error_class == MPI_SUCCESS && length != static_cast<int>(bytes))) {
      fail(Code::internal, "rank " + std::to_string(rank_),
           "a message of " + (error_class == MPI_SUCCESS ? std::to_string(length) : "more") + " bytes came from rank " +
               std::to_string(from) + " on channel " + std::to_string(channel) + " (" + std::to_string(bytes) + " were expected)");
    }
    require(code, "MPI_Test");
  }

  bool arrived(int from, int channel) override {
    check_channel(from, size_, channel);
    check_abort();
    int there = 0;
    const std::lock_guard lock(mpi_mutex);
    require(MPI_Iprobe(from, kTag, channels_[channel], &there, MPI_STATUS_IGNORE), "MPI_Iprobe");
    return there != 0;
  }

  void abort() noexcept override { aborted_ = true; }

 protected:
  const std::byte* hold(int from, size_t bytes) override {
    if (held_[from].size() < bytes) held_[from].resize(bytes);
    receive(from, kGroupChannel, held_[from].data(), bytes);
    return held_[from].data();
  }
  void release(int) override {}

 private:
  struct Letter {
    std::unique_ptr<std::byte[]> data;
    size_t capacity = 0;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  struct Lane {  // to one peer on one channel
    std::vector<Letter> letters;
    size_t next = 0;
  };

  void check_abort() const {
    if (aborted_) fail(Code::aborted, "rank " + std::to_string(rank_), "communication was aborted");
  }
  static void check_length(size_t bytes) {
    if (bytes > INT_MAX) fail(Code::internal, "mpi", "a message of " + std::to_string(bytes) + " bytes (at most 2 GiB)");
  }

  // Holding mpi_mutex. A failed send counts as arrived: the receiver's side reports the loss.
  bool arrived_there(Letter& letter) {
    if (letter.request == MPI_REQUEST_NULL) return true;
    int done = 0;
    const int code = MPI_Test(&letter.request, &done, MPI_STATUS_IGNORE);
    if (!done && code == MPI_SUCCESS) return false;
    letter.request = MPI_REQUEST_NULL;
    --on_their_way_;
    return true;
  }

  // Calls `done` under the mutex until it says yes. Every call of MPI moves whatever is on its way, in both directions.
  template <class Done>
  void wait(Done&& done) {
    const auto start = Clock::now();
    for (;;) {
      {
        const std::lock_guard lock(mpi_mutex);
        if (done()) return;
      }
      check_abort();
      const auto waited = Clock::now() - start;
      if (waited < kSpin) {
        // The rank that is waited for may need this very core.
        if (crowded_ || waited > kAlone) sched_yield();
        continue;
      }
      // A sixteenth of the wait so far: what is lost by oversleeping stays a small part of it.
      std::this_thread::sleep_for(std::clamp(std::chrono::duration_cast<microseconds>(waited / 16), kFirstNap, kLongestNap));
    }
  }

  void progress() {
    const std::lock_guard lock(mpi_mutex);
    std::erase_if(travelling_, [this](Letter* letter) { return arrived_there(*letter); });
  }

  void start_pump() {
    if (!pump_.joinable()) pump_ = std::thread([this] { pump(); });
    const std::lock_guard lock(pump_mutex_);
    wake_pump_.notify_one();
  }

  void pump() {
    std::unique_lock lock(pump_mutex_);
    auto nap = kFirstNap;
    while (!leaving_) {
      if (on_their_way_ == 0) {
        nap = kFirstNap;
        wake_pump_.wait(lock, [this] { return leaving_ || on_their_way_ > 0; });
        continue;
      }
      wake_pump_.wait_for(lock, nap);
      lock.unlock();
      const auto start = Clock::now();
      progress();
      // A test that took long moved bytes, so there are more to move.
      nap = Clock::now() - start > microseconds(4) ? microseconds(0) : std::min(std::max(nap * 5 / 4, kFirstNap), kLongestNap);
      lock.lock();
    }
  }

  int rank_ = 0, size_ = 1;
  bool crowded_ = false;
  MPI_Comm channels_[kChannels] = {};
  std::vector<Lane> lanes_;
  std::vector<std::vector<std::byte>> held_;
  std::vector<Letter*> travelling_;  // under mpi_mutex
  std::atomic<int> on_their_way_{0};
  std::atomic<bool> aborted_{false};

  std::mutex pump_mutex_;
  std::condition_variable wake_pump_;
  bool leaving_ = false;
  std::thread pump_;  // started by the first send that does not complete at once
};

}  // namespace

bool under_mpirun() {
  const char* size = std::getenv("OMPI_COMM_WORLD_SIZE");
  return size != nullptr && *size != '\0';
}

int rank_under_mpirun() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return under_mpirun() && rank != nullptr ? std::atoi(rank) : -1;
}

MpiWorld init_mpi() {
  int initialised = 0;
  MPI_Initialized(&initialised);
  if (!initialised) {
    int provided = 0;
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS || provided < MPI_THREAD_SERIALIZED) {
      fail(Code::failed_precondition, "MPI", "MPI_Init_thread does not give MPI_THREAD_SERIALIZED");
    }
  }
  const std::lock_guard lock(mpi_mutex);
  MpiWorld world;
  MPI_Comm local = MPI_COMM_NULL;
  require(MPI_Comm_rank(MPI_COMM_WORLD, &world.rank), "MPI_Comm_rank");
  require(MPI_Comm_size(MPI_COMM_WORLD, &world.size), "MPI_Comm_size");
  require(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local), "MPI_Comm_split_type");
  require(MPI_Comm_rank(local, &world.local_rank), "MPI_Comm_rank");
  require(MPI_Comm_size(local, &world.local_size), "MPI_Comm_size");
  MPI_Comm_free(&local);
  return world;
}

void finalize_mpi() {
  const std::lock_guard lock(mpi_mutex);
  int initialised = 0, finalised = 0;
  MPI_Initialized(&initialised);
  MPI_Finalized(&finalised);
  if (initialised && !finalised) MPI_Finalize();
}

// Without the mutex: another thread may hold it for good.
void abort_mpi(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

std::unique_ptr<Communicator> make_mpi() { return std::make_unique<Mpi>(); }

}  // namespace tandem
