#include "launch/this_job.h"

#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <numeric>
#include <thread>

#include "launch/addresses.h"
#include "launch/signals.h"
#include "launch/topology.h"
#include "launch/worker_process.h"

namespace tandem {
namespace {

struct Notice {  // rank 0 to all, once
  int32_t exit_code = -1;  // >= 0: end
  uint32_t epoch = 0;
  char control[512] = {}, secret[64] = {};
};

void tell(ThisJob& job, Notice& notice) {
  std::vector<int> all(static_cast<size_t>(job.world.size));
  std::iota(all.begin(), all.end(), 0);
  job.communicator->broadcast(all, 0, &notice, sizeof notice);
}

RemoteWorkerOptions dial(const Notice& notice, int rank) {
  RemoteWorkerOptions options;
  options.address = reachable_address(notice.control, options.connect_seconds);
  options.secret = notice.secret;
  options.epoch = notice.epoch;
  options.rank = rank;
  options.build = build_id();
  options.lease_seconds = 1.5 * kSlowFactor;
  return options;
}

class JobLauncher final : public Launcher {
 public:
  explicit JobLauncher(ThisJob job) : job_(std::move(job)) {}
  ~JobLauncher() override {
    if (thread_.joinable()) thread_.join();
  }
  void start(const EpochAddress& address, std::function<void(Error)> ended) override {
    Notice notice;
    notice.epoch = address.epoch;
    std::strncpy(notice.control, address.control.c_str(), sizeof notice.control - 1);
    std::strncpy(notice.secret, address.secret.c_str(), sizeof notice.secret - 1);
    tell(job_, notice);
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

ThisJob join_job() {
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

std::unique_ptr<Launcher> make_job_launcher(ThisJob job) { return std::make_unique<JobLauncher>(std::move(job)); }

int work_in_job(ThisJob job) {
  Notice notice;
  tell(job, notice);
  if (notice.exit_code >= 0) return notice.exit_code;
  const int rank = job.world.rank;
  run_worker(dial(notice, rank), [&job] { return std::move(job.communicator); }, [](const Error&) { _exit(1); });
  return 0;
}

void dismiss_job(ThisJob& job, int exit_code) {
  if (!job.communicator) return;
  Notice notice;
  notice.exit_code = exit_code;
  tell(job, notice);
}

}  // namespace tandem
