#include "tests/support/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <map>
#include <stdexcept>
#include <thread>

namespace tandem {
namespace {

int pidfd(pid_t pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

// Whether `fd` becomes readable in time.
bool readable(int fd, double seconds) {
  pollfd wanted{fd, POLLIN, 0};
  return poll(&wanted, 1, static_cast<int>(std::max(0.0, seconds) * 1000)) == 1;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  for (std::string& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

std::vector<std::string> environment_with(const std::vector<std::string>& changes) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry, name = text.substr(0, text.find('=') + 1);
    const auto replaced = [&](const std::string& change) { return change.starts_with(name); };
    if (std::none_of(changes.begin(), changes.end(), replaced)) result.emplace_back(text);
  }
  result.insert(result.end(), changes.begin(), changes.end());
  return result;
}

struct Stat {  // of /proc/PID/stat
  char state = 'X';
  pid_t parent = 0;
  unsigned long long user = 0, system = 0;
};
std::optional<Stat> stat_of(const std::string& pid) {
  const std::string text = read_whole("/proc/" + pid + "/stat");
  const size_t end = text.rfind(')');  // the name before it may hold anything
  if (end == std::string::npos) return std::nullopt;
  Stat stat;
  if (std::sscanf(text.c_str() + end + 1, " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &stat.state, &stat.parent, &stat.user,
                  &stat.system) != 4)
    return std::nullopt;
  return stat;
}

}  // namespace

Process::Process(std::vector<std::string> argv, const std::vector<std::string>& environment) {
  std::vector<std::string> all = environment_with(environment);
  const std::vector<char*> words = pointers(argv), names = pointers(all);
  const std::string out = folder_ / "out", err = folder_ / "err";
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    dup2(open("/dev/null", O_RDONLY), 0);
    dup2(open(out.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600), 1);
    dup2(open(err.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600), 2);
    syscall(SYS_close_range, 3U, ~0U, 0U);
    execvpe(words[0], words.data(), names.data());
    dprintf(2, "%s: %s\n", words[0], std::strerror(errno));
    _exit(127);
  }
  if (pid_ < 0) throw std::runtime_error("cannot fork");
  setpgid(pid_, pid_);
}

Process::~Process() {
  if (!code_) {
    kill(-pid_, SIGKILL);
    wait(30);
  }
}

void Process::signal(int number) const {
  if (!code_) kill(pid_, number);
}

std::optional<int> Process::wait(double seconds) {
  if (code_) return code_;
  const int fd = pidfd(pid_);
  const bool ended = readable(fd, seconds);
  close(fd);
  int status = 0;
  if (!ended || waitpid(pid_, &status, 0) != pid_) return std::nullopt;
  code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  kill(-pid_, SIGKILL);  // what it left in its group
  return code_;
}

std::optional<std::string> Process::line(std::string_view prefix, double seconds) {
  const Stopwatch clock;
  const int changes = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  inotify_add_watch(changes, folder_.path().c_str(), IN_MODIFY | IN_CREATE);
  std::optional<std::string> found;
  for (bool last = false;;) {
    const std::string said = err();
    for (size_t begin = 0, end; !found && (end = said.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const std::string_view row = std::string_view(said).substr(begin, end - begin);
      if (row.starts_with(prefix)) found = row.substr(prefix.size());
    }
    if (found || last) break;
    // The end of the process is an event too, and so is the deadline; after either we look once more.
    const int fd = code_ ? -1 : pidfd(pid_);
    pollfd wanted[] = {{changes, POLLIN, 0}, {fd, POLLIN, 0}};
    const double left = seconds - clock.seconds();
    last = code_ || left <= 0 || poll(wanted, 2, static_cast<int>(left * 1000) + 1) == 0 || (wanted[1].revents & POLLIN) != 0;
    if (fd >= 0) close(fd);
    char ignored[4096];
    while (read(changes, ignored, sizeof ignored) > 0) {
    }
  }
  close(changes);
  return found;
}

bool send_signal(pid_t pid, int number) { return pid > 1 && kill(pid, number) == 0; }

ProcessHandle::ProcessHandle(pid_t pid) : pid_(pid), fd_(pidfd(pid)) {}
ProcessHandle::~ProcessHandle() {
  if (fd_ >= 0) close(fd_);
}
bool ProcessHandle::signal(int number) const { return fd_ >= 0 && syscall(SYS_pidfd_send_signal, fd_, number, nullptr, 0) == 0; }
bool ProcessHandle::wait_gone(double seconds) const { return fd_ < 0 || readable(fd_, seconds); }

void adopt_orphans() { prctl(PR_SET_CHILD_SUBREAPER, 1); }

std::vector<pid_t> descendants(pid_t root) {
  std::multimap<pid_t, pid_t> children;
  if (DIR* folder = opendir("/proc")) {
    while (const dirent* entry = readdir(folder)) {
      if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
      const auto stat = stat_of(entry->d_name);
      if (stat && stat->state != 'Z' && stat->state != 'X') children.emplace(stat->parent, std::atoi(entry->d_name));
    }
    closedir(folder);
  }
  std::vector<pid_t> found{root};
  for (size_t i = 0; i < found.size(); ++i) {
    const auto [first, last] = children.equal_range(found[i]);
    for (auto child = first; child != last; ++child) found.push_back(child->second);
  }
  found.erase(found.begin());
  return found;
}

std::string command_of(pid_t pid) {
  std::string words = read_whole("/proc/" + std::to_string(pid) + "/cmdline");
  std::replace(words.begin(), words.end(), '\0', ' ');
  return words;
}

std::vector<pid_t> wait_childless(pid_t root, double seconds) {
  const Stopwatch clock;
  for (;;) {
    std::vector<pid_t> alive = descendants(root);
    if (alive.empty() || clock.seconds() >= seconds) return alive;
    ProcessHandle(alive.front()).wait_gone(seconds - clock.seconds());
  }
}

double cpu_seconds(pid_t pid) {
  const auto stat = stat_of(std::to_string(pid));
  return stat ? static_cast<double>(stat->user + stat->system) / static_cast<double>(sysconf(_SC_CLK_TCK)) : 0;
}

uint64_t resident_bytes(pid_t pid) {
  unsigned long long pages = 0;
  std::sscanf(read_whole("/proc/" + std::to_string(pid) + "/statm").c_str(), "%*u %llu", &pages);
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

bool make_it_exit(pid_t pid) {
#ifdef __x86_64__
  if (ptrace(PTRACE_ATTACH, pid, nullptr, nullptr) != 0) return false;
  int status = 0;
  if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status)) return false;
  user_regs_struct registers{};
  ptrace(PTRACE_GETREGS, pid, nullptr, &registers);
  constexpr long kSyscall = 0x050f;  // the instruction
  ptrace(PTRACE_POKETEXT, pid, registers.rip, kSyscall);
  registers.orig_rax = static_cast<unsigned long long>(-1);  // no system call to restart
  registers.rax = SYS_exit_group;
  registers.rdi = 0;
  ptrace(PTRACE_SETREGS, pid, nullptr, &registers);
  const bool let_go = ptrace(PTRACE_DETACH, pid, nullptr, nullptr) == 0;
  return let_go;
#else
  (void)pid;
  return false;
#endif
}

}  // namespace tandem
