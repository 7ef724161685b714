#include "launch/mpirun.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include "kernels/base/error.h"
#include "launch/topology.h"

extern char** environ;

namespace tandem {
namespace {

// mpirun refuses to start below another one, and its variables would mislead the new job.
std::vector<std::string> clean_environment(const EpochAddress& address) {
  std::vector<std::string> kept;
  for (char** entry = environ; *entry; ++entry) {
    const std::string_view text = *entry;
    bool drop = text.starts_with("TANDEM_SECRET=");
    for (std::string_view prefix : {"OMPI_", "PMIX_", "ORTE_", "PRTE_"}) drop = drop || (text.starts_with(prefix) && !text.starts_with("OMPI_MCA_") && !text.starts_with("OMPI_ALLOW"));
    if (!drop) kept.emplace_back(text);
  }
  kept.push_back("TANDEM_SECRET=" + address.secret);  // not on the command line, where every user can read it
  return kept;
}

std::vector<std::string> command_line(const MpirunOptions& options, const EpochAddress& address) {
  std::vector<std::string> line = {"mpirun", "--bind-to", "none", "--oversubscribe", "--mca", "odls_base_sigkill_timeout", "0",
                                   "--mca", "btl_vader_single_copy_mechanism", "none", "-x", "TANDEM_SECRET", "-n", std::to_string(address.ranks)};
  if (geteuid() == 0) line.push_back("--allow-run-as-root");
  if (!options.hosts.empty()) {
    line.push_back("--host");
    line.push_back(options.hosts);
  }
  line.push_back(executable_path());
  if (!options.log_level.empty()) {
    line.push_back("--log-level");
    line.push_back(options.log_level);
  }
  for (const std::string& word : {std::string("worker"), std::string("--control"), address.control, std::string("--epoch"), std::to_string(address.epoch)}) {
    line.push_back(word);
  }
  return line;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  for (std::string& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

void add_descendants(pid_t root, std::vector<pid_t>& found) {
  const std::filesystem::path tasks = "/proc/" + std::to_string(root) + "/task";
  std::error_code gone;
  for (const auto& task : std::filesystem::directory_iterator(tasks, gone)) {
    std::ifstream children(task.path() / "children");
    for (pid_t child = 0; children >> child;) {
      found.push_back(child);
      add_descendants(child, found);
    }
  }
}

// Ranks have process groups of their own. One that has started and does not ask for its parent's death signal yet would live on without
// mpirun, so all are killed by name, while mpirun is held so that it starts no more.
void kill_tree(pid_t root) {
  ::kill(root, SIGSTOP);
  std::vector<pid_t> below;
  add_descendants(root, below);
  for (const pid_t pid : below) ::kill(pid, SIGKILL);
  ::kill(-root, SIGKILL);
}

class MpirunLauncher final : public Launcher {
 public:
  explicit MpirunLauncher(MpirunOptions options) : options_(std::move(options)), thread_([this] { live(); }) {}
  ~MpirunLauncher() override {
    kill();
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void start(const EpochAddress& address, std::function<void(Error)> ended) override {
    std::lock_guard lock(mutex_);
    address_ = address;
    ended_ = std::move(ended);
    wanted_ = true;
    changed_.notify_all();
  }

  void wait(double seconds) override {
    std::unique_lock lock(mutex_);
    ended_ = nullptr;
    changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return child_ == 0 && !wanted_; });
  }

  void kill() override {
    std::unique_lock lock(mutex_);
    ended_ = nullptr;
    wanted_ = false;
    if (child_ > 0) kill_tree(child_);
    changed_.wait(lock, [this] { return child_ == 0; });
  }
  bool can_restart() const override { return true; }

 private:
  // The death signal of a child follows the thread that forked it, so one thread does that for as long as the coordinator lives.
  void live() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return wanted_ || closing_; });
      if (closing_) return;
      wanted_ = false;
      int failed_errno = 0;
      child_ = spawn(address_, &failed_errno);
      if (child_ <= 0) {
        child_ = 0;
        report(lock, Error(Code::unavailable, "mpirun", std::string("cannot be started: ") + std::strerror(failed_errno) + " (install openmpi-bin)"));
        continue;
      }
      const pid_t child = child_;
      lock.unlock();
      int status = 0;
      while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
      }
      ::kill(-child, SIGKILL);  // what it left behind in its process group
      lock.lock();
      child_ = 0;
      changed_.notify_all();
      const std::string how = WIFSIGNALED(status) ? "was killed by signal " + std::to_string(WTERMSIG(status))
                                                  : "ended with exit code " + std::to_string(WEXITSTATUS(status));
      report(lock, Error(Code::unavailable, "mpirun", how));
    }
  }

  void report(std::unique_lock<std::mutex>& lock, Error error) {
    auto ended = std::move(ended_);
    ended_ = nullptr;
    changed_.notify_all();
    if (!ended) return;
    lock.unlock();
    ended(std::move(error));
    lock.lock();
  }

  pid_t spawn(const EpochAddress& address, int* failed_errno) {
    std::vector<std::string> line = command_line(options_, address), environment = clean_environment(address);
    std::vector<char*> argv = pointers(line), envp = pointers(environment);
    int pipe_ends[2];
    if (pipe2(pipe_ends, O_CLOEXEC) != 0) {
      *failed_errno = errno;
      return -1;
    }
    const pid_t parent = getpid();
    const pid_t child = fork();
    if (child == 0) {
      setpgid(0, 0);
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, nullptr);
      const int null = open("/dev/null", O_RDWR);
      dup2(null, 0);
      dup2(options_.show_output ? 2 : null, 1);
      if (!options_.show_output) dup2(null, 2);
      for (int fd = 3; fd < 1024; ++fd) {
        if (fd != pipe_ends[1]) close(fd);
      }
      execvpe("mpirun", argv.data(), envp.data());
      const int error = errno;
      (void)!write(pipe_ends[1], &error, sizeof error);
      _exit(127);
    }
    if (child < 0) *failed_errno = errno;
    close(pipe_ends[1]);
    int error = 0;
    if (child > 0 && read(pipe_ends[0], &error, sizeof error) == static_cast<ssize_t>(sizeof error)) {
      waitpid(child, nullptr, 0);
      *failed_errno = error;
      close(pipe_ends[0]);
      return -1;
    }
    close(pipe_ends[0]);
    return child;
  }

  MpirunOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  EpochAddress address_;
  std::function<void(Error)> ended_;
  bool wanted_ = false, closing_ = false;
  pid_t child_ = 0;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Launcher> make_mpirun_launcher(MpirunOptions options) {
  std::istringstream folders(std::getenv("PATH") != nullptr ? std::getenv("PATH") : "");
  bool found = false;
  for (std::string folder; std::getline(folders, folder, ':');) found = found || access((folder + "/mpirun").c_str(), X_OK) == 0;
  if (!found) fail(Code::failed_precondition, "mpirun", "is not in PATH (install openmpi-bin; without it: --ranks 1)");
  return std::make_unique<MpirunLauncher>(std::move(options));
}

}  // namespace tandem
