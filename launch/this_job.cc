#include "launch/this_job.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "launch/addresses.h"
#include "launch/signals.h"
#include "launch/topology.h"
#include "launch/worker_process.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kJoinSeconds = 30 * kSlowFactor;  // from the first rank in MPI_Init to the last
constexpr double kPulseSeconds = 0.2;
constexpr double kSilentSeconds = 1.5 * kSlowFactor;  // rank 0 without a word: as long as a lease
constexpr double kConnectSeconds = 2 * kSlowFactor;   // to rank 0, which has just said that it listens
constexpr double kStepSeconds = 0.3;                  // each rank waits so much longer than the one before: the lowest one tells

enum class Word : int32_t { alive, begin, end };
struct Notice {  // rank 0 to each of the others: `alive` any number of times, each time answered, then one of the others
  Word word = Word::alive;
  int32_t exit_code = 0;  // of end
  uint32_t epoch = 0;     // of begin, as all that follows
  char control[512] = {}, secret[64] = {};
};

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "error: %s\n", why.c_str());
  _exit(1);
}

// Ends the process if it lives too long.
class Patience {
 public:
  Patience(double seconds, std::string why)
      : thread_([this, seconds, why = std::move(why)] {
          std::unique_lock lock(mutex_);
          if (!over_.wait_for(lock, Seconds(seconds), [this] { return done_; })) give_up(why);
        }) {}
  ~Patience() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    over_.notify_all();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool done_ = false;
  std::thread thread_;
};

std::string milliseconds(double seconds) { return std::to_string(static_cast<int>(seconds * 1000)) + " ms"; }

// The first notice that is not `alive`.
Notice wait_for_word(const ThisJob& job) {
  Communicator& communicator = *job.communicator;
  const double patience = kSilentSeconds + job.world.rank * kStepSeconds;
  Clock::time_point heard = Clock::now(), last = heard;
  for (Notice notice;; std::this_thread::sleep_for(std::chrono::milliseconds(2))) {
    const Clock::time_point now = Clock::now();
    if (Seconds(now - last).count() > kSilentSeconds / 2) heard = now;  // it was we who slept
    last = now;
    if (communicator.arrived(0, kControlChannel)) {
      communicator.receive(0, kControlChannel, &notice, sizeof notice);
      if (notice.word != Word::alive) return notice;
      communicator.send(0, kControlChannel, nullptr, 0);
      heard = now;
    }
    const double silence = Seconds(now - heard).count();
    if (silence > patience) give_up("rank 0: was silent for " + milliseconds(silence) + " (stopped, or its host is gone)");
  }
}

RemoteWorkerOptions dial(const Notice& notice, int rank) {
  RemoteWorkerOptions options;
  options.connect_seconds = kConnectSeconds;
  options.address = reachable_address(notice.control, options.connect_seconds);
  options.secret = notice.secret;
  options.epoch = notice.epoch;
  options.rank = rank;
  options.build = build_id();
  options.lease_seconds = 1.5 * kSlowFactor;
  return options;
}

}  // namespace

// Says `alive` to the others until it is told the rest. Who has not answered is not told again: nothing piles up before one that is
// stopped. The last answers may stay unread: nobody else uses the channel.
class Pulse {
 public:
  explicit Pulse(Communicator& communicator)
      : communicator_(communicator), answered_(static_cast<size_t>(communicator.size()), true), thread_([this] { beat(); }) {}
  ~Pulse() { stop(); }

  void tell(const Notice& notice) {
    stop();
    for (int rank = 1; rank < communicator_.size(); ++rank) communicator_.send(rank, kControlChannel, &notice, sizeof notice);
  }

 private:
  void beat() {
    const Notice alive;
    std::unique_lock lock(mutex_);
    do {
      lock.unlock();
      for (int rank = 1; rank < communicator_.size(); ++rank) {
        const auto at = static_cast<size_t>(rank);
        if (!answered_[at] && communicator_.arrived(rank, kControlChannel)) {
          communicator_.receive(rank, kControlChannel, nullptr, 0);
          answered_[at] = true;
        }
        if (!answered_[at]) continue;
        communicator_.send(rank, kControlChannel, &alive, sizeof alive);
        answered_[at] = false;
      }
      lock.lock();
    } while (!stopped_.wait_for(lock, Seconds(kPulseSeconds), [this] { return stopping_; }));
  }
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    stopped_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  Communicator& communicator_;
  std::vector<bool> answered_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stopping_ = false;
  std::thread thread_;
};

namespace {

ThisJob init() {
  ThisJob job;
  job.world = init_mpi();
  sleep_precisely();
  job.cores = share_cores(job.world.local_rank, job.world.local_size);
  job.communicator = make_mpi();
  if (job.world.rank > 0) {
    set_error_reporting(false);
    die_with_parent();
  }
  return job;
}

class JobLauncher final : public Launcher {
 public:
  explicit JobLauncher(ThisJob job) : job_(std::move(job)) {}
  ~JobLauncher() override {
    if (thread_.joinable()) thread_.join();
  }
  void start(const EpochAddress& address, std::function<void(Error)> ended) override {
    Notice notice;
    notice.word = Word::begin;
    notice.epoch = address.epoch;
    std::strncpy(notice.control, address.control.c_str(), sizeof notice.control - 1);
    std::strncpy(notice.secret, address.secret.c_str(), sizeof notice.secret - 1);
    job_.pulse->tell(notice);
    thread_ = std::thread([this, notice, ended = std::move(ended)] {
      try {
        run_worker(dial(notice, job_.world.rank), [this] { return std::move(job_.communicator); }, [](const Error&) {});
      } catch (const Error& error) {
        ended(error);
      }
    });
  }
  void wait(double) override {
    if (thread_.joinable()) thread_.join();
  }
  void kill() override {}  // the job ends as a whole
  bool can_restart() const override { return false; }

 private:
  ThisJob job_;
  std::thread thread_;
};

}  // namespace

ThisJob join_ranks() {
  const std::string limit = std::to_string(static_cast<int>(kJoinSeconds)) + " s";
  const Patience patience(kJoinSeconds + std::max(0, rank_under_mpirun()) * kStepSeconds,
                          "mpirun: a rank did not come within " + limit + " (stopped, or its host is slow)");
  return init();
}

ThisJob join_job() {
  ThisJob job = join_ranks();
  if (job.world.rank == 0) job.pulse = std::make_shared<Pulse>(*job.communicator);
  return job;
}

std::unique_ptr<Communicator> join_workers() { return init().communicator; }

std::unique_ptr<Launcher> make_job_launcher(ThisJob job) { return std::make_unique<JobLauncher>(std::move(job)); }

int work_in_job(ThisJob job) {
  const Notice notice = wait_for_word(job);
  if (notice.word == Word::end) return notice.exit_code;
  const int rank = job.world.rank;
  run_worker(dial(notice, rank), [&job] { return std::move(job.communicator); }, [](const Error&) { _exit(1); });
  return 0;
}

void dismiss_job(ThisJob& job, int exit_code) {
  if (!job.communicator) return;
  Notice notice;
  notice.word = Word::end;
  notice.exit_code = exit_code;
  job.pulse->tell(notice);
  job.pulse.reset();
}

}  // namespace tandem
