// Programs that run beside a test: started, listened to, signalled, and gone with the test. Linux. A Process belongs to one thread.
#pragma once
#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/support/run_binary.h"

namespace tandem {

// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count(); }

 private:
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

class Process {
 public:
  // argv[0] is looked for in PATH. `environment`: NAME=VALUE replaces or adds. stdin is /dev/null; a process group of its own.
  explicit Process(std::vector<std::string> argv, const std::vector<std::string>& environment = {});
  ~Process();  // SIGKILL to the group
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const;
  // The exit code, 128 + the signal for a process that was killed; empty when it still runs after so many seconds.
  std::optional<int> wait(double seconds);
  // What follows `prefix` on the first whole line of stderr that begins with it; empty when none has come in time or can come any more.
  std::optional<std::string> line(std::string_view prefix, double seconds);
  std::string out() const { return read_whole(folder_ / "out"); }
  std::string err() const { return read_whole(folder_ / "err"); }

 private:
  TemporaryFolder folder_;
  pid_t pid_ = -1;
  std::optional<int> code_;
};

// To one process and no other: kill() of an id that somebody failed to find would reach everyone. False: there is no such process.
bool send_signal(pid_t pid, int number);

// A process that this one did not start, named once and for all: a later process with the same id is another.
class ProcessHandle {
 public:
  explicit ProcessHandle(pid_t pid);  // of a process that is gone: gone()
  ~ProcessHandle();
  ProcessHandle(ProcessHandle&& other) noexcept : pid_(other.pid_), fd_(std::exchange(other.fd_, -1)) {}
  ProcessHandle(const ProcessHandle&) = delete;

  pid_t pid() const { return pid_; }
  bool signal(int number) const;  // false: it is gone
  bool wait_gone(double seconds) const;
  bool gone() const { return wait_gone(0); }

 private:
  pid_t pid_;
  int fd_;
};

// From now on what is left of a process tree whose root died becomes a child of this process: it can be found.
void adopt_orphans();
// Processes below `root` that are not zombies, root excluded.
std::vector<pid_t> descendants(pid_t root);
std::string command_of(pid_t pid);  // its command line, words separated by blanks
// Waits until nothing lives below `root`; else what lives.
std::vector<pid_t> wait_childless(pid_t root, double seconds);

double cpu_seconds(pid_t pid);  // user and system time of all its threads
uint64_t resident_bytes(pid_t pid);

// Makes another process call exit_group(0) wherever it is: an orderly-looking end that the program did not intend. False when this
// machine does not allow it, or is no x86-64.
bool make_it_exit(pid_t pid);

}  // namespace tandem
